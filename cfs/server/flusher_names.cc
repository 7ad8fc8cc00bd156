// What has a name on the backend: see Flusher.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/server/backend_import.h"
#include "cfs/server/flusher.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

constexpr int kConflictsMax = 10'000;

absl::StatusOr<std::optional<struct statx>> Look(int dir, const std::string& name) {
  const absl::StatusOr<struct statx> st = StatBackend(dir, name);
  if (ErrnoOf(st.status()) == ENOENT) return std::nullopt;
  CFS_RETURN_IF_ERROR(st.status());
  return *st;
}

// Whether it is what is known to be there, as it was left.
bool IsExpected(const DirtyName& mark, const struct statx& there) {
  if (mark.base == kNoInode || mark.stamp.number != there.stx_ino) return false;
  return S_ISDIR(there.stx_mode) || SameContent(mark.stamp, StampOf(there));
}

absl::StatusOr<BackendIdentity> IdentityOf(const InodeRecord& record) {
  if (record.backend_identity.empty()) return BackendIdentity{};
  return DecodeBackendIdentity(record.backend_identity);
}

BackendIdentity NewIdentity(InodeId dir, const std::string& name, const struct statx& st) {
  BackendIdentity identity{dir, name, StampOf(st), {}};
  if (S_ISDIR(st.stx_mode) && (st.stx_mask & STATX_BTIME))
    identity.clean_ctime = TimeOf(st.stx_btime);
  return identity;
}

std::string ConflictName(const std::string& name, int number) {
  const std::string suffix = absl::StrCat(".cfs-conflict-", number);
  return absl::StrCat(name.substr(0, kNameBytesMax - suffix.size()), suffix);
}

}  // namespace

absl::StatusOr<Flusher::Outcome> Flusher::Place(Pass* pass, DirtyPlace* place) {
  Outcome outcome = Outcome::kLater;
  pass->lost.erase(place);
  const absl::Status status =
      directories_->With(place->dir, [&](int fd) { return PlaceIn(pass, fd, place, &outcome); });
  // The directory is not there, or not any more.
  if (ErrnoOf(status) == ENXIO || absl::IsNotFound(status)) {
    const auto record = fs_->RecordNow(place->dir);
    if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
    if (record.ok() && record->nlink > 0 && ErrnoOf(status) != ENXIO) {
      // It may be where it is about to be found.
      pass->lost[place] = status;
      return Outcome::kLater;
    }
    CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(place->dir, place->name));
    const bool gone = !record.ok() || record->nlink == 0;
    if (!gone || ino != kNoInode) return Outcome::kLater;
    CFS_RETURN_IF_ERROR(Agree(place, kNoInode, std::nullopt));
    pass->placed.push_back(place);
    return Outcome::kDone;
  }
  CFS_RETURN_IF_ERROR(status);
  pass->wide |= outcome != Outcome::kBirth;
  if (outcome == Outcome::kDone) pass->touched.insert(place->dir);
  return outcome;
}

