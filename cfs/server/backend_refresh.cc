#include "cfs/server/backend_refresh.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/record_format.h"
#include "cfs/ring/hash.h"
#include "cfs/server/backend_import.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

constexpr size_t kLooksAtOnce = 32;
constexpr size_t kAddedAtOnce = 256;
constexpr size_t kSaidMax = 100;
constexpr size_t kResultsKept = 64;
// More are found by the next refresh.
constexpr size_t kWaitingMax = 100'000;
constexpr int kTriesMax = 4;
// Of looks on use: 64 bytes each; what is not known is looked at.
constexpr size_t kLooksKept = 256 << 10;
constexpr size_t kListedKept = 16 << 10;
// Times of a directory that is changed again in the same tick of its clock may be the same.
constexpr time_t kDirectoryTick = 2;
constexpr auto kRetryOpen = std::chrono::seconds(1);
// Whoever has just closed a file is being seen off.
constexpr auto kSettling = std::chrono::milliseconds(20);
constexpr int kSettlingTries = 75;

std::string Below(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, "/", name);
}

std::string Above(const std::string& path, const std::string& name) {
  return path.substr(0, path.size() - std::min(path.size(), name.size() + 1));
}

std::string Say(const absl::Status& status) {
  const std::string error = strerror(ErrnoOf(status));
  if (status.message().empty() || status.message() == error) return error;
  return absl::StrCat(error, " (", status.message(), ")");
}

uint64_t LookKey(InodeId dir, absl::string_view name) { return Hash64(DentryKey(dir, name)); }

bool IsGone(const absl::Status& status) {
  return ErrnoOf(status) == ENOENT || ErrnoOf(status) == ESTALE;
}

bool IsSameObject(const InodeRecord& record, const BackendIdentity& identity,
                  const struct statx& st) {
  if ((record.mode & S_IFMT) != (st.stx_mode & S_IFMT)) return false;
  if (identity.stamp.number != st.stx_ino) return false;
  if (!record.IsDirectory() || !(st.stx_mask & STATX_BTIME)) return true;
  // Numbers are used again.
  const timespec born = TimeOf(st.stx_btime);
  const timespec& known = identity.clean_ctime;
  return (known.tv_sec == 0 && known.tv_nsec == 0) || known == born;
}

bool IsUnchanged(const LocalFileSystem::Known& known, const BackendIdentity& identity,
                 const struct statx& st) {
  if (!(identity.stamp == StampOf(st))) return false;
  if (known.record.IsDirectory()) return known.dirty || known.mtime == TimeOf(st.stx_mtime);
  return known.record.nlink == std::max<uint32_t>(1, st.stx_nlink);
}

}  // namespace

BackendRefresh::BackendRefresh(std::string path, LocalFileSystem* fs,
                               BackendDirectories* directories, absl::Duration ttl,
                               AwaitImport await_import, NoteStamp note_stamp)
    : path_(std::move(path)),
      fs_(fs),
      directories_(directories),
      look_after_(absl::ToChronoNanoseconds(ttl / 2)),
      await_import_(std::move(await_import)),
      note_stamp_(std::move(note_stamp)),
      looked_at_(kLooksKept),
      listed_(kListedKept),
      pool_(kRefreshThreads),
      thread_([this] { Run(); }) {}

BackendRefresh::~BackendRefresh() { Stop(); }

