// What LocalFileSystem has of the backend: see BackendTier.
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/xattr.h"
#include "cfs/ring/hash.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

constexpr size_t kWipedAtOnce = 256;
constexpr auto kAgreed = Shard::Update::Purpose::kAgreed;

}  // namespace

void LocalFileSystem::SetFetcher(Fetcher* fetcher, bool writes_back, bool looks) {
  fetcher_ = fetcher;
  looks_ = looks;
  shard_->SetOverBackend();
  if (writes_back) shard_->SetWriteback(clock_);
}

absl::StatusOr<InodeRecord> LocalFileSystem::RecordNow(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  return shard_->GetInode(ino);
}

// ---------------------------------------------------------------------- names

absl::StatusOr<bool> LocalFileSystem::ImportRoot(Imported root) {
  StripeLocks::Hold hold(&shard_->locks(), {kRootInode});
  CFS_ASSIGN_OR_RETURN(const InodeRecord present, shard_->GetInode(kRootInode));
  CFS_ASSIGN_OR_RETURN(const BackendIdentity wanted,
                       DecodeBackendIdentity(root.record.backend_identity));
  if (!present.backend_identity.empty()) {
    CFS_ASSIGN_OR_RETURN(const BackendIdentity known,
                         DecodeBackendIdentity(present.backend_identity));
    // Tops of file systems have the same number everywhere.
    if (known.stamp.number == wanted.stamp.number && known.clean_ctime == wanted.clean_ctime) {
      return false;
    }
    return absl::FailedPreconditionError("the store is in front of another backend");
  }
  CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, shard_->GetBucket(kRootInode));
  if (bucket.entries > 0) {
    return absl::FailedPreconditionError("the store has files that are not the backend's");
  }
  Shard::Update update(shard_.get(), kAgreed);
  root.record.parent = kRootInode;
  for (const auto& [name, value] : root.xattrs) {
    AddXattr(kRootInode, name, value, &root.record, &update);
  }
  update.PutInode(kRootInode, root.record);
  update.PutBucket(kRootInode, root.bucket);
  CFS_RETURN_IF_ERROR(update.Commit());
  return true;
}

// Needs the directory's stripe lock. Others may have imported it, or given it up, meanwhile.
absl::Status LocalFileSystem::CheckImporting(InodeId dir) {
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard_->GetInode(dir));
  if (record.flags & kNotImported) return absl::OkStatus();
  return PosixError(EAGAIN, "it was imported meanwhile");
}

absl::Status LocalFileSystem::BeginImport(InodeId dir) {
  // What was removed is not gone through again.
  for (std::string from = DentryPrefix(dir);;) {
    std::vector<std::pair<std::string, InodeId>> left;
    StripeLocks::Hold hold(&shard_->locks(), {dir});
    CFS_RETURN_IF_ERROR(CheckImporting(dir));
    CFS_RETURN_IF_ERROR(store_->Scan(
        Family::kRecords, from, DentryPrefix(dir),
        [&](absl::string_view key, absl::string_view value) {
          uint64_t hash;
          absl::string_view name;
          const auto dentry = DecodeDentry(value);
          if (ParseDentryKey(key, &hash, &name) && dentry.ok()) {
            left.emplace_back(name, dentry->ino);
            from.assign(key.data(), key.size());
          }
          return left.size() < kWipedAtOnce;
        }));
    if (left.empty()) return absl::OkStatus();
    Shard::Update update(shard_.get(), kAgreed);
    for (const auto& [name, ino] : left) {
      update.DeleteDentry(dir, name);
      const auto record = ReadInode(ino);
      if (absl::IsNotFound(record.status())) continue;
      CFS_RETURN_IF_ERROR(record.status());
      // It may have a name elsewhere that somebody has seen.
      if (!record->IsDirectory() && record->nlink > 1) continue;
      CFS_RETURN_IF_ERROR(names_->EraseInode(ino, *record, /*marked=*/false, &update));
    }
    CFS_RETURN_IF_ERROR(update.Commit());
  }
}

absl::StatusOr<InodeRecord> LocalFileSystem::ReadInode(InodeId ino) const {
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kRecords, InodeKey(ino), &value));
  return DecodeInode(value);
}

