// What files have, and what is said of them, on the backend: see Flusher.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/server/backend_import.h"
#include "cfs/server/flusher.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

// Between two syncs of the backend.
constexpr size_t kCopiesAtOnce = 4096;
// A file with a writer is flushed, too, when what was written is that old.
constexpr uint64_t kWriterDelay = 30'000'000'000;
// Of files as large, no second one is made there, unless there is much room.
constexpr uint64_t kInPlaceBytes = uint64_t{64} << 20;

std::string TemporaryName(InodeId ino) { return absl::StrCat(Raw(ino), ".new"); }

absl::Status SetMetadata(int dir, const std::string& name, const LocalFileSystem::Outgoing& out) {
  const InodeRecord& record = out.record;
  return SetBackendMetadata(
      dir, name, {record.mode, record.uid, record.gid, record.atime, out.mtime}, out.xattrs);
}

absl::StatusOr<BackendIdentity> WithStamp(BackendIdentity identity, int dir,
                                          const std::string& name) {
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(dir, name));
  identity.stamp = StampOf(st);
  return identity;
}

}  // namespace

// Its object, as it was left; kNotOurs if there is none, or it is not.
absl::StatusOr<struct statx> Flusher::FindObject(int fd, const Outgoing& out,
                                                 const BackendIdentity& identity) const {
  const absl::StatusOr<struct statx> there = StatBackend(fd, identity.name);
  if (ErrnoOf(there.status()) == ENOENT) return PosixError(kNotOurs, "it is gone from the backend");
  CFS_RETURN_IF_ERROR(there.status());
  const struct statx& st = *there;
  const BackendStamp now = StampOf(st);
  if ((st.stx_mode & S_IFMT) == (out.record.mode & S_IFMT)) {
    // Just put there by us, or half written by us.
    if (out.pending != 0 && out.pending == now.number) return st;
    if (!out.record.IsRegular() && now.number == identity.stamp.number) return st;
    if (SameContent(now, identity.stamp)) return st;
    // Its times were set by us, and the process ended before it could say so.
    if (now.number == identity.stamp.number && now.size == identity.stamp.size &&
        now.mtime == out.mtime) {
      return st;
    }
    // There is nothing here that it could be in conflict with.
    if (out.record.layout == Layout::kBackend) return st;
  }
  return PosixError(kNotOurs, "others have changed it on the backend");
}

// Not for what has no object yet: its name comes first.
absl::StatusOr<Flusher::Outcome> Flusher::Write(Pass* pass,
                                                const LocalFileSystem::DirtyInode& dirty,
                                                std::vector<Copy>* copies) {
  const InodeId ino = dirty.ino;
  if (const auto it = pass->born.find(ino); it != pass->born.end()) {
    pass->written.push_back({ino, it->second});
    return Outcome::kDone;
  }
  absl::StatusOr<Outgoing> taken = fs_->TakeOut(ino);
  if (absl::IsNotFound(taken.status()) || (taken.ok() && taken->record.nlink == 0)) {
    pass->written.push_back(dirty);
    return Outcome::kDone;
  }
  CFS_ASSIGN_OR_RETURN(Outgoing out, std::move(taken));
  if (out.record.backend_identity.empty()) return Outcome::kLater;
  if (out.record.IsDirectory()) {
    pass->touched.insert(ino);
    pass->written.push_back({ino, out.version});
    return Outcome::kDone;
  }
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(out.record.backend_identity));
  // Its names are where nobody has looked yet: who does finds it.
  if (identity.dir == kNoInode && identity.name.empty()) return Outcome::kDone;
  if (identity.dir != kNoInode) pass->touched.insert(identity.dir);
  if (out.data) {
    if (!IsDue(*pass, ino, out)) return Outcome::kNotYet;
    Copy copy;
    copy.ino = ino;
    copies->push_back(std::move(copy));
    return Outcome::kBirth;
  }
  pass->wide = true;
  const absl::Status status = WriteMetadata(ino, out);
  if (ErrnoOf(status) == EAGAIN) {
    pass->restless = true;
    return Outcome::kNotYet;
  }
  CFS_RETURN_IF_ERROR(status);
  pass->written.push_back({ino, out.version});
  return Outcome::kDone;
}

absl::Status Flusher::WriteMetadata(InodeId ino, const Outgoing& out) {
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(out.record.backend_identity));
  return directories_->With(identity.dir, [&](int fd) -> absl::Status {
    CFS_RETURN_IF_ERROR(FindObject(fd, out, identity).status());
    CFS_RETURN_IF_ERROR(SetMetadata(fd, identity.name, out));
    FaultPoint("flush-metadata");
    CFS_ASSIGN_OR_RETURN(BackendIdentity now, WithStamp(identity, fd, identity.name));
    return fs_->PutOut(ino, out, std::move(now));
  });
}

