#include "cfs/server/backend_tier.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/awaited.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/xattr.h"
#include "cfs/server/backend_import.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

constexpr size_t kImportBatch = 256;
constexpr int kTriesMax = 6;
constexpr auto kFirstPause = std::chrono::milliseconds(20);
// A change within one tick of the clock that stamps it may have the stamp of the one
// before: what seems to have been changed lately is looked at again after that time.
constexpr auto kTick = std::chrono::milliseconds(50);
constexpr time_t kLately = 60;
// More files come to the device at once, with all that is in the store.
constexpr size_t kSyncedOneByOne = 16;

}  // namespace

BackendTier::BackendTier(const Options& options, LocalFileSystem* fs, Clock* clock, UniqueFd top)
    : path_(options.path),
      fs_(fs),
      clock_(clock),
      directories_(fs, std::move(top), options.writes_back, options.own_name),
      upkeep_([this] { RunUpkeep(); }),
      pool_(std::make_unique<IoPool>(kBackendThreads)),
      names_pool_(std::make_unique<IoPool>(kBackendNameThreads)),
      looks_pool_(std::make_unique<IoPool>(kBackendNameThreads)) {}

absl::StatusOr<std::unique_ptr<BackendTier>> BackendTier::Open(const Options& options,
                                                               LocalFileSystem* fs,
                                                               Clock* clock) {
  CFS_ASSIGN_OR_RETURN(UniqueFd top, OpenBackendTop(options.path));
  CFS_ASSIGN_OR_RETURN(BackendObject object, ReadBackendObject(top.get(), ""));
  const absl::StatusOr<bool> bound = fs->ImportRoot(ToImported(kNoInode, "", std::move(object)));
  if (!bound.ok()) {
    return absl::Status(bound.status().code(),
                        absl::StrCat("backend ", options.path, ": ", bound.status().message()));
  }
  std::unique_ptr<BackendTier> tier(new BackendTier(options, fs, clock, std::move(top)));
  fs->SetFetcher(tier.get(), options.writes_back,
                 /*looks=*/options.ttl > absl::ZeroDuration());
  if (options.writes_back) {
    tier->flusher_ = std::make_unique<Flusher>(
        fs, &tier->directories_, &tier->large_, [tier = tier.get()](const auto& inodes) {
          MutexLock lock(&tier->mutex_);
          tier->soft_.insert(tier->soft_.end(), inodes.begin(), inodes.end());
        });
    if (const absl::Status prepared = tier->flusher_->Prepare(); !prepared.ok()) {
      const int error = ErrnoOf(prepared);
      const absl::string_view said =
          prepared.message().empty() ? strerror(error) : prepared.message();
      return PosixError(error, absl::StrCat("backend ", options.path, ": ", said));
    }
  }
  tier->evictor_ = std::make_unique<Evictor>(fs, tier->flusher_.get(), options.store_bytes);
  tier->refresh_ = std::make_unique<BackendRefresh>(
      options.path, fs, &tier->directories_, options.ttl,
      [tier = tier.get()](InodeId dir) { tier->AwaitImport(dir); },
      [tier = tier.get()] { tier->newest_stamp_.store(SteadyClock::now()); });
  LogInfo("backend ", *bound ? "is new to the store" : "is known", " path=", options.path);
  return tier;
}

void BackendTier::Start() {
  if (flusher_ != nullptr) flusher_->Start();
  evictor_->Start();
}

BackendTier::~BackendTier() {
  Drain();
  looks_pool_.reset();
  refresh_.reset();
  evictor_.reset();
  flusher_.reset();
  pool_.reset();
  names_pool_.reset();
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  upkeep_.join();
}

void BackendTier::Drain() {
  {
    MutexLock lock(&mutex_);
    ending_.store(true, std::memory_order_relaxed);
    wake_.SignalAll();
  }
  // Whoever waits for room in it is told.
  if (evictor_ != nullptr) evictor_->Stop();
  if (refresh_ != nullptr) refresh_->Stop();
  if (flusher_ != nullptr) flusher_->Stop();
  // Looks wait for imports, and who waited for one may need another thing.
  looks_pool_->Drain();
  for (int i = 0; i < 2; ++i) {
    pool_->Drain();
    names_pool_->Drain();
  }
}

absl::StatusOr<std::vector<std::string>> BackendTier::MountOptions() const {
  struct statvfs st {};
  if (fstatvfs(directories_.top().get(), &st) != 0)
    return ErrnoStatus(absl::StrCat("backend ", path_));
  std::vector<std::string> options;
  if (flusher_ == nullptr) options.push_back("ro");
  if (st.f_flag & ST_NOSUID) options.push_back("nosuid");
  if (st.f_flag & ST_NODEV) options.push_back("nodev");
  if (st.f_flag & ST_NOEXEC) options.push_back("noexec");
  return options;
}

