#include "cfs/server/backend_tier.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/xattr.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

// What cfs keeps for itself at the top of a backend.
constexpr char kOwnName[] = ".cfs";
constexpr size_t kImportBatch = 256;
constexpr size_t kDirectoriesKept = 256;
constexpr int kDepthMax = 4096;  // Of a path of 16 KiB.
constexpr int kTriesMax = 6;
constexpr auto kFirstPause = std::chrono::milliseconds(20);
// A change within one tick of the clock that stamps it may have the stamp of the one
// before: what was changed just now is given the time to get another.
constexpr int64_t kTickNanoseconds = 50'000'000;
constexpr auto kTick = std::chrono::nanoseconds(kTickNanoseconds);

timespec TimeOf(const statx_timestamp& time) {
  return {static_cast<time_t>(time.tv_sec), static_cast<long>(time.tv_nsec)};
}

BackendStamp StampOf(const struct statx& st) {
  return {st.stx_ino, S_ISREG(st.stx_mode) ? st.stx_size : 0, TimeOf(st.stx_mtime),
          TimeOf(st.stx_ctime)};
}

// What the object has of its own, but its identity.
void FillRecord(const struct statx& st, InodeRecord* record) {
  record->mode = st.stx_mode;
  record->uid = st.stx_uid;
  record->gid = st.stx_gid;
  record->rdev = makedev(st.stx_rdev_major, st.stx_rdev_minor);
  record->size = S_ISREG(st.stx_mode) ? st.stx_size : 0;
  record->blocks = S_ISREG(st.stx_mode) ? st.stx_blocks : 0;
  record->atime = TimeOf(st.stx_atime);
  record->mtime = TimeOf(st.stx_mtime);
  record->ctime = TimeOf(st.stx_ctime);
}

LocalFileSystem::Imported ToImported(InodeId dir, std::string name, BackendObject object) {
  LocalFileSystem::Imported entry;
  const struct statx& st = object.st;
  InodeRecord& record = entry.record;
  FillRecord(st, &record);
  record.btime = st.stx_mask & STATX_BTIME ? TimeOf(st.stx_btime)
                               : record.mtime < record.ctime ? record.mtime
                                                             : record.ctime;
  record.nlink = record.IsDirectory() ? 1 : std::max<uint32_t>(1, st.stx_nlink);
  if (record.IsRegular()) record.layout = Layout::kBackend;
  if (record.IsDirectory()) {
    record.flags |= kNotImported;
    // Until it is: file systems that count subdirectories do so in the links.
    entry.bucket = {0, st.stx_nlink > 2 ? st.stx_nlink - 2 : 0, record.mtime, record.ctime};
  }
  record.target = std::move(object.target);
  record.backend_identity = Encode(BackendIdentity{dir, name, StampOf(st), {}});
  for (auto& [xattr, value] : object.xattrs) {
    if (xattr == kAccessAclXattr) record.flags |= kHasAccessAcl;
    if (xattr == kDefaultAclXattr) record.flags |= kHasDefaultAcl;
    // A name's bytes; what does not fit is of no use to anybody.
    if (record.xattr_list_bytes + xattr.size() + 1 > kXattrListBytesMax) continue;
    entry.xattrs.emplace_back(std::move(xattr), std::move(value));
  }
  entry.name = std::move(name);
  return entry;
}

}  // namespace

BackendTier::BackendTier(std::string path, LocalFileSystem* fs, Clock* clock, UniqueFd top)
    : path_(std::move(path)),
      fs_(fs),
      clock_(clock),
      top_(std::make_shared<UniqueFd>(std::move(top))),
      directories_(kDirectoriesKept),
      upkeep_([this] { RunUpkeep(); }),
      pool_(std::make_unique<IoPool>(kBackendThreads)) {}