void BackendRefresh::Stop() {
  {
    MutexLock lock(&mutex_);
    ending_.store(true, std::memory_order_relaxed);
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

uint64_t BackendRefresh::Begin(InodeId top, std::vector<std::string> way) {
  Work work;
  work.top = top;
  work.way = std::move(way);
  MutexLock lock(&mutex_);
  work.number = ++last_;
  asked_.push_back(std::move(work));
  wake_.SignalAll();
  return last_;
}

nlohmann::json BackendRefresh::ToJson(const Work& work, bool done) const {
  nlohmann::json said = nlohmann::json::array();
  for (const Said& each : work.said) said.push_back({{"path", each.path}, {"error", each.error}});
  return {{"ok", true},
          {"done", done},
          {"looked", looked_.load(std::memory_order_relaxed)},
          {"added", work.added},
          {"gone", work.gone},
          {"changed", work.changed},
          {"left", work.left},
          {"open", work.open},
          {"failed", work.failed},
          {"said", said},
          {"error", work.status.ok() ? "" : Say(work.status)}};
}

nlohmann::json BackendRefresh::Progress(uint64_t number) {
  MutexLock lock(&mutex_);
  const auto it = results_.find(number);
  return it == results_.end() ? ToJson(Work(), number > last_ || number + kResultsKept < last_)
                              : ToJson(it->second, /*done=*/true);
}

nlohmann::json BackendRefresh::Status() {
  MutexLock lock(&mutex_);
  return {{"refreshed_added", added_},     {"refreshed_gone", gone_},
          {"refreshed_changed", changed_}, {"refreshing", asked_.size()},
          {"look_failures", unseen_},      {"changed_while_open", waiting_count_}};
}

void BackendRefresh::Run() {
  NameThread("cfs-refresh");
  for (;;) {
    Work work;
    {
      MutexLock lock(&mutex_);
      if (asked_.empty() && !ending_.load(std::memory_order_relaxed)) {
        wake_.WaitFor(&mutex_, kRetryOpen);
      }
      if (ending_.load(std::memory_order_relaxed)) return;
      if (!asked_.empty()) work = asked_.front();
    }
    if (work.number == 0) {
      RetryOpen();
      continue;
    }
    RunOne(&work);
    MutexLock lock(&mutex_);
    asked_.pop_front();
    added_ += work.added;
    gone_ += work.gone;
    changed_ += work.changed;
    waiting_count_ = waiting_.size();
    results_.emplace(work.number, std::move(work));
    if (results_.size() > kResultsKept) results_.erase(results_.begin());
  }
}

void BackendRefresh::RunOne(Work* work) {
  const auto run = [&]() -> absl::Status {
    CFS_RETURN_IF_ERROR(CheckTop());
    directories_->ForgetAll();
    Subdirectory at;
    at.ino = work->top;
    for (const std::string& name : work->way) {
      CFS_ASSIGN_OR_RETURN(InodeRecord record, fs_->RecordNow(at.ino));
      if (!record.IsDirectory()) return PosixError(ENOTDIR);
      if (record.flags & kNotImported) {
        await_import_(at.ino);
        CFS_ASSIGN_OR_RETURN(record, fs_->RecordNow(at.ino));
        if (record.flags & kNotImported) return absl::OkStatus();
      }
      const std::string path = Below(at.path, name);
      std::vector<Subdirectory> below;
      const absl::Status looked = RefreshName(work, at.ino, name, path, &below);
      if (!looked.ok()) return PosixError(ErrnoOf(looked), path);
      CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(at.ino, name));
      if (ino == kNoInode) return absl::OkStatus();
      at = {at.ino, name, ino, path};
    }
    const absl::StatusOr<InodeRecord> record = fs_->RecordNow(at.ino);
    if (absl::IsNotFound(record.status())) return absl::OkStatus();
    CFS_RETURN_IF_ERROR(record.status());
    if (record->IsDirectory()) RefreshTree(work, std::move(at));
    return absl::OkStatus();
  };
  work->status = run();
  AwaitClosed(work);
  if (!work->status.ok()) {
    LogWarn("the backend cannot be looked at error=", work->status.ToString());
  }
}

absl::Status BackendRefresh::CheckTop() const {
  const absl::StatusOr<UniqueFd> now = OpenBackendTop(path_);
  if (!now.ok()) return now.status();
  CFS_ASSIGN_OR_RETURN(const struct statx there, StatBackend(now->get(), "", /*now=*/true));
  CFS_ASSIGN_OR_RETURN(const struct statx held,
                       StatBackend(directories_->top().get(), "", /*now=*/true));
  if (held.stx_nlink > 0 && there.stx_ino == held.stx_ino &&
      there.stx_dev_major == held.stx_dev_major && there.stx_dev_minor == held.stx_dev_minor) {
    return absl::OkStatus();
  }
  return PosixError(ENODEV, absl::StrCat(path_, " is another directory than when it was mounted"));
}

absl::Status BackendRefresh::CheckDirectory(InodeId dir, int fd) {
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(fd, "", /*now=*/true));
  if (st.stx_nlink == 0) return PosixError(ESTALE, "it was removed meanwhile");
  if (dir == kRootInode) return CheckTop();
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(dir));
  if (record.backend_identity.empty()) return PosixError(ESTALE, "it is not there any more");
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(record.backend_identity));
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory above, directories_->Of(identity.dir));
  CFS_ASSIGN_OR_RETURN(const struct statx named,
                       StatBackend(above->get(), identity.name, /*now=*/true));
  if (st.stx_ino == identity.stamp.number && named.stx_ino == st.stx_ino) return absl::OkStatus();
  return PosixError(ESTALE, "another one is in its place");
}

