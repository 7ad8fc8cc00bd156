// What LocalFileSystem has of what others change on the backend: see BackendRefresh.
#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/xattr.h"
#include "cfs/ring/hash.h"
#include "cfs/server/backend_import.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

constexpr size_t kNamesAtOnce = 512;
constexpr auto kAgreed = Shard::Update::Purpose::kAgreed;

absl::Status ChangedSince() { return PosixError(EAGAIN, "it has changed here"); }

}  // namespace

absl::StatusOr<LocalFileSystem::Known> LocalFileSystem::KnownNow(InodeId dir,
                                                                 absl::string_view name) {
  Known known;
  known.dir = dir;
  known.name = std::string(name);
  for (;;) {
    CFS_ASSIGN_OR_RETURN(known.ino, NameNow(dir, name));
    StripeLocks::Hold hold(&shard_->locks(), {dir, known.ino});
    const auto dentry = shard_->GetDentry(dir, name);
    if (!dentry.ok() && !absl::IsNotFound(dentry.status())) return dentry.status();
    if ((dentry.ok() ? dentry->ino : kNoInode) != known.ino) continue;
    CFS_ASSIGN_OR_RETURN(known.name_dirty, IsNameDirty(dir, name));
    if (known.ino == kNoInode) return known;
    const auto record = shard_->GetInode(known.ino);
    known.lost = absl::IsNotFound(record.status());
    if (known.lost) return known;
    CFS_RETURN_IF_ERROR(record.status());
    known.record = *record;
    known.dirty = IsDirty(known.ino);
    if (record->IsDirectory()) {
      CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, shard_->GetBucket(known.ino));
      known.mtime = bucket.mtime;
    }
    return known;
  }
}

BackendLinks::Place LocalFileSystem::PlaceDue(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = RecordNow(ino);
  if (!record.ok() || record->nlink == 0 || record->backend_identity.empty()) return {};
  if (record->IsDirectory()) {
    if (fetcher_->IsDue(ino, "")) return {ino, ""};
    return {};
  }
  const auto identity = DecodeBackendIdentity(record->backend_identity);
  if (!identity.ok() || identity->dir == kNoInode ||
      !fetcher_->IsDue(identity->dir, identity->name)) {
    return {};
  }
  return {identity->dir, identity->name};
}

absl::StatusOr<LocalFileSystem::Known> LocalFileSystem::TopNow(InodeId ino) {
  Known known;
  known.ino = ino;
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(known.record, shard_->GetInode(ino));
  CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, shard_->GetBucket(ino));
  known.mtime = bucket.mtime;
  known.dirty = IsDirty(ino);
  return known;
}

absl::StatusOr<std::vector<LocalFileSystem::Known>> LocalFileSystem::ListKnown(InodeId dir,
                                                                               std::string* from) {
  std::vector<std::string> names;
  std::string next;
  {
    StripeLocks::Hold hold(&shard_->locks(), {dir});
    CFS_RETURN_IF_ERROR(store_->Scan(Family::kRecords, from->empty() ? DentryPrefix(dir) : *from,
                                     DentryPrefix(dir),
                                     [&](absl::string_view key, absl::string_view) {
                                       uint64_t hash;
                                       absl::string_view name;
                                       if (!ParseDentryKey(key, &hash, &name)) return true;
                                       if (names.size() == kNamesAtOnce) {
                                         next.assign(key.data(), key.size());
                                         return false;
                                       }
                                       names.emplace_back(name);
                                       return true;
                                     }));
  }
  std::vector<Known> page;
  for (const std::string& name : names) {
    CFS_ASSIGN_OR_RETURN(Known known, KnownNow(dir, name));
    if (known.ino != kNoInode) page.push_back(std::move(known));
  }
  *from = std::move(next);
  return page;
}

absl::StatusOr<std::vector<BackendLinks::Place>> LocalFileSystem::PlacesHere(
    InodeId ino, const BackendIdentity& identity) {
  CFS_ASSIGN_OR_RETURN(BackendLinks links, LinksOf(identity.stamp.number, ino));
  const BackendLinks::Place found{identity.dir, identity.name};
  if (std::ranges::find(links.places, found) == links.places.end()) links.places.push_back(found);
  std::vector<BackendLinks::Place> here;
  std::string value;
  for (BackendLinks::Place& place : links.places) {
    if (place.dir == kNoInode) continue;
    const absl::Status there =
        store_->Get(Family::kRecords, DentryKey(place.dir, place.name), &value);
    if (absl::IsNotFound(there)) continue;
    CFS_RETURN_IF_ERROR(there);
    CFS_ASSIGN_OR_RETURN(const DentryRecord dentry, DecodeDentry(value));
    if (dentry.ino == ino) here.push_back(std::move(place));
  }
  return here;
}