absl::Status Flusher::PlaceIn(Pass* pass, int fd, DirtyPlace* place, Outcome* outcome) {
  CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(place->dir, place->name));
  *outcome = Outcome::kAgain;
  if (ino != place->wanted) return absl::OkStatus();
  *outcome = Outcome::kLater;
  // Before the record is read, which it changes.
  CFS_ASSIGN_OR_RETURN(Object there, Look(fd, place->name));
  CFS_RETURN_IF_ERROR(Recognize(place, there));
  InodeRecord record;
  if (ino != kNoInode) {
    absl::StatusOr<InodeRecord> found = fs_->RecordNow(ino);
    if (absl::IsNotFound(found.status())) return absl::OkStatus();  // Just now.
    CFS_ASSIGN_OR_RETURN(record, std::move(found));
  }
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, IdentityOf(record));
  const bool has_object = !record.backend_identity.empty();
  const auto done = [&](InodeId now, const Object& object) -> absl::Status {
    CFS_RETURN_IF_ERROR(Agree(place, now, object));
    pass->placed.push_back(place);
    *outcome = Outcome::kDone;
    return absl::OkStatus();
  };
  if (there && has_object && identity.stamp.number == there->stx_ino &&
      (record.mode & S_IFMT) == (there->stx_mode & S_IFMT)) {
    // It is in its place, whoever has put it there.
    const bool elsewhere = identity.dir != place->dir || identity.name != place->name;
    if (elsewhere && (record.IsDirectory() || there->stx_nlink == 1)) {
      CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, place->dir, place->name, StampOf(*there)));
    } else if (elsewhere) {
      CFS_RETURN_IF_ERROR(NoteLinks(ino, identity, *place));
    }
    return done(ino, there);
  }
  if (there && !IsExpected(place->mark, *there)) {
    CFS_ASSIGN_OR_RETURN(const bool ours, IsHalfDone(place->mark, *there));
    if (!ours) {
      CFS_ASSIGN_OR_RETURN(*outcome, Conflict(pass, fd, place, ino, *there));
      return absl::OkStatus();
    }
    place->mark.stamp = StampOf(*there);
  }
  if (there) {
    pass->wide = true;
    const bool replaced = ino != kNoInode && !record.IsDirectory() && !S_ISDIR(there->stx_mode);
    CFS_ASSIGN_OR_RETURN(const Outcome cleared, Clear(fd, place, replaced, &there));
    if (cleared != Outcome::kDone) return absl::OkStatus();
  }
  if (ino == kNoInode) return done(ino, std::nullopt);
  if (!has_object) {
    if (record.layout == Layout::kBackend) return PosixError(ENOENT, "its data is nowhere");
    *outcome = Outcome::kBirth;
    return absl::OkStatus();
  }
  // Renamed again, just now: first it is said what is going to be there.
  if (place->mark.next != ino || place->mark.next_number != identity.stamp.number) {
    *outcome = Outcome::kAgain;
    return absl::OkStatus();
  }
  CFS_ASSIGN_OR_RETURN(*outcome, Move(pass, fd, place, ino, record, there.has_value()));
  if (*outcome != Outcome::kDone) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(there, Look(fd, place->name));
  return done(ino, there);
}

// Whether it is what was to be there, written or put there by us, or with times set by us, when
// something failed before that was noted.
absl::StatusOr<bool> Flusher::IsHalfDone(const DirtyName& mark, const struct statx& there) const {
  if (mark.base == kNoInode || S_ISDIR(there.stx_mode)) return false;
  CFS_ASSIGN_OR_RETURN(const uint64_t pending, fs_->PendingOf(mark.base));
  if (pending != 0 && pending == there.stx_ino) return true;
  const BackendStamp now = StampOf(there);
  if (now.number != mark.stamp.number || now.size != mark.stamp.size) return false;
  const auto taken = fs_->TakeOut(mark.base);
  if (absl::IsNotFound(taken.status())) return false;
  CFS_RETURN_IF_ERROR(taken.status());
  return now.mtime == taken->mtime;
}

// Says what is about to be put where, so that it is known again.
absl::Status Flusher::Intend(DirtyPlace* place, bool* noted) {
  CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(place->dir, place->name));
  place->wanted = ino;
  if (ino == kNoInode) return absl::OkStatus();
  const auto record = fs_->RecordNow(ino);
  if (!record.ok() || record->backend_identity.empty()) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity, IdentityOf(*record));
  const uint64_t number = identity.stamp.number;
  DirtyName& mark = place->mark;
  if (mark.next == ino && mark.next_number == number) return absl::OkStatus();
  return directories_->With(place->dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const Object there, Look(fd, place->name));
    CFS_RETURN_IF_ERROR(Recognize(place, there));
    if (there && there->stx_ino == number) return absl::OkStatus();
    mark.next = ino;
    mark.next_number = number;
    *noted = true;
    return fs_->NoteName(place->dir, place->name, mark);
  });
}