void BackendRefresh::Fail(Work* work, const std::string& path, const absl::Status& status) {
  ++work->failed;
  const std::string where = path.empty() ? "." : path;
  if (work->said.size() < kSaidMax) work->said.push_back({where, Say(status)});
  failure_lines_.Log(LogLevel::kWarn,
                     absl::StrCat("cannot be looked at on the backend path=",
                                  absl::CHexEscape(where), " error=", status.ToString()));
}

// ------------------------------------------------------------------ directories

absl::Status BackendRefresh::RefreshName(Work* work, InodeId dir, const std::string& name,
                                         const std::string& path,
                                         std::vector<Subdirectory>* below) {
  if (dir == kRootInode && name == kBackendOwnName) return absl::OkStatus();
  return directories_->With(dir, [&](int fd) -> absl::Status {
    for (int tries = 0;; ++tries) {
      std::vector<Look> looks(1);
      CFS_ASSIGN_OR_RETURN(looks[0].known, fs_->KnownNow(dir, name));
      looks[0].there = StatBackend(fd, name, /*now=*/true);
      looked_.fetch_add(1, std::memory_order_relaxed);
      CFS_RETURN_IF_ERROR(CheckDirectory(dir, fd));
      absl::Status agreed;
      if (looks[0].known.ino != kNoInode) {
        agreed = Agree(work, fd, looks[0], path, below);
      } else if (looks[0].known.name_dirty) {
        ++work->left;
      } else if (looks[0].there.ok()) {
        CFS_ASSIGN_OR_RETURN(BackendObject object, ReadBackendObject(fd, name));
        std::vector<LocalFileSystem::Imported> one;
        one.push_back(ToImported(dir, name, std::move(object)));
        agreed = Add(work, dir, Above(path, name), std::move(one));
      } else if (ErrnoOf(looks[0].there.status()) != ENOENT) {
        return looks[0].there.status();
      }
      if (ErrnoOf(agreed) != EAGAIN || tries == kTriesMax) {
        if (ErrnoOf(agreed) != EAGAIN) return agreed;
        ++work->left;
        return absl::OkStatus();
      }
    }
  });
}

void BackendRefresh::RefreshTree(Work* work, Subdirectory top) {
  std::vector<Subdirectory> below;
  below.push_back(std::move(top));
  while (!below.empty() && !ending_.load(std::memory_order_relaxed)) {
    Subdirectory at = std::move(below.back());
    below.pop_back();
    RefreshDirectory(work, std::move(at), &below);
  }
  if (ending_.load(std::memory_order_relaxed)) Fail(work, "", PosixError(EINTR));
}

void BackendRefresh::RefreshDirectory(Work* work, Subdirectory at,
                                      std::vector<Subdirectory>* below) {
  absl::StatusOr<InodeRecord> record = fs_->RecordNow(at.ino);
  if (record.ok() && (record->flags & kNotImported)) {
    await_import_(at.ino);
    record = fs_->RecordNow(at.ino);
  }
  if (absl::IsNotFound(record.status())) return;
  if (!record.ok()) return Fail(work, at.path, record.status());
  // What nobody has looked for is not known.
  if (record->nlink == 0 || (record->flags & kNotImported)) return;
  // It is new here.
  if (record->backend_identity.empty()) return;
  directories_->Forget(at.ino);
  const absl::Status refreshed = directories_->With(at.ino, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const struct statx before, StatBackend(fd, "", /*now=*/true));
    CFS_RETURN_IF_ERROR(CheckDirectory(at.ino, fd));
    CFS_RETURN_IF_ERROR(RefreshKnown(work, at, fd, below));
    CFS_RETURN_IF_ERROR(RefreshNew(work, at, fd));
    return RefreshSelf(work, at, fd, before);
  });
  if (refreshed.ok() || ErrnoOf(refreshed) == ENXIO) return;
  if (!IsGone(refreshed) || at.dir == kNoInode || at.tries == kTriesMax) {
    return Fail(work, at.path, refreshed);
  }
  // Since its name was looked at.
  std::vector<Subdirectory> again;
  const absl::Status looked = RefreshName(work, at.dir, at.name, at.path, &again);
  if (!looked.ok()) return Fail(work, at.path, looked);
  for (Subdirectory& each : again) {
    each.tries = at.tries + 1;
    below->push_back(std::move(each));
  }
}