absl::StatusOr<bool> LocalFileSystem::IsAnyNameDirty(InodeId ino) {
  bool found = false;
  absl::Status status;
  CFS_RETURN_IF_ERROR(
      store_->Scan(Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
        InodeId dir;
        absl::string_view name;
        if (!ParseDirtyNameKey(key, &dir, &name)) return true;
        const auto mark = DecodeDirtyName(value);
        status.Update(mark.status());
        if (!mark.ok()) return false;
        found = mark->base == ino || mark->next == ino;
        std::string dentry;
        if (!found && store_->Get(Family::kRecords, DentryKey(dir, name), &dentry).ok()) {
          const auto decoded = DecodeDentry(dentry);
          found = decoded.ok() && decoded->ino == ino;
        }
        return !found;
      }));
  CFS_RETURN_IF_ERROR(status);
  return found;
}

// As the backend counts them, but for each name that is still here, and those of which it
// has not heard. Too many do no harm: they are counted again.
absl::StatusOr<uint32_t> LocalFileSystem::LinksToTakeOver(InodeId ino, const InodeRecord& record,
                                                          const BackendIdentity& identity,
                                                          uint32_t there) {
  CFS_ASSIGN_OR_RETURN(const auto places, PlacesHere(ino, identity));
  const uint32_t here = static_cast<uint32_t>(places.size());
  const uint32_t links = std::max({uint32_t{1}, there, here});
  if (links == record.nlink) return links;
  CFS_ASSIGN_OR_RETURN(const bool dirty, IsAnyNameDirty(ino));
  return dirty ? std::max(record.nlink, here) : links;
}

absl::Status LocalFileSystem::DropName(const Known& known, const std::optional<uint32_t>& links,
                                       Imported* instead) {
  const InodeRecord& record = known.record;
  CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                       DecodeBackendIdentity(record.backend_identity));
  // Others of its names may be here.
  std::vector<BackendLinks::Place> others;
  const MutexLockMaybe lock(record.IsDirectory() ? nullptr : &import_links_mutex_);
  const BackendLinks::Place place{known.dir, known.name};
  if (!record.IsDirectory()) {
    CFS_ASSIGN_OR_RETURN(others, PlacesHere(known.ino, identity));
    std::erase(others, place);
  }
  InodeId ino = kNoInode;
  if (instead != nullptr) {
    CFS_ASSIGN_OR_RETURN(
        ino, ReserveInode(instead->record.IsDirectory() ? SpreadSlot(known.dir, known.name)
                                                        : SlotOf(known.dir)));
  }
  const auto also = [&](InodeRecord* present, Shard::Update* update) -> absl::Status {
    CFS_ASSIGN_OR_RETURN(const bool name_dirty, IsNameDirty(known.dir, known.name));
    if (name_dirty || IsDirty(known.ino) || Encode(*present) != Encode(record)) {
      return ChangedSince();
    }
    // The object that is gone may be about to get the name that is left.
    if (!present->IsDirectory() && present->nlink > 1 && others.empty()) {
      CFS_ASSIGN_OR_RETURN(const bool wanted, IsAnyNameDirty(known.ino));
      if (wanted) return ChangedSince();
    }
    if (present->IsDirectory()) {
      present->backend_identity.clear();
    } else {
      bool dirty = false;
      if (links) {
        CFS_ASSIGN_OR_RETURN(dirty, IsAnyNameDirty(known.ino));
      }
      if (links && !dirty) present->nlink = *links + 1;
      present->nlink = std::max(present->nlink, static_cast<uint32_t>(others.size()) + 1);
    }
    // With other names it may still not be on the device.
    if (present->nlink <= 1) update->DeleteQueue(QueueKind::kStaged, known.ino);
    if (!present->IsDirectory() && present->nlink > 1) {
      CFS_ASSIGN_OR_RETURN(BackendLinks now, LinksOf(identity.stamp.number, known.ino));
      std::erase(now.places, place);
      // The number is another's by now, perhaps.
      CFS_ASSIGN_OR_RETURN(const BackendLinks any, LinksByNumber(identity.stamp.number));
      if (any.ino == kNoInode || any.ino == known.ino) {
        update->PutRaw(Family::kRecords, BackendLinkKey(identity.stamp.number), Encode(now));
      }
      if (BackendLinks::Place{identity.dir, identity.name} == place) {
        BackendIdentity elsewhere = identity;
        elsewhere.dir = others.empty() ? kNoInode : others.front().dir;
        elsewhere.name = others.empty() ? "" : others.front().name;
        present->backend_identity = Encode(elsewhere);
      }
    }
    if (instead == nullptr) return absl::OkStatus();
    InodeRecord& fresh = instead->record;
    for (const auto& [name, value] : instead->xattrs) AddXattr(ino, name, value, &fresh, update);
    if (fresh.IsDirectory()) {
      fresh.parent = known.dir;
      update->PutBucket(ino, instead->bucket);
    }
    update->PutInode(ino, fresh);
    update->PutDentry(known.dir, known.name, {ino, static_cast<uint8_t>(IFTODT(fresh.mode))});
    return absl::OkStatus();
  };
  std::optional<uint32_t> mode;
  if (instead != nullptr) mode = instead->record.mode;
  CFS_RETURN_IF_ERROR(names_->Drop(known.dir, known.name, known.ino, mode, also).status());
  FaultPoint("refresh-dropped");
  return absl::OkStatus();
}