// What was on its way when the process before ended is where it is.
absl::Status Flusher::Repair() {
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
  std::vector<std::string> names;
  CFS_RETURN_IF_ERROR(ListBackendDirectory(own->get(), [&names](const char* name) {
    names.emplace_back(name);
    return true;
  }));
  for (const std::string& name : names) {
    uint64_t raw;
    if (!absl::SimpleAtoi(name, &raw)) continue;
    const InodeId ino{raw};
    const auto record = fs_->RecordNow(ino);
    const auto identity = DecodeBackendIdentity(record.ok() ? record->backend_identity : "");
    if (!identity.ok()) continue;
    CFS_ASSIGN_OR_RETURN(const Object there, Look(own->get(), name));
    if (there && there->stx_ino == identity->stamp.number) {
      CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, kNoInode, name, StampOf(*there)));
    }
  }
  CFS_ASSIGN_OR_RETURN(LocalFileSystem::Dirty dirty, fs_->ListDirty());
  // A directory that was moved may be on the way to others.
  for (bool moved = true; moved;) {
    moved = false;
    for (DirtyPlace& place : dirty.names) {
      if (place.mark.next == kNoInode) continue;
      const absl::Status recognized = directories_->With(place.dir, [&](int fd) -> absl::Status {
        CFS_ASSIGN_OR_RETURN(const Object there, Look(fd, place.name));
        return Recognize(&place, there);
      });
      moved |= recognized.ok() && place.mark.next == kNoInode;
    }
  }
  // What is said of an object there, and was not noted: before anybody removes its name.
  for (const auto& inode : dirty.inodes) RepairStamp(inode.ino).IgnoreError();
  return absl::OkStatus();
}

absl::Status Flusher::RepairStamp(InodeId ino) {
  CFS_ASSIGN_OR_RETURN(Outgoing out, fs_->TakeOut(ino));
  if (out.record.backend_identity.empty() || out.pending != 0) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, IdentityOf(out.record));
  if (identity.name.empty()) return absl::OkStatus();
  return directories_->With(identity.dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const struct statx st, FindObject(fd, out, identity));
    identity.stamp = StampOf(st);
    out.data = false;
    return fs_->PutOut(ino, out, identity);
  });
}

absl::Status Flusher::Agree(DirtyPlace* place, InodeId ino, const Object& there) {
  DirtyName mark;
  mark.since = place->mark.since;
  mark.base = there ? ino : kNoInode;
  if (there) mark.stamp = StampOf(*there);
  place->mark = mark;
  return fs_->NoteName(place->dir, place->name, mark);
}

// What was about to be put there, when the process ended, is there.
absl::Status Flusher::Recognize(DirtyPlace* place, const Object& there) {
  DirtyName& mark = place->mark;
  if (mark.next == kNoInode || !there || there->stx_ino != mark.next_number) {
    return absl::OkStatus();
  }
  const InodeId ino = mark.next;
  const auto record = fs_->RecordNow(ino);
  if (absl::IsNotFound(record.status())) return Agree(place, ino, there);
  CFS_RETURN_IF_ERROR(record.status());
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity, IdentityOf(*record));
  if (record->backend_identity.empty() || identity.stamp.number != there->stx_ino) {
    CFS_RETURN_IF_ERROR(fs_->SetIdentity(ino, NewIdentity(place->dir, place->name, *there)));
  } else if (record->IsDirectory() || there->stx_nlink == 1) {
    CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, place->dir, place->name, StampOf(*there)));
  } else {
    CFS_RETURN_IF_ERROR(NoteLinks(ino, identity, *place));
  }
  return Agree(place, ino, there);
}

// The object has both names now.
absl::Status Flusher::NoteLinks(InodeId ino, const BackendIdentity& identity,
                                const DirtyPlace& place) {
  const uint64_t number = identity.stamp.number;
  if (identity.dir != kNoInode) {
    CFS_RETURN_IF_ERROR(fs_->ChangeLinks(number, ino, std::nullopt,
                                         BackendLinks::Place{identity.dir, identity.name}));
  }
  return fs_->ChangeLinks(number, ino, std::nullopt, BackendLinks::Place{place.dir, place.name});
}