void BackendRefresh::LookAt(int fd, std::vector<Look>* looks) {
  for (size_t begin = 0; begin < looks->size(); begin += kLooksAtOnce) {
    const size_t end = std::min(looks->size(), begin + kLooksAtOnce);
    const auto look = [this, fd, looks, begin, end] {
      for (size_t i = begin; i < end; ++i) {
        Look& at = (*looks)[i];
        at.there = StatBackend(fd, at.known.name, /*now=*/true);
        looked_.fetch_add(1, std::memory_order_relaxed);
      }
    };
    if (looks->size() <= kLooksAtOnce) return look();
    pool_.Run(look);
  }
  pool_.Drain();
}

absl::Status BackendRefresh::RefreshKnown(Work* work, const Subdirectory& at, int fd,
                                          std::vector<Subdirectory>* below) {
  std::string from;
  do {
    if (ending_.load(std::memory_order_relaxed)) return PosixError(EINTR);
    CFS_ASSIGN_OR_RETURN(std::vector<Known> page, fs_->ListKnown(at.ino, &from));
    std::vector<Look> looks(page.size());
    for (size_t i = 0; i < page.size(); ++i) looks[i].known = std::move(page[i]);
    LookAt(fd, &looks);
    // Before anything is believed: names are not there in what is not there any more, either.
    CFS_RETURN_IF_ERROR(CheckDirectory(at.ino, fd));
    for (const Look& look : looks) {
      const std::string path = Below(at.path, look.known.name);
      absl::Status agreed = Agree(work, fd, look, path, below);
      if (ErrnoOf(agreed) == EAGAIN) {
        agreed = RefreshName(work, at.ino, look.known.name, path, below);
      }
      if (!agreed.ok()) Fail(work, path, agreed);
    }
  } while (!from.empty());
  return absl::OkStatus();
}

absl::Status BackendRefresh::RefreshNew(Work* work, const Subdirectory& at, int fd) {
  std::vector<LocalFileSystem::Imported> batch;
  absl::Status status;
  const auto add = [&]() -> absl::Status {
    if (batch.empty()) return absl::OkStatus();
    CFS_RETURN_IF_ERROR(CheckDirectory(at.ino, fd));
    return Add(work, at.ino, at.path, std::exchange(batch, {}));
  };
  CFS_RETURN_IF_ERROR(ListBackendDirectory(fd, [&](const char* name) {
    looked_.fetch_add(1, std::memory_order_relaxed);
    if (at.ino == kRootInode && absl::string_view(name) == kBackendOwnName) return true;
    if (ending_.load(std::memory_order_relaxed)) status = PosixError(EINTR);
    if (!status.ok()) return false;
    const absl::StatusOr<InodeId> ino = fs_->NameNow(at.ino, name);
    status = ino.status();
    if (!status.ok() || *ino != kNoInode) return status.ok();
    const absl::StatusOr<Known> known = fs_->KnownNow(at.ino, name);
    status = known.status();
    if (!status.ok() || known->ino != kNoInode) return status.ok();
    if (known->name_dirty) {
      ++work->left;
      return true;
    }
    absl::StatusOr<BackendObject> object = ReadBackendObject(fd, name);
    if (ErrnoOf(object.status()) == EINVAL) object = ReadBackendObject(fd, name);
    if (ErrnoOf(object.status()) == ENOENT) return true;  // Gone since it was listed.
    if (!object.ok()) {
      Fail(work, Below(at.path, name), object.status());
      return true;
    }
    batch.push_back(ToImported(at.ino, name, *std::move(object)));
    if (batch.size() == kAddedAtOnce) status = add();
    return status.ok();
  }));
  CFS_RETURN_IF_ERROR(status);
  return add();
}