// Its object is not there any more, or not its own: the name has to say what becomes of
// both.
absl::Status Flusher::Disown(InodeId ino) {
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(ino));
  if (record.IsDirectory() || record.layout == Layout::kBackend) {
    return PosixError(ENOENT, "it is not on the backend any more");
  }
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(record.backend_identity));
  CFS_ASSIGN_OR_RETURN(BackendLinks links, fs_->LinksOf(identity.stamp.number, ino));
  links.places.push_back({identity.dir, identity.name});
  size_t names = 0;
  for (const auto& [dir, name] : links.places) {
    if (dir == kNoInode) continue;
    CFS_ASSIGN_OR_RETURN(const InodeId now, fs_->NameNow(dir, name));
    if (now != ino) continue;
    ++names;
    CFS_ASSIGN_OR_RETURN(const bool marked, fs_->IsNameDirty(dir, name));
    if (marked) continue;
    DirtyName mark;
    mark.since = fs_->NextDirtyVersion();
    CFS_RETURN_IF_ERROR(fs_->NoteName(dir, name, mark));
  }
  if (names == 0) return PosixError(ENOENT, "it is gone from where it waited for its place");
  return fs_->SetIdentity(ino, std::nullopt);
}

absl::Status Flusher::WriteDirectory(InodeId dir) {
  absl::StatusOr<Outgoing> taken = fs_->TakeOut(dir);
  if (absl::IsNotFound(taken.status())) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(Outgoing out, std::move(taken));
  if (out.record.nlink == 0) return absl::OkStatus();
  if (dir != kRootInode) return WriteMetadata(dir, out);
  return SetMetadata(directories_->top().get(), ".", out);
}

bool Flusher::IsDue(const Pass& pass, InodeId ino, const Outgoing& out) const {
  if (pass.all || !out.has_writer) return true;
  // Since it was changed first, or brought there last.
  const auto it = brought_.find(ino);
  const uint64_t since = it == brought_.end() ? out.version : it->second;
  return since + kWriterDelay <= pass.time;
}

void Flusher::ForEach(std::vector<Copy>* copies, size_t begin, size_t end,
                      absl::FunctionRef<void(Copy*)> work) {
  // Relaxed: each has its own.
  std::atomic<size_t> next{begin};
  for (size_t i = begin; i < std::min(end, begin + kFlushThreads); ++i) {
    pool_.Run([&] {
      for (size_t at; (at = next.fetch_add(1, std::memory_order_relaxed)) < end;) {
        work(&(*copies)[at]);
      }
    });
  }
  pool_.Drain();
}

void Flusher::CopyAll(Pass* pass, std::vector<Copy>* copies) {
  for (size_t begin = 0; begin < copies->size(); begin += kCopiesAtOnce) {
    const size_t end = std::min(copies->size(), begin + kCopiesAtOnce);
    const bool few = end - begin <= kSyncedOneByOne;
    bool synced = true;
    ForEach(copies, begin, end,
            [this, pass, few](Copy* copy) { copy->status = CopyOne(*pass, few || fsyncs_, copy); });
    absl::Status noted;
    std::vector<LocalFileSystem::Pending> pending;
    std::vector<const DirtyPlace*> places;
    for (size_t i = begin; i < end; ++i) {
      Copy& copy = (*copies)[i];
      if (copy.status.ok() && copy.outcome == Outcome::kNotYet) pass->again = true;
      if (!copy.status.ok() || copy.outcome != Outcome::kDone) continue;
      synced &= copy.synced;
      if (copy.place == nullptr) {
        pending.push_back({copy.ino, copy.number});
        copy.out.pending = copy.number;
      } else {
        DirtyName& mark = copy.place->mark;
        mark.next = copy.ino;
        mark.next_number = copy.number;
        places.push_back(copy.place);
      }
    }
    noted.Update(fs_->NoteNames(places));
    noted.Update(fs_->NotePending(pending));
    // What is said of the new objects, and what they have, before they replace others.
    if (noted.ok()) noted = fs_->SyncMetaNow();
    if (noted.ok() && (!synced || fsyncs_)) noted = SyncBackend(directories_->top().get());
    FaultPoint("flush-copied");
    ForEach(copies, begin, end, [this, &noted](Copy* copy) {
      copy->landing = copy->status.ok() && copy->outcome == Outcome::kDone;
      if (copy->landing) copy->status = noted.ok() ? Land(copy) : noted;
    });
    for (size_t i = begin; i < end; ++i) {
      if ((*copies)[i].landing) NoteLanded(pass, &(*copies)[i]);
    }
    CountLeft(*pass);
  }
}