// Another name of an object, which is where it is found from now on. False: none is known.
absl::StatusOr<bool> Flusher::FindLink(InodeId ino, const BackendIdentity& identity) {
  CFS_ASSIGN_OR_RETURN(const BackendLinks links, fs_->LinksOf(identity.stamp.number, ino));
  for (const auto& [dir, name] : links.places) {
    const auto directory = directories_->Of(dir);
    if (!directory.ok()) continue;
    CFS_ASSIGN_OR_RETURN(const Object there, Look((*directory)->get(), name));
    if (!there || there->stx_ino != identity.stamp.number) continue;
    CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, dir, name, StampOf(*there)));
    return true;
  }
  return false;
}

absl::Status Flusher::LoseLink(int fd, const std::string& name, InodeId ino) {
  const UniqueFd object(openat(fd, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!object.valid() || unlinkat(fd, name.c_str(), 0) != 0) return PosixError(errno);
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(object.get(), ""));
  return fs_->NotePlace(ino, kNoInode, "", StampOf(st));
}

absl::StatusOr<Flusher::Outcome> Flusher::Clear(int fd, DirtyPlace* place, bool replaced,
                                                Object* there) {
  const InodeId base = place->mark.base;
  const std::string& name = place->name;
  const auto record = fs_->RecordNow(base);
  if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
  BackendIdentity identity;
  if (record.ok()) {
    CFS_ASSIGN_OR_RETURN(identity, IdentityOf(*record));
  }
  // It may have just been put there, and the process ended before its record said so.
  const bool only = S_ISDIR((*there)->stx_mode) || (*there)->stx_nlink == 1;
  const bool lives = record.ok() && record->nlink > 0 &&
                     identity.stamp.number == (*there)->stx_ino &&
                     (only || (identity.dir == place->dir && identity.name == name));
  const bool linked = !S_ISDIR((*there)->stx_mode) && (*there)->stx_nlink > 1;
  if (linked) {
    CFS_RETURN_IF_ERROR(fs_->ChangeLinks((*there)->stx_ino, base,
                                         BackendLinks::Place{place->dir, name}, std::nullopt));
  }
  if (lives) {
    bool known = false;
    if (linked) {
      CFS_ASSIGN_OR_RETURN(known, FindLink(base, identity));
      // It has names where nobody has looked yet; who does finds it again.
      if (!known && !fs_->IsDirty(base)) {
        CFS_RETURN_IF_ERROR(LoseLink(fd, name, base));
        there->reset();
        return Outcome::kDone;
      }
    }
    if (known) {
      if (unlinkat(fd, name.c_str(), 0) != 0) return PosixError(errno);
    } else {
      // The only one that there is: it waits for its new place.
      const std::string parked = absl::StrCat(Raw(base));
      CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
      CFS_RETURN_IF_ERROR(MoveBackendObject(fd, name, own->get(), parked, /*replace=*/false));
      FaultPoint("flush-parked");
      CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(own->get(), parked));
      CFS_RETURN_IF_ERROR(fs_->NotePlace(base, kNoInode, parked, StampOf(st)));
    }
    there->reset();
    return Outcome::kDone;
  }
  if (replaced) return Outcome::kDone;  // By a rename.
  const bool directory = S_ISDIR((*there)->stx_mode);
  if (unlinkat(fd, name.c_str(), directory ? AT_REMOVEDIR : 0) != 0) {
    // What is in there goes first.
    if (!directory || (errno != ENOTEMPTY && errno != EEXIST)) return PosixError(errno);
    full_.insert(place);
    return Outcome::kLater;
  }
  FaultPoint("flush-removed");
  if (directory) {
    directories_->Forget(base);
    CFS_RETURN_IF_ERROR(fs_->ForgetRemoved(base));
  }
  there->reset();
  return Outcome::kDone;
}