// Last, for what is changed in it changes its times.
absl::Status BackendRefresh::RefreshSelf(Work* work, const Subdirectory& at, int fd,
                                         const struct statx& before) {
  Known known;
  known.dir = at.dir;
  known.name = at.name;
  if (at.dir == kNoInode) {
    CFS_ASSIGN_OR_RETURN(known, fs_->TopNow(at.ino));
  } else {
    CFS_ASSIGN_OR_RETURN(known, fs_->KnownNow(at.dir, at.name));
  }
  if (known.ino != at.ino || known.name_dirty || known.dirty) return absl::OkStatus();
  if (known.record.backend_identity.empty()) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(known.record.backend_identity));
  if (!IsSameObject(known.record, identity, before) || IsUnchanged(known, identity, before)) {
    return absl::OkStatus();
  }
  BackendObject object;
  object.st = before;
  CFS_ASSIGN_OR_RETURN(object.xattrs, ReadBackendXattrs(fd));
  const absl::Status taken = TakeOver(work, known, object, at.path);
  return ErrnoOf(taken) == EAGAIN ? absl::OkStatus() : taken;
}

// ------------------------------------------------------------------------ names

// Another of its names came to be known first, as another inode.
absl::StatusOr<bool> BackendRefresh::IsOfAnother(InodeId ino, const BackendStamp& stamp) {
  CFS_ASSIGN_OR_RETURN(const BackendLinks links, fs_->LinksByNumber(stamp.number));
  if (links.ino == kNoInode || links.ino == ino) return false;
  const auto other = fs_->RecordNow(links.ino);
  if (absl::IsNotFound(other.status())) return false;
  CFS_RETURN_IF_ERROR(other.status());
  const auto found = DecodeBackendIdentity(other->backend_identity);
  return other->nlink > 0 && found.ok() && SameContent(found->stamp, stamp);
}

absl::Status BackendRefresh::Agree(Work* work, int fd, const Look& look, const std::string& path,
                                   std::vector<Subdirectory>* below) {
  const Known& known = look.known;
  if (known.lost) return absl::OkStatus();
  const bool directory = known.record.IsDirectory();
  const auto enter = [&] {
    if (directory) below->push_back({known.dir, known.name, known.ino, path});
    return absl::OkStatus();
  };
  if (known.name_dirty || known.record.backend_identity.empty()) {
    ++work->left;
    return enter();
  }
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(known.record.backend_identity));
  const struct statx* const st = look.st();
  if (st == nullptr) {
    if (ErrnoOf(look.there.status()) != ENOENT) return look.there.status();
    return DropTree(work, known, path).status();
  }
  bool same = IsSameObject(known.record, identity, *st);
  if (same && !directory && st->stx_nlink > 1) {
    CFS_ASSIGN_OR_RETURN(const bool others, IsOfAnother(known.ino, StampOf(*st)));
    same = !others;
  }
  if (same && IsUnchanged(known, identity, *st)) return enter();
  const bool both_directories = directory && S_ISDIR(st->stx_mode);
  if (known.dirty && !both_directories) {
    ++work->left;
    return absl::OkStatus();
  }
  if (known.dirty && same) return enter();
  absl::StatusOr<BackendObject> object = ReadBackendObject(fd, known.name);
  if (!object.ok()) {
    const int error = ErrnoOf(object.status());
    return error == ENOENT || error == EINVAL ? PosixError(EAGAIN) : object.status();
  }
  // Since it was looked at.
  if (object->st.stx_ino != st->stx_ino ||
      (object->st.stx_mode & S_IFMT) != (st->stx_mode & S_IFMT)) {
    return PosixError(EAGAIN);
  }
  if (both_directories) {
    if (!same) directories_->Forget(known.ino);
    CFS_RETURN_IF_ERROR(TakeOver(work, known, *object, path));
    directories_->Forget(known.ino);
    return enter();
  }
  if (same && S_ISLNK(known.record.mode) && known.record.target != object->target) same = false;
  if (same) return TakeOver(work, known, *object, path);
  return Replace(work, known, *std::move(object), path);
}