absl::Status LocalFileSystem::Import(InodeId dir, std::vector<Imported> entries,
                                     BucketRecord* importing, bool theirs) {
  const bool linked = std::ranges::any_of(entries, [](const Imported& entry) {
    return !entry.record.IsDirectory() && entry.record.nlink > 1;
  });
  const MutexLockMaybe links(linked ? &import_links_mutex_ : nullptr);
  // Nobody knows the new inodes.
  InodeId linked_to = kNoInode;
  if (importing == nullptr && linked) {
    CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                         DecodeBackendIdentity(entries.front().record.backend_identity));
    const absl::StatusOr<BackendLinks> links_now = LinksByNumber(identity.stamp.number);
    if (links_now.ok()) linked_to = links_now->ino;
  }
  StripeLocks::Hold hold(&shard_->locks(), {dir, linked_to});
  if (importing != nullptr) CFS_RETURN_IF_ERROR(CheckImporting(dir));
  Shard::Update update(shard_.get(), kAgreed);
  BucketRecord present;
  if (theirs) {
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard_->GetInode(dir));
    if (record.nlink == 0 || (record.flags & kNotImported)) return PosixError(EAGAIN);
  }
  if (importing == nullptr) {
    CFS_ASSIGN_OR_RETURN(present, shard_->GetBucket(dir));
  }
  BucketRecord* const bucket = importing == nullptr ? &present : importing;
  // In this batch.
  absl::flat_hash_map<uint64_t, BackendLinks> seen;
  absl::flat_hash_set<std::string> names;
  for (Imported& entry : entries) {
    InodeRecord& record = entry.record;
    // What is renamed or made again while it is listed may be met twice.
    std::string value;
    const absl::Status there = store_->Get(Family::kRecords, DentryKey(dir, entry.name), &value);
    if (there.ok() || !names.insert(entry.name).second) continue;
    if (!absl::IsNotFound(there)) return there;
    if (theirs) {
      // Removed here, and not there yet.
      CFS_ASSIGN_OR_RETURN(const bool dirty, IsNameDirty(dir, entry.name));
      if (dirty) continue;
    }
    ++bucket->entries;
    if (record.IsDirectory()) ++bucket->subdirs;
    const DentryRecord dentry{kNoInode, static_cast<uint8_t>(IFTODT(record.mode))};
    if (!record.IsDirectory() && record.nlink > 1) {
      CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                           DecodeBackendIdentity(record.backend_identity));
      const std::string key = BackendLinkKey(identity.stamp.number);
      InodeId known = kNoInode;
      BackendLinks& links = seen[identity.stamp.number];
      if (links.ino != kNoInode) {
        known = links.ino;
      } else if (const absl::Status link = store_->Get(Family::kRecords, key, &value);
                 !absl::IsNotFound(link)) {
        CFS_RETURN_IF_ERROR(link);
        CFS_ASSIGN_OR_RETURN(links, DecodeBackendLinks(value));
        known = links.ino;
        auto other = ReadInode(known);
        if (!other.ok() && !absl::IsNotFound(other.status())) return other.status();
        // The number may be another object's by now.
        auto other_identity = DecodeBackendIdentity(other.ok() ? other->backend_identity : "");
        if (!other.ok() || (other->mode & S_IFMT) != (record.mode & S_IFMT) ||
            !other_identity.ok() || !SameContent(other_identity->stamp, identity.stamp)) {
          known = kNoInode;
          links = {};
        } else if (other_identity->dir == kNoInode && other_identity->name.empty()) {
          // The name that was known went, and this is where it is now.
          other_identity->dir = dir;
          other_identity->name = entry.name;
          other->backend_identity = Encode(*other_identity);
          update.PutInode(known, *std::move(other));
        }
      }
      links.places.push_back({dir, entry.name});
      const bool first = known == kNoInode;
      if (!first && importing == nullptr) {
        // One that it did not count.
        if (known != linked_to) return PosixError(EAGAIN, "its other names have changed");
        CFS_ASSIGN_OR_RETURN(InodeRecord other, shard_->GetInode(known));
        if (theirs) {
          CFS_ASSIGN_OR_RETURN(const BackendIdentity found,
                               DecodeBackendIdentity(other.backend_identity));
          CFS_ASSIGN_OR_RETURN(const auto places, PlacesHere(known, found));
          CFS_ASSIGN_OR_RETURN(const bool dirty, IsAnyNameDirty(known));
          const uint32_t here = static_cast<uint32_t>(places.size()) + 1;
          other.nlink = std::max({here, record.nlink, other.nlink + (dirty ? 1 : 0)});
        } else {
          ++other.nlink;
        }
        update.PutInode(known, std::move(other));
      }
      if (first) {
        CFS_ASSIGN_OR_RETURN(links.ino, ReserveInode(SlotOf(dir)));
        known = links.ino;
      }
      update.PutRaw(Family::kRecords, key, Encode(links));
      update.PutDentry(dir, entry.name, {known, dentry.type});
      if (!first) continue;
      for (const auto& [name, value] : entry.xattrs) AddXattr(known, name, value, &record, &update);
      update.PutInode(known, record);
      continue;
    }
    CFS_ASSIGN_OR_RETURN(
        const InodeId ino,
        ReserveInode(record.IsDirectory() ? SpreadSlot(dir, entry.name) : SlotOf(dir)));
    for (const auto& [name, value] : entry.xattrs) AddXattr(ino, name, value, &record, &update);
    if (record.IsDirectory()) {
      record.parent = dir;
      update.PutBucket(ino, entry.bucket);
    }
    update.PutInode(ino, record);
    update.PutDentry(dir, entry.name, {ino, dentry.type});
  }
  if (theirs) {
    // So that a kernel does not go on with the listing that it has.
    present.mtime = present.ctime = clock_->Now();
    update.PutBucket(dir, present);
  } else if (importing == nullptr) {
    present.mtime = present.ctime = clock_->Now();
    update.PutBucket(dir, present);
    update.PutQueue(QueueKind::kDirty, dir, BackingId(shard_->NextDirtyVersion()));
  }
  return update.Commit();
}