absl::StatusOr<Flusher::Outcome> Flusher::Move(Pass* pass, int fd, DirtyPlace* place, InodeId ino,
                                               const InodeRecord& record, bool replace) {
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, IdentityOf(record));
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
  const auto is_it = [&](const Object& object) {
    return object && object->stx_ino == identity.stamp.number &&
           (object->stx_mode & S_IFMT) == (record.mode & S_IFMT);
  };
  BackendDirectories::Directory from;
  absl::StatusOr<BackendDirectories::Directory> known = directories_->Of(identity.dir);
  Object there;
  if (known.ok()) {
    from = *std::move(known);
    CFS_ASSIGN_OR_RETURN(there, Look(from->get(), identity.name));
  } else if (ErrnoOf(known.status()) != ENOENT && ErrnoOf(known.status()) != ESTALE &&
             ErrnoOf(known.status()) != ENXIO) {
    return known.status();
  }
  if (!is_it(there)) {
    // It may have been parked just before the process ended.
    const std::string parked = absl::StrCat(Raw(ino));
    CFS_ASSIGN_OR_RETURN(there, Look(own->get(), parked));
    if (!is_it(there)) {
      if (record.IsRegular() && record.layout == Layout::kBackend) {
        return PosixError(ENOENT, "it is not on the backend any more, and not here");
      }
      CFS_RETURN_IF_ERROR(fs_->SetIdentity(ino, std::nullopt));
      return Outcome::kAgain;
    }
    from = own;
    identity.dir = kNoInode;
    identity.name = parked;
  }
  bool stays = false;
  if (!record.IsDirectory() && identity.dir != kNoInode) {
    CFS_ASSIGN_OR_RETURN(const InodeId there_now, fs_->NameNow(identity.dir, identity.name));
    stays = there_now == ino;
  }
  if (stays) {
    if (replace && unlinkat(fd, place->name.c_str(), 0) != 0) return PosixError(errno);
    if (linkat(from->get(), identity.name.c_str(), fd, place->name.c_str(), 0) != 0) {
      return PosixError(errno);
    }
    FaultPoint("flush-linked");
    CFS_RETURN_IF_ERROR(NoteLinks(ino, identity, *place));
    CFS_ASSIGN_OR_RETURN(const struct statx linked, StatBackend(fd, place->name));
    CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, identity.dir, identity.name, StampOf(linked)));
    return Outcome::kDone;
  }
  const absl::Status moved =
      MoveBackendObject(from->get(), identity.name, fd, place->name, replace);
  // Into what is still below it, or over what others have just made.
  if (ErrnoOf(moved) == EINVAL || ErrnoOf(moved) == EEXIST) return Outcome::kLater;
  CFS_RETURN_IF_ERROR(moved);
  FaultPoint("flush-moved");
  if (identity.dir != kNoInode) pass->touched.insert(identity.dir);
  CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(fd, place->name));
  if (!record.IsDirectory() && st.stx_nlink > 1) {
    CFS_RETURN_IF_ERROR(fs_->ChangeLinks(identity.stamp.number, ino,
                                         BackendLinks::Place{identity.dir, identity.name},
                                         BackendLinks::Place{place->dir, place->name}));
  }
  CFS_RETURN_IF_ERROR(fs_->NotePlace(ino, place->dir, place->name, StampOf(st)));
  return Outcome::kDone;
}

// The directory is another one there than it was: what that has is here, too.
absl::Status Flusher::Merge(InodeId dir) {
  return directories_->With(dir, [&](int fd) -> absl::Status {
    std::vector<LocalFileSystem::Imported> entries;
    absl::Status status;
    CFS_RETURN_IF_ERROR(ListBackendDirectory(fd, [&](const char* name) {
      // What was removed here is not there again.
      const absl::StatusOr<bool> ours = fs_->IsNameDirty(dir, name);
      absl::StatusOr<BackendObject> object = ReadBackendObject(fd, name);
      if ((ours.ok() && *ours) || ErrnoOf(object.status()) == ENOENT) return true;
      status = ours.status();
      if (!status.ok()) return false;
      status = object.status();
      if (status.ok()) entries.push_back(ToImported(dir, name, *std::move(object)));
      return status.ok();
    }));
    CFS_RETURN_IF_ERROR(status);
    return fs_->AddImported(dir, std::move(entries));
  });
}