absl::Status BackendRefresh::TakeOver(Work* work, const Known& known, const BackendObject& object,
                                      const std::string& path) {
  note_stamp_();
  const absl::Status taken = fs_->TakeOver(known, object);
  if (ErrnoOf(taken) == EBUSY) {
    work->busy.push_back({known.dir, known.name, known.ino, path});
    return absl::OkStatus();
  }
  if (taken.ok()) ++work->changed;
  return taken;
}

// How many names the object still has, where another one of them is known.
absl::StatusOr<std::optional<uint32_t>> BackendRefresh::LinksThere(const Known& known) {
  if (known.record.IsDirectory() || known.record.nlink < 2) return std::nullopt;
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(known.record.backend_identity));
  CFS_ASSIGN_OR_RETURN(const BackendLinks links, fs_->LinksOf(identity.stamp.number, known.ino));
  for (const auto& [dir, name] : links.places) {
    if (dir == kNoInode || (dir == known.dir && name == known.name)) continue;
    const auto directory = directories_->Of(dir);
    if (!directory.ok()) continue;
    const auto st = StatBackend((*directory)->get(), name, /*now=*/true);
    if (st.ok() && st->stx_ino == identity.stamp.number && !S_ISDIR(st->stx_mode)) {
      return st->stx_nlink;
    }
  }
  return std::nullopt;
}

absl::Status BackendRefresh::Replace(Work* work, const Known& known, BackendObject object,
                                     const std::string& path) {
  note_stamp_();
  LocalFileSystem::Imported theirs = ToImported(known.dir, known.name, std::move(object));
  const bool linked = !theirs.record.IsDirectory() && theirs.record.nlink > 1;
  if (known.record.IsDirectory() || linked) {
    CFS_ASSIGN_OR_RETURN(const bool dropped, DropTree(work, known, path));
    if (!dropped) return absl::OkStatus();
    std::vector<LocalFileSystem::Imported> one;
    one.push_back(std::move(theirs));
    return Add(work, known.dir, Above(path, known.name), std::move(one));
  }
  CFS_ASSIGN_OR_RETURN(const std::optional<uint32_t> links, LinksThere(known));
  CFS_RETURN_IF_ERROR(fs_->DropName(known, links, &theirs));
  fs_->SayChanged(known.dir, known.name, known.ino, work->on_use);
  ++work->gone;
  ++work->added;
  return absl::OkStatus();
}

absl::StatusOr<bool> BackendRefresh::DropTree(Work* work, Known known, const std::string& path) {
  for (int tries = 0; tries < kTriesMax; ++tries) {
    if (ending_.load(std::memory_order_relaxed)) return PosixError(EINTR);
    const bool directory = known.record.IsDirectory();
    bool stays = known.name_dirty || (known.dirty && !directory);
    if (stays) {
      ++work->left;
      return false;
    }
    if (directory && (known.record.flags & kNotImported)) {
      await_import_(known.ino);
      CFS_ASSIGN_OR_RETURN(known.record, fs_->RecordNow(known.ino));
      if (known.record.flags & kNotImported) {
        const absl::Status begun = fs_->BeginImport(known.ino);
        if (ErrnoOf(begun) != EAGAIN) CFS_RETURN_IF_ERROR(begun);
        // Or it was imported just now.
        CFS_ASSIGN_OR_RETURN(known.record, fs_->RecordNow(known.ino));
      }
    }
    if (directory && !(known.record.flags & kNotImported)) {
      std::string from;
      do {
        CFS_ASSIGN_OR_RETURN(std::vector<Known> page, fs_->ListKnown(known.ino, &from));
        for (Known& child : page) {
          const std::string at = Below(path, child.name);
          CFS_ASSIGN_OR_RETURN(const bool dropped, DropTree(work, std::move(child), at));
          stays |= !dropped;
        }
      } while (!from.empty());
    }
    absl::Status status;
    if (stays || known.dirty) {
      status = fs_->KeepDirectory(known);
      if (status.ok()) {
        directories_->Forget(known.ino);
        LogWarn(
            "gone from the backend, and made there again, for something in it is not there "
            "yet path=",
            absl::CHexEscape(path));
        ++work->left;
        return false;
      }
    } else {
      CFS_ASSIGN_OR_RETURN(const std::optional<uint32_t> links, LinksThere(known));
      status = fs_->DropName(known, links, nullptr);
      if (status.ok()) {
        directories_->Forget(known.ino);
        fs_->SayChanged(known.dir, known.name, known.ino, work->on_use);
        ++work->gone;
        return true;
      }
    }
    if (ErrnoOf(status) != EAGAIN && ErrnoOf(status) != ENOTEMPTY) return status;
    const InodeId was = known.ino;
    CFS_ASSIGN_OR_RETURN(known, fs_->KnownNow(known.dir, known.name));
    if (known.ino != was) return known.ino == kNoInode;
  }
  return PosixError(EAGAIN, "it changes here all the time");
}