absl::Status LocalFileSystem::EndImport(InodeId dir, const BucketRecord& bucket) {
  StripeLocks::Hold hold(&shard_->locks(), {dir});
  CFS_RETURN_IF_ERROR(CheckImporting(dir));
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard_->GetInode(dir));
  record.flags &= ~uint32_t{kNotImported};
  Shard::Update update(shard_.get(), kAgreed);
  update.PutInode(dir, record);
  update.PutBucket(dir, bucket);
  CFS_RETURN_IF_ERROR(update.Commit());
  if (cache_ != nullptr) cache_->AttrUnstable(dir);
  return absl::OkStatus();
}

// ----------------------------------------------------------------------- data

bool LocalFileSystem::IsClean(const InodeRecord& record, const struct stat& st) {
  if (record.backend_identity.empty()) return false;
  const auto identity = DecodeBackendIdentity(record.backend_identity);
  return identity.ok() && static_cast<uint64_t>(st.st_size) == identity->stamp.size &&
         st.st_ctim == identity->clean_ctime;
}

absl::StatusOr<LocalFileSystem::Staging> LocalFileSystem::BeginStaging() {
  CFS_RETURN_IF_ERROR(RoomToGrow());
  Staging staging;
  CFS_ASSIGN_OR_RETURN(staging.fresh, chunks_->TakeFresh());
  // Made for the first open, which may be far away.
  DropRegistration(std::exchange(staging.fresh.registration, 0));
  auto fd = chunks_->OpenFile(staging.fresh.backing, O_WRONLY);
  if (!fd.ok()) {
    DropStaging(staging);
    return fd.status();
  }
  staging.fd = *std::move(fd);
  return staging;
}

void LocalFileSystem::DropStaging(const Staging& staging) { Discard(staging.fresh); }