bool BackendTier::Pause(std::chrono::nanoseconds duration) {
  MutexLock lock(&mutex_);
  if (!ending_.load(std::memory_order_relaxed)) wake_.WaitFor(&mutex_, duration);
  return !ending_.load(std::memory_order_relaxed);
}

void BackendTier::Fetch(const BackendNeed& need, DoneStatus done) {
  if (need.kind == BackendNeed::kRoom) return evictor_->MakeRoom(std::move(done));
  const Key key(need.kind, need.ino);
  {
    MutexLock lock(&mutex_);
    std::vector<DoneStatus>& waiting = fetching_[key];
    waiting.push_back(std::move(done));
    if (waiting.size() > 1) return;
  }
  PoolOf(need)->Run([this, need, key] {
    const absl::Status status = FetchNow(need);
    std::vector<DoneStatus> waiting;
    {
      MutexLock lock(&mutex_);
      const auto it = fetching_.find(key);
      waiting = std::move(it->second);
      fetching_.erase(it);
      if (!status.ok()) {
        ++failures_;
        last_failure_ = status;
      }
    }
    for (DoneStatus& each : waiting) each(status);
  });
}

bool BackendTier::IsDue(InodeId dir, absl::string_view name) {
  return !ending_.load(std::memory_order_relaxed) && refresh_->IsDue(dir, name);
}

void BackendTier::Look(InodeId dir, absl::string_view name, absl::AnyInvocable<void()> done) {
  const std::pair key(dir, std::string(name));
  {
    MutexLock lock(&mutex_);
    auto& waiting = looking_[key];
    waiting.push_back(std::move(done));
    if (waiting.size() > 1) return;
  }
  looks_pool_->Run([this, key] {
    refresh_->LookOnUse(key.first, key.second);
    std::vector<absl::AnyInvocable<void()>> waiting;
    {
      MutexLock lock(&mutex_);
      const auto it = looking_.find(key);
      waiting = std::move(it->second);
      looking_.erase(it);
    }
    for (auto& each : waiting) each();
  });
}

void BackendTier::AwaitImport(InodeId dir) {
  const BackendNeed need{BackendNeed::kNames, dir};
  {
    MutexLock lock(&mutex_);
    if (!fetching_.contains(Key(need.kind, need.ino))) return;
  }
  Awaited<absl::Status> done;
  Fetch(need, [&done](absl::Status status) { done.Set(std::move(status)); });
  done.Get().IgnoreError();  // Who needs it is told.
}

absl::Status BackendTier::FetchNow(const BackendNeed& need) {
  if (ending_.load(std::memory_order_relaxed)) return PosixError(EINTR);
  const bool names = need.kind == BackendNeed::kNames;
  absl::Status status;
  for (int i = 0; i < kTriesMax; ++i) {
    if (!names && fs_->room() == LocalFileSystem::Room::kNone) evictor_->MakeRoomNow().IgnoreError();
    status = names ? ImportNow(need.ino) : StageNow(need.ino);
    if (ErrnoOf(status) != ENOSPC || !evictor_->MakeRoomNow().ok()) break;
  }
  if (status.ok()) return status;
  failure_lines_.Log(LogLevel::kWarn, absl::StrCat(names ? "directory" : "file",
                                                   " cannot be had from the backend ino=",
                                                   Raw(need.ino), " error=", status.ToString()));
  int error = ErrnoOf(status);
  // It is no directory, or no file, any more.
  if (error == ELOOP || error == ENOTDIR || (error == ENXIO && !names)) error = ESTALE;
  // To readdir(3), and to who looks a name up, ENOENT would say that there is none.
  if (names && absl::IsNotFound(PosixError(error))) error = error == ENOENT ? ESTALE : EIO;
  return PosixError(error);
}

// ------------------------------------------------------------------ directories

absl::Status BackendTier::ImportNow(InodeId dir) {
  for (int i = 0;; ++i) {
    const absl::Status imported = ImportOnce(dir);
    if (ErrnoOf(imported) != EAGAIN || i == kTriesMax) return imported;
  }
}