absl::Status LocalFileSystem::TakeOver(const Known& known, const BackendObject& object) {
  const InodeId ino = known.ino;
  const InodeRecord& record = known.record;
  const struct statx& st = object.st;
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, DecodeBackendIdentity(record.backend_identity));
  const BackendStamp stamp = StampOf(st);
  const bool directory = record.IsDirectory();
  const bool here = record.IsRegular() && record.layout == Layout::kWhole;
  InodeRecord now = record;
  FillRecord(st, &now);
  now.atime = record.atime;
  now.flags = (record.flags & ~(kHasAccessAcl | kHasDefaultAcl)) | AclFlags(object.xattrs);
  const MutexLockMaybe links(directory ? nullptr : &import_links_mutex_);
  bool drops = false;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const absl::StatusOr<InodeRecord> found = shard_->GetInode(ino);
    if (absl::IsNotFound(found.status())) return ChangedSince();
    CFS_ASSIGN_OR_RETURN(const InodeRecord present, found);
    if (Encode(present) != Encode(record)) return ChangedSince();
    Shard::Update update(shard_.get(), kAgreed);
    const bool other = identity.stamp.number != stamp.number;
    if (IsDirty(ino)) {
      // A directory in the place of one is that one.
      if (!directory) return ChangedSince();
      now = present;
    } else {
      CFS_ASSIGN_OR_RETURN(const std::vector<std::string> before, shard_->ListXattrs(ino));
      bool differ = false;
      now.xattr_list_bytes = 0;
      size_t kept = 0;
      for (const std::string& name : before) {
        // These never come there.
        if (absl::StartsWith(name, "trusted.")) {
          now.xattr_list_bytes += static_cast<uint32_t>(name.size() + 1);
          continue;
        }
        ++kept;
        CFS_ASSIGN_OR_RETURN(std::string value, shard_->GetXattr(ino, name));
        differ |= std::ranges::find(object.xattrs, std::pair(name, std::move(value))) ==
                  object.xattrs.end();
        update.DeleteXattr(ino, name);
      }
      differ |= kept != object.xattrs.size();
      for (const auto& [name, value] : object.xattrs) AddXattr(ino, name, value, &now, &update);
      if (!directory) {
        CFS_ASSIGN_OR_RETURN(now.nlink, LinksToTakeOver(ino, record, identity, st.stx_nlink));
        // So that its other names lead here.
        if (st.stx_nlink > 1) {
          CFS_ASSIGN_OR_RETURN(BackendLinks places, LinksOf(stamp.number, ino));
          const BackendLinks::Place place{known.dir, known.name};
          if (std::ranges::find(places.places, place) == places.places.end()) {
            places.places.push_back(place);
            update.PutRaw(Family::kRecords, BackendLinkKey(stamp.number), Encode(places));
          }
        }
      }
      if (here) {
        // Who writes and puts the old time back leaves nothing but the ctime: what else
        // can have moved that, is no other content.
        const bool said = differ || record.mode != now.mode || record.uid != now.uid ||
                          record.gid != now.gid || record.nlink != now.nlink;
        drops = !SameContent(identity.stamp, stamp) || (!said && !(identity.stamp == stamp));
      }
      if (here && !drops) now.blocks = record.blocks;
    }
    if (drops) {
      if (open_.Find(ino) != nullptr) return PosixError(EBUSY, "it is open");
      struct stat copy;
      CFS_RETURN_IF_ERROR(chunks_->Stat(record.backing, &copy));
      if (!IsClean(record, copy)) return ChangedSince();
      now.atime = std::max(now.atime, copy.st_atim,
                           [](const timespec& a, const timespec& b) { return a < b; });
      now.layout = Layout::kBackend;
      now.home = NodeId{0};
      now.backing = kNoBacking;
      update.DeleteQueue(QueueKind::kStaged, ino);
      update.PutDoomed(record.backing);
      // The next open is of another file.
      if (cache_ != nullptr) cache_->BackingGone(ino);
    }
    identity.stamp = stamp;
    if (directory) {
      identity.clean_ctime = {};
      if (st.stx_mask & STATX_BTIME) identity.clean_ctime = TimeOf(st.stx_btime);
      // It is as it is listed, or is going to be.
      if (!IsDirty(ino)) {
        CFS_ASSIGN_OR_RETURN(BucketRecord bucket, shard_->GetBucket(ino));
        bucket.mtime = TimeOf(st.stx_mtime);
        bucket.ctime = TimeOf(st.stx_ctime);
        if (now.flags & kNotImported) {
          bucket = {0, st.stx_nlink > 2 ? st.stx_nlink - 2 : 0, bucket.mtime, bucket.ctime};
        }
        update.PutBucket(ino, bucket);
      } else if (!other) {
        return ChangedSince();
      }
    }
    now.backend_identity = Encode(identity);
    update.PutInode(ino, now);
    CFS_RETURN_IF_ERROR(update.Commit());
  }
  FaultPoint("refresh-taken-over");
  if (drops) {
    {
      MutexLock lock(&unsound_mutex_);
      unsound_.erase(ino);
    }
    MutexLock lock(&background_mutex_);
    doomed_.push_back(record.backing);
  }
  if (cache_ != nullptr) cache_->AttrUnstable(ino);
  return absl::OkStatus();
}

