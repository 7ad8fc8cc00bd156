#include "cfs/tier/chunk_store.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"

namespace cfs {
namespace {

constexpr uint64_t kFilesInDirectory = 1024;

// "xxx/yyy/0123456789ab" relative to the data directory.
struct RelativePath {
  explicit RelativePath(BackingId backing) {
    const unsigned long long n = Raw(backing);
    std::snprintf(text, sizeof(text), "%03llx/%03llx/%012llx", n >> 20 & 0xfff, n >> 10 & 0x3ff, n);
  }
  std::string directory() const { return std::string(text, std::strrchr(text, '/') - text); }
  char text[32];
};

bool IsTmpfs(int fd) {
  struct statfs st;
  return fstatfs(fd, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

}  // namespace

std::string BackingPath(BackingId backing) { return RelativePath(backing).text; }

absl::Status WalkBackingFiles(
    const std::string& directory,
    const std::function<void(absl::string_view path, BackingId backing)>& visit) {
  namespace fs = std::filesystem;
  std::error_code error;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->is_directory(error) && it.depth() < 2) continue;
    const std::string path = it->path().string().substr(directory.size() + 1);
    uint64_t number = 0;
    if (!it->is_regular_file(error) || it->is_symlink(error) ||
        !absl::SimpleHexAtoi(it->path().filename().string(), &number) ||
        BackingPath(BackingId(number)) != path) {
      number = 0;
    }
    visit(path, BackingId(number));
  }
  return error ? ErrnoStatus(error.value(), absl::StrCat("list ", directory)) : absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ChunkStore>> ChunkStore::Open(const std::string& directory,
                                                             NextNumber next_number) {
  UniqueFd fd(open(directory.c_str(), O_DIRECTORY | O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", directory));
  return std::unique_ptr<ChunkStore>(
      new ChunkStore(std::move(fd), directory, std::move(next_number)));
}

ChunkStore::ChunkStore(UniqueFd directory, std::string path, NextNumber next_number)
    : directory_(std::move(directory)),
      in_memory_(IsTmpfs(directory_.get())),
      path_(std::move(path)),
      next_number_(std::move(next_number)) {}

ChunkStore::~ChunkStore() { StopPool(); }

std::string ChunkStore::PathOf(BackingId backing) const {
  return absl::StrCat(path_, "/", RelativePath(backing).text);
}

absl::StatusOr<UniqueFd> ChunkStore::OpenFile(BackingId backing, int flags) const {
  UniqueFd fd(openat(directory_.get(), RelativePath(backing).text, flags | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return ErrnoStatus("open backing file");
  return fd;
}

absl::Status ChunkStore::Stat(BackingId backing, struct stat* st) const {
  if (fstatat(directory_.get(), RelativePath(backing).text, st, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoStatus("stat backing file");
  }
  return absl::OkStatus();
}

absl::Status ChunkStore::SetTimes(BackingId backing, const timespec times[2]) const {
  if (utimensat(directory_.get(), RelativePath(backing).text, times, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoStatus("set times of backing file");
  }
  return absl::OkStatus();
}

absl::Status ChunkStore::Remove(BackingId backing) const {
  if (unlinkat(directory_.get(), RelativePath(backing).text, 0) != 0) {
    return ErrnoStatus("remove backing file");
  }
  return absl::OkStatus();
}

size_t ChunkStore::RemoveAll(uint64_t first, uint64_t end,
                             absl::FunctionRef<bool(BackingId)> kept) const {
  size_t removed = 0;
  for (uint64_t n = first; n < end;) {
    const uint64_t next = std::min(end, (n / kFilesInDirectory + 1) * kFilesInDirectory);
    const RelativePath path{BackingId(n)};
    const UniqueFd directory(openat(directory_.get(), path.directory().c_str(),
                                    O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    // Mostly there is none: numbers are taken for directories, too.
    if (!directory.valid() && errno == ENOENT) n = next;
    for (; n < next; ++n) {
      if (!kept(BackingId(n)) && Remove(BackingId(n)).ok()) ++removed;
    }
  }
  return removed;
}

absl::StatusOr<UniqueFd> ChunkStore::Create(BackingId backing) const {
  const RelativePath path(backing);
  for (int attempt = 0; attempt < 2; ++attempt) {
    UniqueFd fd(openat(directory_.get(), path.text,
                       O_CREAT | O_EXCL | O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd.valid()) return fd;
    if (errno != ENOENT || attempt > 0) break;
    for (const size_t length : {3, 7}) {
      const std::string parent(path.text, length);
      if (mkdirat(directory_.get(), parent.c_str(), 0700) != 0 && errno != EEXIST) {
        return ErrnoStatus("make directory of backing file");
      }
    }
  }
  return ErrnoStatus("create backing file");
}

absl::Status ChunkStore::CreateEmpty(BackingId backing) const { return Create(backing).status(); }

absl::StatusOr<bool> ChunkStore::HasWriter(BackingId backing) const {
  return LeaseRefused(backing, F_RDLCK);
}

absl::StatusOr<bool> ChunkStore::IsUsed(BackingId backing) const {
  return LeaseRefused(backing, F_WRLCK);
}

absl::StatusOr<bool> ChunkStore::LeaseRefused(BackingId backing, int lease) const {
  CFS_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(backing, O_RDONLY | O_NONBLOCK));
  if (fcntl(fd.get(), F_SETLEASE, lease) == 0) {
    // Dropped at once: a lease that stays would delay the next open.
    if (fcntl(fd.get(), F_SETLEASE, F_UNLCK) != 0) return ErrnoStatus("drop lease");
    return false;
  }
  if (errno == EAGAIN) return true;
  return ErrnoStatus("lease probe");
}

absl::StatusOr<struct statvfs> ChunkStore::Space() const {
  struct statvfs st;
  if (fstatvfs(directory_.get(), &st) != 0) return ErrnoStatus("statvfs of the store");
  return st;
}

absl::Status ChunkStore::SyncAll() const {
  if (syncfs(directory_.get()) != 0) return ErrnoStatus("sync of the store");
  return absl::OkStatus();
}

void ChunkStore::SetFirst(uint64_t number) {
  MutexLock lock(&settle_mutex_);
  CFS_CHECK(window_.empty());
  settled_.store(number, std::memory_order_release);
}

void ChunkStore::Settle(BackingId backing) {
  MutexLock lock(&settle_mutex_);
  uint64_t base = settled_.load(std::memory_order_relaxed);
  CFS_CHECK(Raw(backing) >= base);
  const uint64_t index = Raw(backing) - base;
  if (index >= window_.size()) window_.resize(index + 1, false);
  CFS_CHECK(!window_[index]);
  window_[index] = true;
  while (!window_.empty() && window_.front()) {
    window_.pop_front();
    ++base;
  }
  settled_.store(base, std::memory_order_release);
}

absl::StatusOr<FreshFile> ChunkStore::MakeFresh(const Registrar& registrar) {
  CFS_ASSIGN_OR_RETURN(const struct statvfs space, Space());
  if (space.f_files > 0 && space.f_favail < kSpareInodes) return PosixError(ENOSPC);
  CFS_ASSIGN_OR_RETURN(const uint64_t number, next_number_());
  FreshFile fresh{BackingId(number), 0};
  const absl::StatusOr<UniqueFd> fd = Create(fresh.backing);
  if (!fd.ok()) {
    Settle(fresh.backing);
    return fd.status();
  }
  if (registrar) fresh.registration = registrar(fd->get());
  return fresh;
}

void ChunkStore::StartPool(Registrar registrar) {
  registrar_ = std::move(registrar);
  filler_ = Thread([this] { Fill(); });
}

void ChunkStore::StopPool() {
  if (!filler_.joinable()) return;
  {
    MutexLock lock(&pool_mutex_);
    stopping_ = true;
    pool_wake_.Signal();
  }
  filler_.join();
  MutexLock lock(&pool_mutex_);
  for (const FreshFile& fresh : pool_) {
    // A file that stays is found again by recovery.
    if (Remove(fresh.backing).ok()) Settle(fresh.backing);
  }
  pool_.clear();
  pool_size_.store(0, std::memory_order_relaxed);
}

void ChunkStore::Fill() {
  NameThread("cfs-fresh-files");
  for (;;) {
    {
      MutexLock lock(&pool_mutex_);
      while (!stopping_ && pool_.size() > kPoolFiles / 2) pool_wake_.Wait(&pool_mutex_);
      if (stopping_) return;
    }
    for (;;) {
      absl::StatusOr<FreshFile> fresh = MakeFresh(registrar_);
      MutexLock lock(&pool_mutex_);
      if (!fresh.ok()) {
        // TakeFresh tries for itself and reports; here only time is lost.
        if (!stopping_) pool_wake_.WaitFor(&pool_mutex_, std::chrono::seconds(1));
        break;
      }
      pool_.push_back(*fresh);
      pool_size_.store(pool_.size(), std::memory_order_relaxed);
      if (stopping_ || pool_.size() >= kPoolFiles) break;
    }
  }
}

absl::StatusOr<FreshFile> ChunkStore::TakeFresh() {
  {
    MutexLock lock(&pool_mutex_);
    if (!pool_.empty()) {
      const FreshFile fresh = pool_.front();
      pool_.pop_front();
      pool_size_.store(pool_.size(), std::memory_order_relaxed);
      if (pool_.size() == kPoolFiles / 2) pool_wake_.Signal();
      return fresh;
    }
    pool_wake_.Signal();
  }
  return MakeFresh(nullptr);
}

}  // namespace cfs