absl::Status Flusher::CopyOne(const Pass& pass, bool sync, Copy* copy) {
  copy->outcome = Outcome::kGone;
  absl::StatusOr<Outgoing> taken = fs_->TakeOut(copy->ino);
  if (absl::IsNotFound(taken.status())) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(copy->out, std::move(taken));
  Outgoing& out = copy->out;
  if (out.record.nlink == 0) return absl::OkStatus();
  copy->outcome = Outcome::kNotYet;
  if (ending_.load(std::memory_order_relaxed)) return absl::OkStatus();
  if (!IsDue(pass, copy->ino, out)) return absl::OkStatus();
  const bool replaces = copy->place == nullptr;
  struct statx there {};
  if (replaces) {
    CFS_ASSIGN_OR_RETURN(BackendIdentity identity,
                         DecodeBackendIdentity(out.record.backend_identity));
    copy->dir = identity.dir;
    copy->name = identity.name;
    struct statx st {};
    const absl::Status looked = directories_->With(identity.dir, [&](int fd) -> absl::Status {
      CFS_ASSIGN_OR_RETURN(st, FindObject(fd, out, identity));
      return absl::OkStatus();
    });
    CFS_RETURN_IF_ERROR(looked);
    if (!SameContent(StampOf(st), identity.stamp)) {
      // It was replaced or written by us before, and that was not said.
      identity.stamp = StampOf(st);
      identity.clean_ctime = {};
      CFS_RETURN_IF_ERROR(fs_->SetIdentity(copy->ino, identity));
      out.record.backend_identity = Encode(identity);
    }
    if (st.stx_nlink > 1 || (st.stx_size >= kInPlaceBytes && !HasRoom(out.record.size))) {
      return WillCopyInPlace(st.stx_ino, copy);
    }
    there = st;
  }
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
  const std::string temporary = TemporaryName(copy->ino);
  if (!out.record.IsRegular()) {
    CFS_RETURN_IF_ERROR(MakeBackendObject(own->get(), temporary, out.record.mode, out.record.rdev,
                                          out.record.target));
    CFS_RETURN_IF_ERROR(SetMetadata(own->get(), temporary, out));
    CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(own->get(), temporary));
    copy->number = st.stx_ino;
    copy->outcome = Outcome::kDone;
    return absl::OkStatus();
  }
  if (!out.fd.valid()) return absl::OkStatus();
  // One that is not said to be clean at the end of this pass would come there again after power
  // loss, as what was left of it.
  out.soft = !out.has_writer && pass.ending.contains(copy->ino);
  CFS_ASSIGN_OR_RETURN(const UniqueFd to, CreateBackendFile(own->get(), temporary));
  const absl::StatusOr<uint64_t> copied = CopyContents(out.fd.get(), to.get(), ending_, large_);
  if (copied.ok()) CFS_RETURN_IF_ERROR(fs_->CheckWritten(copy->ino, out));
  // Who writes it makes it shorter: another time.
  if (ErrnoOf(copied.status()) == EAGAIN || ErrnoOf(copied.status()) == EINTR) {
    return absl::OkStatus();
  }
  const int error = ErrnoOf(copied.status());
  if (there.stx_size >= kInPlaceBytes && (error == ENOSPC || error == EDQUOT) &&
      unlinkat(own->get(), temporary.c_str(), 0) == 0) {
    return WillCopyInPlace(there.stx_ino, copy);
  }
  out.fd.reset();
  CFS_RETURN_IF_ERROR(copied.status());
  if (!out.soft) CFS_RETURN_IF_ERROR(fs_->SyncData(copy->ino));
  CFS_RETURN_IF_ERROR(SetMetadata(to.get(), "", out));
  if (sync && fsync(to.get()) != 0) return PosixError(errno);
  copy->synced = sync;
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(to.get(), ""));
  copy->number = st.stx_ino;
  copy->outcome = Outcome::kDone;
  flushed_bytes_.fetch_add(*copied, std::memory_order_relaxed);
  return absl::OkStatus();
}

// A second one of that size fits there.
bool Flusher::HasRoom(uint64_t bytes) const {
  struct statvfs st {};
  return fstatvfs(directories_->top().get(), &st) == 0 && st.f_bavail * st.f_frsize > 2 * bytes;
}