absl::Status LocalFileSystem::KeepDirectory(const Known& known) {
  StripeLocks::Hold hold(&shard_->locks(), {known.dir, known.ino});
  const auto dentry = shard_->GetDentry(known.dir, known.name);
  if (!dentry.ok() || dentry->ino != known.ino) return ChangedSince();
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard_->GetInode(known.ino));
  if (Encode(record) != Encode(known.record)) return ChangedSince();
  CFS_ASSIGN_OR_RETURN(const bool marked, IsNameDirty(known.dir, known.name));
  if (marked) return ChangedSince();
  const timespec now = clock_->Now();
  const uint64_t version =
      shard_->writes_back()
          ? shard_->NextDirtyVersion()
          : static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  Shard::Update update(shard_.get(), kAgreed);
  DirtyName mark;
  mark.since = version;
  update.PutRaw(Family::kQueue, DirtyNameKey(known.dir, known.name), Encode(mark));
  update.PutQueue(QueueKind::kDirty, known.ino, BackingId(version));
  record.backend_identity.clear();
  if (record.flags & kNotImported) {
    record.flags &= ~uint32_t{kNotImported};
    CFS_ASSIGN_OR_RETURN(BucketRecord bucket, shard_->GetBucket(known.ino));
    bucket.entries = bucket.subdirs = 0;
    update.PutBucket(known.ino, bucket);
  }
  update.PutInode(known.ino, std::move(record));
  return update.Commit();
}

void LocalFileSystem::SayChanged(InodeId dir, absl::string_view name, InodeId ino, bool on_use) {
  if (cache_ == nullptr) return;
  if (!on_use) cache_->NameChanged(dir, name);
  cache_->ListingChanged(dir);
  cache_->AttrUnstable(dir);
  if (ino != kNoInode) cache_->AttrUnstable(ino);
}

bool LocalFileSystem::IsOpen(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  const OpenInode* const open = open_.Find(ino);
  return open != nullptr && open->open();
}

}  // namespace cfs