absl::StatusOr<std::unique_ptr<BackendTier>> BackendTier::Open(const std::string& path,
                                                               LocalFileSystem* fs,
                                                               Clock* clock) {
  CFS_ASSIGN_OR_RETURN(UniqueFd top, OpenBackendTop(path));
  CFS_ASSIGN_OR_RETURN(BackendObject object, ReadBackendObject(top.get(), ""));
  const absl::StatusOr<bool> bound =
      fs->ImportRoot(ToImported(kNoInode, "", std::move(object)));
  if (!bound.ok()) {
    return absl::Status(bound.status().code(),
                        absl::StrCat("backend ", path, ": ", bound.status().message()));
  }
  std::unique_ptr<BackendTier> tier(new BackendTier(path, fs, clock, std::move(top)));
  fs->SetFetcher(tier.get());
  LogInfo("backend ", *bound ? "is new to the store" : "is known", " path=", path);
  return tier;
}

BackendTier::~BackendTier() {
  pool_.reset();
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  upkeep_.join();
}

void BackendTier::Fetch(const BackendNeed& need, DoneStatus done) {
  const Key key(need.kind, need.ino);
  {
    MutexLock lock(&mutex_);
    std::vector<DoneStatus>& waiting = fetching_[key];
    waiting.push_back(std::move(done));
    if (waiting.size() > 1) return;
  }
  pool_->Run([this, need, key] {
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

absl::Status BackendTier::FetchNow(const BackendNeed& need) {
  const absl::Status status =
      need.kind == BackendNeed::kNames ? ImportNow(need.ino) : StageNow(need.ino);
  if (status.ok()) return status;
  LogWarn(need.kind == BackendNeed::kNames ? "directory" : "file",
          " cannot be had from the backend ino=", Raw(need.ino), " error=", status.ToString());
  // To readdir(3), ENOENT would be the end of an empty directory.
  const int error = ErrnoOf(status);
  return PosixError(need.kind == BackendNeed::kNames && error == ENOENT ? ESTALE : error);
}

// ------------------------------------------------------------------ directories

absl::StatusOr<BackendTier::Directory> BackendTier::DirectoryOf(InodeId dir, int depth) {
  if (depth > kDepthMax) return PosixError(ELOOP);
  if (dir == kRootInode) return top_;
  if (auto known = directories_.Get(dir)) return *std::move(known);
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(dir));
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(record.backend_identity));
  CFS_ASSIGN_OR_RETURN(const Directory parent, DirectoryOf(identity.dir, depth + 1));
  CFS_ASSIGN_OR_RETURN(UniqueFd fd, OpenBackendDirectory(parent->get(), identity.name));
  Directory opened = std::make_shared<UniqueFd>(std::move(fd));
  directories_.Put(dir, opened);
  return opened;
}

absl::Status BackendTier::WithDirectory(InodeId dir,
                                        absl::FunctionRef<absl::Status(int fd)> use) {
  for (const bool again : {false, true}) {
    const absl::StatusOr<Directory> directory = DirectoryOf(dir);
    const absl::Status status = directory.ok() ? use((*directory)->get()) : directory.status();
    const int error = ErrnoOf(status);
    // A directory that was opened before may be gone, and another be there.
    if (again || (error != ENOENT && error != ESTALE)) return status;
    directories_.Clear();
  }
  return absl::OkStatus();
}

absl::Status BackendTier::ImportNow(InodeId dir) {
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(dir));
  if (!(record.flags & kNotImported)) return absl::OkStatus();
  return WithDirectory(dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const struct statx before, StatBackend(fd, ""));
    CFS_RETURN_IF_ERROR(fs_->BeginImport(dir));
    BucketRecord bucket{0, 0, TimeOf(before.stx_mtime), TimeOf(before.stx_ctime)};
    std::vector<LocalFileSystem::Imported> batch;
    absl::Status status;
    CFS_RETURN_IF_ERROR(ListBackendDirectory(fd, [&](const char* name) {
      if (dir == kRootInode && absl::string_view(name) == kOwnName) return true;
      absl::StatusOr<BackendObject> object = ReadBackendObject(fd, name);
      if (ErrnoOf(object.status()) == ENOENT) return true;  // Gone since it was listed.
      if (!object.ok()) {
        status = absl::Status(object.status());
        LogWarn("object on the backend cannot be looked at name=", absl::CHexEscape(name),
                " error=", status.ToString());
        return false;
      }
      batch.push_back(ToImported(dir, name, *std::move(object)));
      ++bucket.entries;
      if (batch.back().record.IsDirectory()) ++bucket.subdirs;
      if (batch.size() == kImportBatch) {
        status = fs_->Import(dir, std::move(batch));
        batch.clear();
      }
      return status.ok();
    }));
    CFS_RETURN_IF_ERROR(status);
    if (!batch.empty()) CFS_RETURN_IF_ERROR(fs_->Import(dir, std::move(batch)));
    CFS_RETURN_IF_ERROR(fs_->EndImport(dir, bucket));
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
  CFS_RETURN_IF_ERROR(WithDirectory(identity.dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(file, OpenBackendFile(fd, identity.name, O_RDONLY));
    return absl::OkStatus();
  }));
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(file.get(), ""));
  if (!S_ISREG(st.stx_mode)) return PosixError(ESTALE, "it is no regular file any more");
  const timespec now = clock_->Now();
  const timespec changed = TimeOf(st.stx_ctime);
  const int64_t age = (now.tv_sec - changed.tv_sec) * 1'000'000'000 + now.tv_nsec - changed.tv_nsec;
  if (age >= 0 && age < kTickNanoseconds) return false;

  CFS_ASSIGN_OR_RETURN(const LocalFileSystem::Staging staging, fs_->BeginStaging());
  const absl::StatusOr<uint64_t> copied = CopyContents(file.get(), staging.fd.get());
  const absl::StatusOr<struct statx> after = StatBackend(file.get(), "");
  const bool same = copied.ok() && after.ok() && StampOf(*after) == StampOf(st);
  if (!same) {
    fs_->DropStaging(staging);
    CFS_RETURN_IF_ERROR(copied.status());
    CFS_RETURN_IF_ERROR(after.status());
    return false;
  }
  InodeRecord staged = seen;
  if (!(identity.stamp == StampOf(st))) {
    const timespec atime = staged.atime;
    FillRecord(st, &staged);
    staged.atime = atime;
    identity.stamp = StampOf(st);
  }
  staged.backend_identity = Encode(identity);
  CFS_ASSIGN_OR_RETURN(const bool ended, fs_->EndStaging(ino, seen, std::move(staged), staging));
  if (!ended) return false;
  MutexLock lock(&mutex_);
  ++staged_files_;
  staged_bytes_ += *copied;
  soft_.push_back(ino);
  return true;
}