absl::Status BackendTier::ImportOnce(InodeId dir) {
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(dir));
  if (!(record.flags & kNotImported)) return absl::OkStatus();
  const SteadyClock::time_point began = SteadyClock::now();
  return directories_.With(dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const struct statx before, StatBackend(fd, ""));
    CFS_RETURN_IF_ERROR(fs_->BeginImport(dir));
    BucketRecord bucket{0, 0, TimeOf(before.stx_mtime), TimeOf(before.stx_ctime)};
    std::vector<LocalFileSystem::Imported> batch;
    absl::Status status;
    CFS_RETURN_IF_ERROR(ListBackendDirectory(fd, [&](const char* name) {
      if (dir == kRootInode && absl::string_view(name) == kBackendOwnName) return true;
      if (ending_.load(std::memory_order_relaxed)) status = PosixError(EINTR);
      absl::StatusOr<BackendObject> object = ReadBackendObject(fd, name);
      // Another one by now than when it was looked at first.
      if (ErrnoOf(object.status()) == EINVAL) object = ReadBackendObject(fd, name);
      if (ErrnoOf(object.status()) == ENOENT) return true;  // Gone since it was listed.
      if (!object.ok()) {
        status =
            PosixError(ErrnoOf(object.status()), absl::StrCat("look at ", absl::CHexEscape(name)));
        return false;
      }
      newest_stamp_.store(SteadyClock::now());
      batch.push_back(ToImported(dir, name, *std::move(object)));
      if (batch.size() == kImportBatch) {
        status.Update(fs_->Import(dir, std::move(batch), &bucket));
        batch.clear();
      }
      return status.ok();
    }));
    CFS_RETURN_IF_ERROR(status);
    if (!batch.empty()) CFS_RETURN_IF_ERROR(fs_->Import(dir, std::move(batch), &bucket));
    // Its place may have been another one's by the time that it was opened.
    CFS_ASSIGN_OR_RETURN(const InodeRecord now, fs_->RecordNow(dir));
    if (now.backend_identity != record.backend_identity) return PosixError(EAGAIN);
    CFS_RETURN_IF_ERROR(fs_->EndImport(dir, bucket));
    refresh_->NoteListed(dir, began);
    MutexLock lock(&mutex_);
    ++imported_directories_;
    imported_entries_ += bucket.entries;
    return absl::OkStatus();
  });
}

// ------------------------------------------------------------------------ files

absl::StatusOr<bool> BackendTier::StageOnce(InodeId ino) {
  CFS_ASSIGN_OR_RETURN(const InodeRecord seen, fs_->RecordNow(ino));
  if (seen.layout != Layout::kBackend) return true;
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, DecodeBackendIdentity(seen.backend_identity));
  UniqueFd file;
  const absl::Status opened = directories_.With(identity.dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(file, OpenBackendFile(fd, identity.name, O_RDONLY));
    return absl::OkStatus();
  });
  if (ErrnoOf(opened) == EAGAIN) return false;  // Somebody has a lease on it.
  CFS_RETURN_IF_ERROR(opened);
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(file.get(), "", /*now=*/true));
  if (!S_ISREG(st.stx_mode)) return PosixError(ESTALE, "it is no regular file any more");
  if (st.stx_blocks * 512 > evictor_->total()) return PosixError(EFBIG, "it is larger than the store");
  const BackendStamp stamp = StampOf(st);
  if (flusher_ != nullptr && stamp.number != identity.stamp.number) {
    // One of its names is another file's by now; it may have others.
    CFS_ASSIGN_OR_RETURN(const bool found, flusher_->FindLink(ino, identity));
    if (found) return false;
  }
  const bool changed = !(identity.stamp == stamp);
  // Who has recorded it has looked before.
  const bool looked = !changed && SteadyClock::now() - kTick > newest_stamp_.load();
  if (!looked && clock_->Now().tv_sec - stamp.ctime.tv_sec < kLately) {
    if (!Pause(kTick)) return PosixError(EINTR);
    CFS_ASSIGN_OR_RETURN(const struct statx again, StatBackend(file.get(), "", /*now=*/true));
    if (!(StampOf(again) == stamp)) return false;
  }

  CFS_ASSIGN_OR_RETURN(const LocalFileSystem::Staging staging, fs_->BeginStaging());
  const absl::StatusOr<uint64_t> copied =
      CopyContents(file.get(), staging.fd.get(), ending_, &large_);
  const absl::StatusOr<struct statx> after = StatBackend(file.get(), "", /*now=*/true);
  InodeRecord staged = seen;
  absl::StatusOr<Xattrs> xattrs;
  // What was changed here stays, whatever it is there.
  const bool ours = fs_->IsDirty(ino);
  if (changed && ours) {
    newest_stamp_.store(SteadyClock::now());
    staged.size = st.stx_size;
    staged.blocks = st.stx_blocks;
    identity.stamp = stamp;
  }
  const bool taken_over = changed && !ours;
  if (taken_over) {
    newest_stamp_.store(SteadyClock::now());
    FillRecord(st, &staged);
    staged.atime = seen.atime;
    identity.stamp = stamp;
    xattrs = ReadBackendXattrs(file.get());
    if (xattrs.ok()) {
      staged.flags = (seen.flags & ~(kHasAccessAcl | kHasDefaultAcl)) | AclFlags(*xattrs);
    }
  }
  if (!copied.ok() || !after.ok() || !(StampOf(*after) == stamp) || (taken_over && !xattrs.ok())) {
    fs_->DropStaging(staging);
    if (ErrnoOf(copied.status()) == EAGAIN) return false;
    CFS_RETURN_IF_ERROR(copied.status());
    CFS_RETURN_IF_ERROR(after.status());
    if (taken_over) CFS_RETURN_IF_ERROR(xattrs.status());
    return false;
  }
  staged.backend_identity = Encode(identity);
  const bool others_may =
      taken_over && (staged.mode != seen.mode || staged.uid != seen.uid || staged.gid != seen.gid ||
                     seen.flags != 0 || staged.flags != 0);
  CFS_ASSIGN_OR_RETURN(const bool ended, fs_->EndStaging(ino, seen, std::move(staged),
                                                         taken_over ? &*xattrs : nullptr, staging));
  if (!ended) return false;
  {
    MutexLock lock(&mutex_);
    ++staged_files_;
    staged_bytes_ += *copied;
    soft_.push_back(ino);
  }
  // The kernel has let them open what it was before. At this it looks again.
  if (others_may) return PosixError(ESTALE, "its permissions have changed");
  return true;
}