// Should it end half written there, the copy here is the good one.
absl::Status Flusher::WillCopyInPlace(uint64_t number, Copy* copy) {
  CFS_RETURN_IF_ERROR(fs_->SyncData(copy->ino));
  CFS_RETURN_IF_ERROR(fs_->MakeHard(copy->ino));
  copy->in_place = copy->synced = true;
  copy->out.soft = false;
  copy->number = number;
  copy->outcome = Outcome::kDone;
  return absl::OkStatus();
}

absl::Status Flusher::Land(Copy* copy) {
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
  const int own_fd = own->get();
  return directories_->With(copy->dir, [&](int fd) -> absl::Status {
    if (copy->place != nullptr) return LandBirth(fd, own_fd, copy);
    CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                         DecodeBackendIdentity(copy->out.record.backend_identity));
    return LandRewrite(fd, own_fd, copy, identity);
  });
}

void Flusher::NoteLanded(Pass* pass, Copy* copy) {
  if (copy->outcome == Outcome::kNotYet) pass->again = true;
  if (!copy->status.ok() || copy->outcome != Outcome::kDone) return;
  if (copy->out.record.IsRegular()) flushed_files_.fetch_add(1, std::memory_order_relaxed);
  if (copy->out.has_writer) brought_[copy->ino] = pass->time;
  if (copy->out.soft) pass->soft[copy->ino] = copy->out.backing_ctime;
  if (copy->dir != kNoInode) pass->touched.insert(copy->dir);
  pass->wide |= !copy->out.record.IsRegular() || copy->dir == kNoInode;
  if (copy->place == nullptr) {
    pass->written.push_back({copy->ino, copy->out.version});
  } else {
    pass->placed.push_back(copy->place);
    pass->born[copy->ino] = copy->out.version;
  }
}

absl::Status Flusher::LandBirth(int fd, int own, Copy* copy) {
  DirtyName& mark = copy->place->mark;
  bool replace = false;
  if (mark.base != kNoInode) {
    const absl::StatusOr<struct statx> there = StatBackend(fd, copy->name);
    if (!there.ok() && ErrnoOf(there.status()) != ENOENT) return there.status();
    // Looked at just before; others may have come since.
    replace = there.ok() && !S_ISDIR(there->stx_mode) && SameContent(mark.stamp, StampOf(*there));
  }
  const absl::Status moved =
      MoveBackendObject(own, TemporaryName(copy->ino), fd, copy->name, replace);
  if (ErrnoOf(moved) == EEXIST) {
    copy->outcome = Outcome::kLater;
    return absl::OkStatus();
  }
  CFS_RETURN_IF_ERROR(moved);
  FaultPoint("flush-born");
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(fd, copy->name));
  BackendIdentity identity{copy->dir, copy->name, StampOf(st), {}};
  if (S_ISDIR(st.stx_mode) && (st.stx_mask & STATX_BTIME)) {
    identity.clean_ctime = TimeOf(st.stx_btime);
  }
  mark.base = copy->ino;
  mark.stamp = identity.stamp;
  mark.next = kNoInode;
  mark.next_number = 0;
  return fs_->PutOut(copy->ino, copy->out, std::move(identity));
}

absl::Status Flusher::LandRewrite(int fd, int own, Copy* copy, const BackendIdentity& identity) {
  const std::string& name = copy->name;
  CFS_RETURN_IF_ERROR(FindObject(fd, copy->out, identity).status());
  if (copy->in_place) {
    Outgoing& out = copy->out;
    CFS_ASSIGN_OR_RETURN(const UniqueFd to, OpenBackendFile(fd, name, O_WRONLY));
    if (ftruncate(to.get(), 0) != 0) return PosixError(errno);
    FaultPoint("flush-in-place");
    const absl::StatusOr<uint64_t> copied = CopyContents(out.fd.get(), to.get(), ending_, large_);
    out.fd.reset();
    if (ErrnoOf(copied.status()) == EAGAIN || ErrnoOf(copied.status()) == EINTR) {
      copy->outcome = Outcome::kNotYet;
      return absl::OkStatus();
    }
    CFS_RETURN_IF_ERROR(copied.status());
    flushed_bytes_.fetch_add(*copied, std::memory_order_relaxed);
    CFS_RETURN_IF_ERROR(SetMetadata(fd, name, out));
    // Its own errors: those of the whole file system are said once, to whoever asks first.
    if (fsync(to.get()) != 0) return PosixError(errno);
  } else {
    CFS_RETURN_IF_ERROR(MoveBackendObject(own, TemporaryName(copy->ino), fd, name, true));
  }
  FaultPoint("flush-rewritten");
  CFS_ASSIGN_OR_RETURN(BackendIdentity now, WithStamp(identity, fd, name));
  return fs_->PutOut(copy->ino, copy->out, std::move(now));
}

}  // namespace cfs