absl::Status BackendTier::StageNow(InodeId ino) {
  auto pause = kFirstPause;
  for (int i = 0; i < kTriesMax; ++i, pause *= 2) {
    CFS_ASSIGN_OR_RETURN(const bool done, StageOnce(ino));
    if (done) return absl::OkStatus();
    MutexLock lock(&mutex_);
    wake_.WaitFor(&mutex_, std::max<std::chrono::nanoseconds>(pause, kTick));
  }
  return PosixError(EBUSY, "it changes on the backend all the time");
}

// Files that were staged in come to the device some time after, one by one.
void BackendTier::RunUpkeep() {
  NameThread("cfs-backend");
  constexpr auto kSecond = std::chrono::seconds(1);
  for (;;) {
    std::vector<InodeId> soft;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) wake_.WaitFor(&mutex_, kSecond);
      if (stopping_) return;
      soft.swap(soft_);
    }
    for (const InodeId ino : soft) {
      const absl::StatusOr<bool> hard = fs_->Harden(ino);
      if (!hard.ok()) {
        LogWarn("what was staged in is not on the device ino=", Raw(ino),
                " error=", hard.status().ToString());
      }
      MutexLock lock(&mutex_);
      if (stopping_) return;
      if (!hard.ok() || !*hard) soft_.push_back(ino);
    }
  }
}

nlohmann::json BackendTier::Status() {
  MutexLock lock(&mutex_);
  return {{"path", path_},
          {"mode", "readonly"},
          {"imported_directories", imported_directories_},
          {"imported_entries", imported_entries_},
          {"staged_files", staged_files_},
          {"staged_bytes", staged_bytes_},
          {"fetching", fetching_.size()},
          {"failures", failures_},
          {"last_failure", last_failure_.ok() ? "" : last_failure_.ToString()}};
}

}  // namespace cfs