// What others have put there stays.
absl::StatusOr<Flusher::Outcome> Flusher::Conflict(Pass* pass, int fd, DirtyPlace* place,
                                                   InodeId ino, const struct statx& there) {
  const std::string& name = place->name;
  InodeRecord record;
  if (ino != kNoInode) {
    CFS_ASSIGN_OR_RETURN(record, fs_->RecordNow(ino));
  }
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity, IdentityOf(record));
  const bool has_object = !record.backend_identity.empty();
  const bool here = has_object && identity.dir == place->dir && identity.name == name;
  if (record.IsDirectory() && S_ISDIR(there.stx_mode) && (!has_object || here)) {
    // One directory, with what both have put into it.
    CFS_RETURN_IF_ERROR(fs_->SetIdentity(ino, NewIdentity(place->dir, name, there)));
    CFS_RETURN_IF_ERROR(Merge(ino));
    CFS_RETURN_IF_ERROR(Agree(place, ino, there));
    pass->placed.push_back(place);
    return Outcome::kDone;
  }
  if (here && record.IsRegular() && record.layout == Layout::kBackend) {
    // Another one in its place, and nothing of it here.
    CFS_RETURN_IF_ERROR(fs_->SetIdentity(ino, NewIdentity(place->dir, name, there)));
    CFS_RETURN_IF_ERROR(Agree(place, ino, there));
    pass->placed.push_back(place);
    return Outcome::kDone;
  }
  std::string aside;
  for (int i = 1; ino != kNoInode && aside.empty(); ++i) {
    if (i == kConflictsMax) return PosixError(EEXIST, "too many conflicts");
    const std::string candidate = ConflictName(name, i);
    CFS_ASSIGN_OR_RETURN(const Object taken, Look(fd, candidate));
    CFS_ASSIGN_OR_RETURN(const InodeId taken_here, fs_->NameNow(place->dir, candidate));
    if (!taken && taken_here == kNoInode) aside = candidate;
  }
  CFS_ASSIGN_OR_RETURN(BackendObject object, ReadBackendObject(fd, name));
  if (here) CFS_RETURN_IF_ERROR(fs_->SetIdentity(ino, std::nullopt));
  CFS_RETURN_IF_ERROR(
      fs_->MoveAside(place->dir, name, aside, ToImported(place->dir, name, std::move(object))));
  conflicts_.fetch_add(1, std::memory_order_relaxed);
  LogWarn("others have changed the backend where we have, too path=",
          absl::CHexEscape(PathOf(place->dir, name)), " ours=", absl::CHexEscape(aside));
  if (!aside.empty()) pass->places.push_back({place->dir, aside, {}});
  return Outcome::kDone;
}

// False: all that is in it is known, and on its way out.
absl::StatusOr<bool> Flusher::TakeBack(Pass* pass, DirtyPlace* place) {
  const InodeId removed = place->mark.base;
  bool foreign = false;
  const absl::Status looked = directories_->With(place->dir, [&](int fd) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const struct statx there, StatBackend(fd, place->name));
    CFS_ASSIGN_OR_RETURN(const UniqueFd directory, OpenBackendDirectory(fd, place->name));
    absl::Status status;
    CFS_RETURN_IF_ERROR(ListBackendDirectory(directory.get(), [&](const char* name) {
      const absl::StatusOr<bool> known = fs_->IsNameDirty(removed, name);
      status = known.status();
      foreign = known.ok() && !*known;
      return status.ok() && !foreign;
    }));
    CFS_RETURN_IF_ERROR(status);
    if (!foreign) return absl::OkStatus();
    CFS_ASSIGN_OR_RETURN(const InodeId ino, fs_->NameNow(place->dir, place->name));
    return Conflict(pass, fd, place, ino, there).status();
  });
  CFS_RETURN_IF_ERROR(looked);
  if (!foreign) return false;
  directories_->Forget(removed);
  CFS_RETURN_IF_ERROR(fs_->ForgetRemoved(removed));
  return true;
}

}  // namespace cfs