absl::Status BackendTier::StageNow(InodeId ino) {
  const auto rights = [&]() -> absl::StatusOr<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>> {
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(ino));
    return std::tuple(record.mode, record.uid, record.gid, record.flags & kHasAccessAcl);
  };
  CFS_ASSIGN_OR_RETURN(const auto before, rights());
  std::chrono::nanoseconds pause = kFirstPause;
  for (int i = 0; i < kTriesMax; ++i, pause *= 2) {
    CFS_ASSIGN_OR_RETURN(const bool done, StageOnce(ino));
    if (done) {
      // The kernel has let them open what it was before, whoever has seen the change.
      CFS_ASSIGN_OR_RETURN(const auto now, rights());
      return now == before ? absl::OkStatus() : PosixError(ESTALE, "its permissions have changed");
    }
    if (!Pause(pause)) return PosixError(EINTR);
  }
  return PosixError(EBUSY, "it changes on the backend all the time");
}

void BackendTier::DropUnsound(std::vector<InodeId>* unsound) {
  std::erase_if(*unsound, [this](InodeId ino) {
    const absl::StatusOr<bool> gone = fs_->Evict(ino);
    return gone.ok() || ErrnoOf(gone.status()) != EBUSY;
  });
}

// Files that were staged in, or flushed, come to the device some time after.
void BackendTier::RunUpkeep() {
  NameThread("cfs-backend");
  constexpr auto kSecond = std::chrono::seconds(1);
  std::vector<InodeId> unsound;
  for (;;) {
    DropUnsound(&unsound);
    std::vector<InodeId> soft;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) wake_.WaitFor(&mutex_, kSecond);
      if (stopping_) return;
      soft.swap(soft_);
    }
    if (soft.size() > kSyncedOneByOne) {
      // If it fails, each has to say whether it is concerned.
      const absl::Status synced = fs_->HardenAll(&soft, &unsound);
      if (synced.ok()) {
        MutexLock lock(&mutex_);
        soft_.insert(soft_.end(), soft.begin(), soft.end());
        continue;
      }
    }
    for (const InodeId ino : soft) {
      const absl::StatusOr<bool> hard = fs_->Harden(ino);
      if (!hard.ok()) {
        // Asked again, the device would say that all is well.
        LogError("what was staged in cannot be written to the device, and is dropped ino=",
                 Raw(ino), " error=", hard.status().ToString());
        unsound.push_back(ino);
      }
      MutexLock lock(&mutex_);
      if (stopping_) return;
      if (hard.ok() && !*hard) soft_.push_back(ino);
    }
  }
}

nlohmann::json BackendTier::Status() {
  nlohmann::json status = flusher_ == nullptr ? nlohmann::json::object() : flusher_->Status();
  status.update(evictor_->Status());
  status.update(refresh_->Status());
  MutexLock lock(&mutex_);
  status.update({{"path", path_},
                 {"mode", flusher_ == nullptr ? "readonly" : "writeback"},
                 {"imported_directories", imported_directories_},
                 {"imported_entries", imported_entries_},
                 {"staged_files", staged_files_},
                 {"staged_bytes", staged_bytes_},
                 {"opens", fs_->opens()},
                 {"fetching", fetching_.size()},
                 {"failures", failures_},
                 {"last_failure", last_failure_.ok() ? "" : last_failure_.ToString()}});
  return status;
}

}  // namespace cfs