absl::Status BackendRefresh::Add(Work* work, InodeId dir, const std::string& path,
                                 std::vector<LocalFileSystem::Imported> entries) {
  note_stamp_();
  std::vector<LocalFileSystem::Imported> plain, linked;
  std::vector<std::string> names;
  for (LocalFileSystem::Imported& entry : entries) {
    names.push_back(entry.name);
    const bool one = !entry.record.IsDirectory() && entry.record.nlink > 1;
    (one ? linked : plain).push_back(std::move(entry));
  }
  CFS_RETURN_IF_ERROR(fs_->Import(dir, std::move(plain), nullptr, /*theirs=*/true));
  for (LocalFileSystem::Imported& entry : linked) {
    const std::string name = entry.name;
    std::vector<LocalFileSystem::Imported> one;
    one.push_back(std::move(entry));
    CFS_RETURN_IF_ERROR(fs_->Import(dir, std::move(one), nullptr, /*theirs=*/true));
    // It may be an inode that was known by a name that has gone.
    std::vector<Subdirectory> none;
    CFS_RETURN_IF_ERROR(RefreshName(work, dir, name, Below(path, name), &none));
  }
  FaultPoint("refresh-added");
  for (const std::string& name : names) {
    CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(dir, name));
    fs_->SayChanged(dir, name, ino, work->on_use);
  }
  work->added += names.size();
  return absl::OkStatus();
}

// ----------------------------------------------------------------------- on use

bool BackendRefresh::IsDue(InodeId dir, absl::string_view name) {
  if (look_after_ == SteadyClock::duration::zero()) return false;
  if (dir == kRootInode && name == kBackendOwnName) return false;
  const SteadyClock::time_point after = SteadyClock::now() - look_after_;
  if (const auto listed = listed_.Get(dir); listed && listed->at > after) return false;
  const auto looked = looked_at_.Get(LookKey(dir, name));
  return !looked || *looked <= after;
}

void BackendRefresh::NoteListed(InodeId dir, SteadyClock::time_point began) {
  if (look_after_ > SteadyClock::duration::zero()) listed_.Put(dir, {began, {}});
}

void BackendRefresh::CountUnseen(const absl::Status& status) {
  failure_lines_.Log(LogLevel::kWarn,
                     absl::StrCat("cannot be looked at on the backend, and is used as it is known "
                                  "error=",
                                  status.ToString()));
  MutexLock lock(&mutex_);
  ++unseen_;
}

void BackendRefresh::LookOnUse(InodeId dir, const std::string& name) {
  const SteadyClock::time_point began = SteadyClock::now();
  Work work;
  work.on_use = true;
  const auto look = [&]() -> absl::Status {
    const absl::StatusOr<InodeRecord> record = fs_->RecordNow(dir);
    // Nothing of it is known, or it is ours.
    if (absl::IsNotFound(record.status())) return absl::OkStatus();
    CFS_RETURN_IF_ERROR(record.status());
    if (record->nlink == 0 || record->backend_identity.empty()) return absl::OkStatus();
    if (name.empty()) return LookAtNames(&work, dir);
    if (record->flags & kNotImported) return absl::OkStatus();
    std::vector<Subdirectory> below;
    const absl::Status looked = RefreshName(&work, dir, name, name, &below);
    if (!IsGone(looked) || dir == kRootInode) return looked;
    // The directory, then.
    CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                         DecodeBackendIdentity(record->backend_identity));
    return RefreshName(&work, record->parent, identity.name, identity.name, &below);
  };
  absl::Status status = look();
  if (status.ok() && work.failed > 0) status = PosixError(EIO, work.said.front().error);
  // After an error, too: who comes next need not wait for the same.
  looked_at_.Put(LookKey(dir, name), began);
  if (!status.ok()) CountUnseen(status);
  MutexLock lock(&mutex_);
  added_ += work.added;
  gone_ += work.gone;
  changed_ += work.changed;
}