absl::StatusOr<bool> LocalFileSystem::EndStaging(InodeId ino, const InodeRecord& seen,
                                                 InodeRecord staged, const Xattrs* xattrs,
                                                 const Staging& staging) {
  const auto end = [&]() -> absl::StatusOr<bool> {
    CFS_ASSIGN_OR_RETURN(BackendIdentity identity, DecodeBackendIdentity(staged.backend_identity));
    const timespec times[2] = {staged.atime, staged.mtime};
    struct stat st;
    if (futimens(staging.fd.get(), times) != 0 || fstat(staging.fd.get(), &st) != 0) {
      return ErrnoStatus("stage in");
    }
    identity.clean_ctime = st.st_ctim;
    staged.backend_identity = Encode(identity);
    staged.layout = Layout::kWhole;
    staged.home = node_;
    staged.backing = staging.fresh.backing;
    staged.blocks = static_cast<uint64_t>(st.st_blocks);
    staged.attr_epoch = attr_epoch_;
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    CFS_ASSIGN_OR_RETURN(const InodeRecord present, shard_->GetInode(ino));
    if (Encode(present) != Encode(seen)) return false;
    Shard::Update update(shard_.get(), kAgreed);
    if (xattrs != nullptr) {
      CFS_ASSIGN_OR_RETURN(const std::vector<std::string> before, shard_->ListXattrs(ino));
      for (const std::string& name : before) update.DeleteXattr(ino, name);
      staged.xattr_list_bytes = 0;
      for (const auto& [name, value] : *xattrs) AddXattr(ino, name, value, &staged, &update);
    }
    update.PutInode(ino, staged);
    update.PutQueue(QueueKind::kStaged, ino, staged.backing);
    CFS_RETURN_IF_ERROR(update.Commit());
    return true;
  };
  const absl::StatusOr<bool> ended = end();
  if (!ended.ok() || !*ended) {
    DropStaging(staging);
    return ended;
  }
  chunks_->Settle(staging.fresh.backing);
  if (xattrs != nullptr && cache_ != nullptr) cache_->AttrUnstable(ino);
  return true;
}

absl::Status LocalFileSystem::SyncStaged(InodeId ino, BackingId backing) {
  const auto fd = chunks_->OpenFile(backing, O_RDONLY);
  if (!fd.ok()) return ErrnoOf(fd.status()) == ENOENT ? absl::OkStatus() : fd.status();
  if (fsync(fd->get()) == 0) return absl::OkStatus();
  const absl::Status failed = ErrnoStatus("sync of what was staged in");
  MutexLock lock(&unsound_mutex_);
  unsound_.insert(ino);
  return failed;
}

absl::StatusOr<bool> LocalFileSystem::Harden(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = RecordNow(ino);
  if (absl::IsNotFound(record.status())) return true;
  CFS_RETURN_IF_ERROR(record.status());
  if (record->layout != Layout::kWhole) return true;
  const uint64_t settled = chunks_->settled();
  if (Raw(record->backing) >= settled) return false;
  CFS_RETURN_IF_ERROR(SyncStaged(ino, record->backing));
  // Written before the mark goes, or recovery takes the file for one that no record names.
  CFS_RETURN_IF_ERROR(state_->SetSettled(settled));
  return EndSoft(ino, *record);
}

absl::StatusOr<bool> LocalFileSystem::EndSoft(InodeId ino, const InodeRecord& synced) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  const absl::StatusOr<InodeRecord> present = shard_->GetInode(ino);
  if (!present.ok() || present->backing != synced.backing) return true;
  // It may have been written and flushed in the meantime.
  if (present->backend_identity != synced.backend_identity) return false;
  {
    MutexLock lock(&unsound_mutex_);
    if (unsound_.contains(ino)) return PosixError(EIO, "a sync of it has failed before");
  }
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteQueue(QueueKind::kStaged, ino);
  CFS_RETURN_IF_ERROR(update.Commit());
  return true;
}