absl::Status BackendRefresh::LookAtNames(Work* work, InodeId dir) {
  const SteadyClock::time_point began = SteadyClock::now();
  Subdirectory at;
  at.ino = dir;
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(dir));
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(record.backend_identity));
  if (dir != kRootInode) {
    at.dir = record.parent;
    at.name = at.path = identity.name;
    std::vector<Subdirectory> below;
    CFS_RETURN_IF_ERROR(RefreshName(work, at.dir, at.name, at.path, &below));
    const auto now = fs_->NameNow(at.dir, at.name);
    if (!now.ok() || *now != dir) return now.status();
  }
  if (record.flags & kNotImported) return absl::OkStatus();
  struct statx st {};
  CFS_RETURN_IF_ERROR(directories_->With(dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(st, StatBackend(fd, "", /*now=*/true));
    return CheckDirectory(dir, fd);
  }));
  const BackendStamp stamp = StampOf(st);
  // What it had last is what it has: only names are known by that.
  if (const auto listed = listed_.Get(dir); listed && listed->stamp == stamp)
    return absl::OkStatus();
  const uint64_t failed = work->failed;
  std::vector<Subdirectory> below;
  RefreshDirectory(work, at, &below);
  if (work->failed > failed) return absl::OkStatus();  // It is said.
  timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  const bool old = stamp.ctime.tv_sec + kDirectoryTick < now.tv_sec &&
                   stamp.mtime.tv_sec + kDirectoryTick < now.tv_sec;
  listed_.Put(dir, {began, old ? stamp : BackendStamp()});
  return absl::OkStatus();
}

// ----------------------------------------------------------------------- in use

void BackendRefresh::AwaitClosed(Work* work) {
  const auto is_open = [this](const Busy& busy) { return fs_->IsOpen(busy.ino); };
  std::vector<Subdirectory> none;
  for (int i = 0; i < kSettlingTries && !std::ranges::all_of(work->busy, is_open); ++i) {
    std::this_thread::sleep_for(kSettling);
    for (const Busy& busy : std::exchange(work->busy, {})) {
      if (is_open(busy)) {
        work->busy.push_back(busy);
        continue;
      }
      const absl::Status looked = RefreshName(work, busy.dir, busy.name, busy.path, &none);
      if (!looked.ok()) Fail(work, busy.path, looked);
    }
  }
  for (const Busy& busy : work->busy) {
    ++work->open;
    if (work->said.size() < kSaidMax) {
      work->said.push_back(
          {busy.path, "it is open, and becomes what it is there when it is closed"});
    }
    if (waiting_.size() < kWaitingMax) waiting_[{busy.dir, busy.name}] = busy;
  }
  work->busy.clear();
}

void BackendRefresh::RetryOpen() {
  if (waiting_.empty()) return;
  std::vector<Subdirectory> none;
  Work work;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (ending_.load(std::memory_order_relaxed)) return;
    const Busy& busy = it->second;
    bool over = false;
    if (!fs_->IsOpen(busy.ino)) {
      const absl::Status looked = RefreshName(&work, busy.dir, busy.name, busy.path, &none);
      // The directory may have gone, too.
      over = (looked.ok() && work.busy.empty()) || absl::IsNotFound(looked) ||
             ErrnoOf(looked) == ENXIO;
      work.busy.clear();
    }
    it = over ? waiting_.erase(it) : std::next(it);
  }
  MutexLock lock(&mutex_);
  changed_ += work.changed;
  added_ += work.added;
  gone_ += work.gone;
  waiting_count_ = waiting_.size();
}

}  // namespace cfs