absl::Status LocalFileSystem::HardenAll(std::vector<InodeId>* soft,
                                        std::vector<InodeId>* unsound) {
  const uint64_t settled = chunks_->settled();
  std::vector<std::pair<InodeId, InodeRecord>> synced;
  std::vector<InodeId> left;
  for (const InodeId ino : *soft) {
    absl::StatusOr<InodeRecord> record = RecordNow(ino);
    if (absl::IsNotFound(record.status())) continue;
    CFS_RETURN_IF_ERROR(record.status());
    if (record->layout != Layout::kWhole) continue;
    if (Raw(record->backing) < settled) {
      synced.emplace_back(ino, *std::move(record));
    } else {
      left.push_back(ino);
    }
  }
  CFS_RETURN_IF_ERROR(chunks_->SyncAll());
  CFS_RETURN_IF_ERROR(state_->SetSettled(settled));
  for (const auto& [ino, record] : synced) {
    // What was lost of it before may have been said to somebody else.
    const absl::Status sound = SyncStaged(ino, record.backing);
    const absl::StatusOr<bool> ended = sound.ok() ? EndSoft(ino, record) : sound;
    if (!ended.ok()) unsound->push_back(ino);
    if (ended.ok() && !*ended) left.push_back(ino);
  }
  soft->swap(left);
  return absl::OkStatus();
}

absl::StatusOr<bool> LocalFileSystem::Evict(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard_->GetInode(ino));
  if (!record.IsRegular() || record.layout != Layout::kWhole || record.home != node_) return false;
  const OpenInode* const open = open_.Find(ino);
  // It may only be waiting for numbers below its own to be settled.
  if (open != nullptr && (open->open() || open->maybe_writer)) {
    return PosixError(EBUSY, "it is open");
  }
  {
    MutexLock lock(&unsound_mutex_);
    if (kept_here_.contains(ino)) return PosixError(EBUSY, "it is about to be opened");
  }
  struct stat st;
  CFS_RETURN_IF_ERROR(chunks_->Stat(record.backing, &st));
  if (!IsClean(record, st) || IsDirty(ino)) {
    return PosixError(EBUSY, "it is not on the backend as it is here");
  }
  // The next open is of another file.
  if (cache_ != nullptr) cache_->BackingGone(ino);
  // A mapping outlives close(2), and must not go on with a file of its own.
  CFS_ASSIGN_OR_RETURN(const bool used, chunks_->IsUsed(record.backing));
  if (used) return PosixError(EBUSY, "it is mapped");
  if (record.atime < st.st_atim) record.atime = st.st_atim;
  const BackingId backing = std::exchange(record.backing, kNoBacking);
  record.layout = Layout::kBackend;
  record.home = NodeId{0};
  Shard::Update update(shard_.get(), kAgreed);
  update.PutInode(ino, record);
  update.DeleteQueue(QueueKind::kStaged, ino);
  update.PutDoomed(backing);
  if (open != nullptr) update.DeleteQueue(QueueKind::kOpen, ino);
  CFS_RETURN_IF_ERROR(update.Commit());
  if (open != nullptr) open_.Erase(ino);
  {
    MutexLock lock(&unsound_mutex_);
    unsound_.erase(ino);
  }
  MutexLock lock(&background_mutex_);
  doomed_.push_back(backing);
  return true;
}

absl::Status LocalFileSystem::Unstage(InodeId ino, BackingId backing) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteQueue(QueueKind::kStaged, ino);
  const absl::StatusOr<InodeRecord> record = shard_->GetInode(ino);
  if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
  // Whoever had it open for writing had gone before it was brought to the backend.
  if (backing != kNoBacking) update.DeleteQueue(QueueKind::kOpen, ino);
  if (record.ok() && record->layout == Layout::kWhole && record->backing == backing &&
      !record->backend_identity.empty()) {
    InodeRecord away = *record;
    away.layout = Layout::kBackend;
    away.home = NodeId{0};
    away.backing = kNoBacking;
    update.PutInode(ino, away);
    update.PutDoomed(backing);
  }
  return update.Commit();
}

absl::StatusOr<bool> LocalFileSystem::TakeBackLost(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = RecordNow(ino);
  if (absl::IsNotFound(record.status())) return false;
  CFS_RETURN_IF_ERROR(record.status());
  struct stat st;
  if (record->layout != Layout::kWhole || record->backend_identity.empty() ||
      record->home != node_ || ErrnoOf(chunks_->Stat(record->backing, &st)) != ENOENT) {
    return false;
  }
  CFS_RETURN_IF_ERROR(Unstage(ino, record->backing));
  return true;
}

}  // namespace cfs
