// What LocalFileSystem has of the backend's changes: see Flusher.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cfs/base/awaited.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/xattr.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

constexpr auto kAgreed = Shard::Update::Purpose::kAgreed;
constexpr size_t kNotedAtOnce = 64;

}  // namespace

bool LocalFileSystem::IsSoft(InodeId ino) {
  std::string value;
  return shard_->writes_back() &&
         store_->Get(Family::kQueue, QueueKey(QueueKind::kStaged, ino), &value).ok();
}

bool LocalFileSystem::IsDirty(InodeId ino) {
  std::string value;
  return !absl::IsNotFound(store_->Get(Family::kQueue, QueueKey(QueueKind::kDirty, ino), &value));
}

absl::Status LocalFileSystem::NoteDirty(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  const auto record = shard_->GetInode(ino);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  if (record->nlink == 0 || IsDirty(ino)) return absl::OkStatus();
  Shard::Update update(shard_.get(), kAgreed);
  update.PutQueue(QueueKind::kDirty, ino, BackingId(shard_->NextDirtyVersion()));
  return update.Commit();
}

absl::StatusOr<std::string> LocalFileSystem::HardenForWriting(InodeId ino) {
  if (!IsSoft(ino)) return "";
  CFS_ASSIGN_OR_RETURN(InodeRecord record, RecordNow(ino));
  if (record.layout != Layout::kWhole) return "";
  CFS_RETURN_IF_ERROR(SyncStaged(ino, record.backing));
  return std::move(record.backend_identity);
}

absl::Status LocalFileSystem::SyncData(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = RecordNow(ino);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  if (record->layout != Layout::kWhole) return absl::OkStatus();
  return SyncStaged(ino, record->backing);
}

absl::Status LocalFileSystem::MakeHard(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = RecordNow(ino);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  if (record->layout != Layout::kWhole) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(SyncStaged(ino, record->backing));
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  if (!IsSoft(ino)) return absl::OkStatus();
  const absl::StatusOr<InodeRecord> present = shard_->GetInode(ino);
  if (!present.ok() || present->backing != record->backing) return absl::OkStatus();
  // Its number may not be settled yet: the open mark keeps the file.
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteQueue(QueueKind::kStaged, ino);
  update.PutQueue(QueueKind::kOpen, ino, record->backing);
  CFS_RETURN_IF_ERROR(update.Commit());
  OpenInode* const open = open_.FindOrAdd(ino, record->backing);
  open->marked = true;
  QueueSettle(ino, open);
  return absl::OkStatus();
}

absl::Status LocalFileSystem::CheckWritten(InodeId ino, const Outgoing& out) {
  // Says what has failed, and begins nothing.
  if (sync_file_range(out.fd.get(), 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE) == 0 || errno == ESPIPE ||
      errno == EINVAL || errno == ENOSYS) {
    return absl::OkStatus();
  }
  const absl::Status failed = ErrnoStatus("file to flush");
  MutexLock lock(&unsound_mutex_);
  unsound_.insert(ino);
  return failed;
}

absl::StatusOr<LocalFileSystem::Dirty> LocalFileSystem::ListDirty() {
  Dirty dirty;
  absl::Status malformed;
  CFS_RETURN_IF_ERROR(
      store_->Scan(Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
        InodeId ino;
        absl::string_view name;
        QueueKind kind;
        if (ParseDirtyNameKey(key, &ino, &name)) {
          auto mark = DecodeDirtyName(value);
          malformed.Update(mark.status());
          if (mark.ok()) dirty.names.push_back({ino, std::string(name), *mark});
        } else if (ParseQueueKey(key, &kind, &ino)) {
          if (kind == QueueKind::kPending) dirty.pending.push_back(ino);
          if (kind == QueueKind::kDirty) {
            const auto version = DecodeBacking(value);
            malformed.Update(version.status());
            if (version.ok()) dirty.inodes.push_back({ino, Raw(*version)});
          }
        }
        return malformed.ok();
      }));
  CFS_RETURN_IF_ERROR(malformed);
  return dirty;
}

absl::StatusOr<InodeId> LocalFileSystem::NameNow(InodeId dir, absl::string_view name) {
  StripeLocks::Hold hold(&shard_->locks(), {dir});
  const auto dentry = shard_->GetDentry(dir, name);
  if (absl::IsNotFound(dentry.status())) return kNoInode;
  CFS_RETURN_IF_ERROR(dentry.status());
  return dentry->ino;
}

absl::StatusOr<BackendLinks> LocalFileSystem::LinksByNumber(uint64_t number) {
  std::string value;
  const absl::Status found = store_->Get(Family::kRecords, BackendLinkKey(number), &value);
  if (absl::IsNotFound(found)) return BackendLinks{};
  CFS_RETURN_IF_ERROR(found);
  return DecodeBackendLinks(value);
}

absl::StatusOr<BackendLinks> LocalFileSystem::LinksOf(uint64_t number, InodeId ino) {
  CFS_ASSIGN_OR_RETURN(BackendLinks links, LinksByNumber(number));
  // The number was another object's before.
  if (links.ino != ino) return BackendLinks{ino, {}};
  return links;
}

absl::Status LocalFileSystem::ChangeLinks(uint64_t number, InodeId ino,
                                          const std::optional<BackendLinks::Place>& gone,
                                          const std::optional<BackendLinks::Place>& added) {
  MutexLock lock(&import_links_mutex_);
  CFS_ASSIGN_OR_RETURN(BackendLinks links, LinksOf(number, ino));
  if (gone) std::erase(links.places, *gone);
  if (added && std::ranges::find(links.places, *added) == links.places.end()) {
    links.places.push_back(*added);
  }
  Shard::Update update(shard_.get(), kAgreed);
  update.PutRaw(Family::kRecords, BackendLinkKey(number), Encode(links));
  return update.Commit();
}

absl::StatusOr<bool> LocalFileSystem::IsNameDirty(InodeId dir, absl::string_view name) {
  std::string value;
  const absl::Status found = store_->Get(Family::kQueue, DirtyNameKey(dir, name), &value);
  if (absl::IsNotFound(found)) return false;
  CFS_RETURN_IF_ERROR(found);
  return true;
}

absl::Status LocalFileSystem::NoteName(InodeId dir, absl::string_view name, const DirtyName& mark) {
  StripeLocks::Hold hold(&shard_->locks(), {dir});
  Shard::Update update(shard_.get(), kAgreed);
  update.PutRaw(Family::kQueue, DirtyNameKey(dir, name), Encode(mark));
  return update.Commit();
}

absl::Status LocalFileSystem::EndName(InodeId dir, absl::string_view name) {
  const std::string key = DirtyNameKey(dir, name);
  std::string value;
  CFS_ASSIGN_OR_RETURN(const InodeId ino, NameNow(dir, name));
  StripeLocks::Hold hold(&shard_->locks(), {dir, ino});
  CFS_RETURN_IF_ERROR(store_->Get(Family::kQueue, key, &value));
  CFS_ASSIGN_OR_RETURN(const DirtyName mark, DecodeDirtyName(value));
  const auto dentry = shard_->GetDentry(dir, name);
  if (!dentry.ok() && !absl::IsNotFound(dentry.status())) return dentry.status();
  if (mark.next != kNoInode || mark.base != (dentry.ok() ? dentry->ino : kNoInode)) {
    return PosixError(EAGAIN, "it has changed again");
  }
  if (dentry.ok()) {
    // It may have been moved on since, and back here.
    if (dentry->ino != ino) return PosixError(EAGAIN, "it has changed again");
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard_->GetInode(ino));
    const auto identity = DecodeBackendIdentity(record.backend_identity);
    bool there = identity.ok() && identity->dir == dir && identity->name == name;
    if (!there && identity.ok() && !record.IsDirectory()) {
      CFS_ASSIGN_OR_RETURN(const BackendLinks links, LinksOf(identity->stamp.number, ino));
      there = std::ranges::find(links.places, BackendLinks::Place{dir, std::string(name)}) !=
              links.places.end();
    }
    if (!there) return PosixError(EAGAIN, "it has changed again");
  }
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteRaw(Family::kQueue, key);
  return update.Commit();
}

absl::Status LocalFileSystem::SetIdentity(InodeId ino,
                                          const std::optional<BackendIdentity>& identity) {
  // Nothing takes its place any more.
  if (!identity) CFS_RETURN_IF_ERROR(MakeHard(ino));
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  absl::StatusOr<InodeRecord> record = shard_->GetInode(ino);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  // Its size and times are the backing file's from now on.
  if (!identity && record->layout == Layout::kWhole) CFS_RETURN_IF_ERROR(MergeBacking(&*record));
  record->backend_identity = identity ? Encode(*identity) : "";
  Shard::Update update(shard_.get(), kAgreed);
  // What has no object needs one.
  if (!identity) {
    update.PutQueue(QueueKind::kDirty, ino, BackingId(shard_->NextDirtyVersion()));
  }
  update.PutInode(ino, *std::move(record));
  return update.Commit();
}

absl::Status LocalFileSystem::NotePlace(InodeId ino, InodeId dir, absl::string_view name,
                                        const BackendStamp& stamp) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  absl::StatusOr<InodeRecord> record = shard_->GetInode(ino);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, DecodeBackendIdentity(record->backend_identity));
  identity.dir = dir;
  identity.name = std::string(name);
  // The move has changed its ctime; whatever else has changed, others did.
  if (SameContent(identity.stamp, stamp)) identity.stamp = stamp;
  record->backend_identity = Encode(identity);
  Shard::Update update(shard_.get(), kAgreed);
  update.PutInode(ino, *std::move(record));
  return update.Commit();
}

bool LocalFileSystem::HasWriterNow(OpenInode* open) const {
  if (open == nullptr || !open->maybe_writer) return false;
  if (open->writers > 0) return true;
  if (!open->probed) {
    const absl::StatusOr<bool> busy = chunks_->HasWriter(open->backing);
    open->probed = busy.ok() && !*busy;
  }
  return !open->probed;
}

absl::StatusOr<LocalFileSystem::Outgoing> LocalFileSystem::TakeOut(InodeId ino) {
  Outgoing out;
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(out.record, shard_->GetInode(ino));
  std::string value;
  const auto number = [&](QueueKind kind) -> absl::StatusOr<uint64_t> {
    const absl::Status found = store_->Get(Family::kQueue, QueueKey(kind, ino), &value);
    if (absl::IsNotFound(found)) return 0;
    CFS_RETURN_IF_ERROR(found);
    CFS_ASSIGN_OR_RETURN(const BackingId got, DecodeBacking(value));
    return Raw(got);
  };
  CFS_ASSIGN_OR_RETURN(out.version, number(QueueKind::kDirty));
  CFS_ASSIGN_OR_RETURN(out.pending, number(QueueKind::kPending));
  if (out.record.xattr_list_bytes > 0) {
    CFS_ASSIGN_OR_RETURN(const std::vector<std::string> names, shard_->ListXattrs(ino));
    for (const std::string& name : names) {
      CFS_ASSIGN_OR_RETURN(std::string xattr, shard_->GetXattr(ino, name));
      out.xattrs.emplace_back(name, std::move(xattr));
    }
  }
  if (out.record.IsDirectory()) {
    CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, shard_->GetBucket(ino));
    out.mtime = bucket.mtime;
    return out;
  }
  if (out.record.layout == Layout::kWhole) {
    {
      MutexLock lock(&unsound_mutex_);
      if (unsound_.contains(ino)) return PosixError(EIO, "a sync of it has failed here");
    }
    out.has_writer = HasWriterNow(open_.Find(ino));
    CFS_ASSIGN_OR_RETURN(out.fd, chunks_->OpenFile(out.record.backing, O_RDONLY));
    struct stat st;
    if (fstat(out.fd.get(), &st) != 0) return ErrnoStatus("file to flush");
    out.backing_ctime = st.st_ctim;
    out.data = !IsClean(out.record, st);
    CFS_RETURN_IF_ERROR(MergeBacking(&out.record));
    if (!out.data) out.fd.reset();
  }
  out.mtime = out.record.mtime;
  return out;
}

absl::Status LocalFileSystem::NoteNames(const std::vector<const DirtyPlace*>& places) {
  for (size_t i = 0; i < places.size(); i += kNotedAtOnce) {
    const size_t end = std::min(places.size(), i + kNotedAtOnce);
    std::vector<InodeId> locked;
    for (size_t at = i; at < end; ++at) locked.push_back(places[at]->dir);
    StripeLocks::Hold hold(&shard_->locks(), locked);
    Shard::Update update(shard_.get(), kAgreed);
    for (size_t at = i; at < end; ++at) {
      const DirtyPlace& place = *places[at];
      update.PutRaw(Family::kQueue, DirtyNameKey(place.dir, place.name), Encode(place.mark));
    }
    CFS_RETURN_IF_ERROR(update.Commit());
  }
  return absl::OkStatus();
}

absl::Status LocalFileSystem::NotePending(const std::vector<Pending>& pending) {
  Shard::Update update(shard_.get(), kAgreed);
  for (const auto& [ino, number] : pending) {
    update.PutQueue(QueueKind::kPending, ino, BackingId(number));
  }
  return update.Commit();
}

absl::StatusOr<uint64_t> LocalFileSystem::PendingOf(InodeId ino) {
  std::string value;
  const absl::Status found =
      store_->Get(Family::kQueue, QueueKey(QueueKind::kPending, ino), &value);
  if (absl::IsNotFound(found)) return 0;
  CFS_RETURN_IF_ERROR(found);
  CFS_ASSIGN_OR_RETURN(const BackingId number, DecodeBacking(value));
  return Raw(number);
}

absl::Status LocalFileSystem::ForgetPending(InodeId ino) {
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteQueue(QueueKind::kPending, ino);
  return update.Commit();
}

absl::Status LocalFileSystem::PutOut(InodeId ino, const Outgoing& taken, BackendIdentity identity) {
  CFS_ASSIGN_OR_RETURN(BackendLinks links, LinksOf(identity.stamp.number, ino));
  const BackendLinks::Place place{identity.dir, identity.name};
  std::erase(links.places, place);
  if (place.dir != kNoInode) links.places.push_back(place);
  std::vector<InodeId> locked = {ino};
  for (const BackendLinks::Place& each : links.places) locked.push_back(each.dir);
  StripeLocks::Hold hold(&shard_->locks(), locked);
  absl::StatusOr<InodeRecord> record = shard_->GetInode(ino);
  if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
  std::string value;
  Shard::Update update(shard_.get(), kAgreed);
  if (taken.pending != 0) update.DeleteQueue(QueueKind::kPending, ino);
  // Should one of its names be another one's by now, what is to go is known.
  for (const BackendLinks::Place& each : links.places) {
    const std::string key = DirtyNameKey(each.dir, each.name);
    const absl::Status marked = store_->Get(Family::kQueue, key, &value);
    if (absl::IsNotFound(marked)) continue;
    CFS_RETURN_IF_ERROR(marked);
    CFS_ASSIGN_OR_RETURN(DirtyName mark, DecodeDirtyName(value));
    if (each == place && mark.next == ino) {
      mark.base = ino;
      mark.next = kNoInode;
      mark.next_number = 0;
    }
    if (mark.base != ino) continue;
    mark.stamp = identity.stamp;
    update.PutRaw(Family::kQueue, key, Encode(mark));
  }
  if (!record.ok()) return update.Commit();
  // What was staged in meanwhile has looked at it, too.
  if (record->layout != taken.record.layout || record->backing != taken.record.backing) {
    return PosixError(EAGAIN, "it was staged in meanwhile");
  }
  if (taken.data) {
    struct stat st;
    CFS_RETURN_IF_ERROR(MergeBacking(&*record));
    CFS_RETURN_IF_ERROR(chunks_->Stat(record->backing, &st));
    // Who had it open then may have written since it was read, and left no trace.
    const absl::Status found =
        store_->Get(Family::kQueue, QueueKey(QueueKind::kDirty, ino), &value);
    const bool same = found.ok() && value == EncodeBacking(BackingId(taken.version)) &&
                      !taken.has_writer && !HasWriterNow(open_.Find(ino)) &&
                      record->backing == taken.record.backing && st.st_ctim == taken.backing_ctime;
    identity.clean_ctime = same && !taken.soft ? st.st_ctim : timespec{};
  }
  // What is not here is as it is there.
  if (record->layout == Layout::kBackend) {
    record->size = identity.stamp.size;
    record->mtime = identity.stamp.mtime;
  }
  record->backend_identity = Encode(identity);
  update.PutInode(ino, *std::move(record));
  return update.Commit();
}

absl::Status LocalFileSystem::EndInode(InodeId ino, uint64_t version) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  const std::string key = QueueKey(QueueKind::kDirty, ino);
  std::string value;
  const absl::Status found = store_->Get(Family::kQueue, key, &value);
  if (absl::IsNotFound(found)) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(found);
  CFS_ASSIGN_OR_RETURN(const BackingId present, DecodeBacking(value));
  const auto again = [] { return PosixError(EAGAIN, "it has changed again"); };
  if (Raw(present) != version) return again();
  const auto record = shard_->GetInode(ino);
  if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
  if (record.ok() && record->nlink > 0) {
    if (record->backend_identity.empty()) return again();
    if (record->layout == Layout::kWhole) {
      struct stat st;
      CFS_RETURN_IF_ERROR(chunks_->Stat(record->backing, &st));
      if (HasWriterNow(open_.Find(ino))) return PosixError(EBUSY, "it has a writer");
      if (!IsClean(*record, st)) return again();
    }
  }
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteQueue(QueueKind::kDirty, ino);
  return update.Commit();
}

absl::Status LocalFileSystem::EndInodeSoftly(InodeId ino, uint64_t version,
                                             timespec backing_ctime) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  std::string value;
  const absl::Status found = store_->Get(Family::kQueue, QueueKey(QueueKind::kDirty, ino), &value);
  const auto again = [] { return PosixError(EAGAIN, "it has changed again"); };
  if (absl::IsNotFound(found)) return again();
  CFS_RETURN_IF_ERROR(found);
  CFS_ASSIGN_OR_RETURN(const BackingId present, DecodeBacking(value));
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard_->GetInode(ino));
  if (Raw(present) != version || record.nlink == 0 || record.layout != Layout::kWhole ||
      record.backend_identity.empty()) {
    return again();
  }
  if (HasWriterNow(open_.Find(ino))) return PosixError(EBUSY, "it has a writer");
  CFS_ASSIGN_OR_RETURN(BackendIdentity identity, DecodeBackendIdentity(record.backend_identity));
  struct stat st;
  CFS_RETURN_IF_ERROR(chunks_->Stat(record.backing, &st));
  if (!(st.st_ctim == backing_ctime) || static_cast<uint64_t>(st.st_size) != identity.stamp.size) {
    return again();
  }
  identity.clean_ctime = st.st_ctim;
  record.backend_identity = Encode(identity);
  Shard::Update update(shard_.get(), kAgreed);
  update.PutQueue(QueueKind::kStaged, ino, record.backing);
  update.DeleteQueue(QueueKind::kDirty, ino);
  update.PutInode(ino, std::move(record));
  return update.Commit();
}

absl::Status LocalFileSystem::ForgetRemoved(InodeId dir) {
  StripeLocks::Hold hold(&shard_->locks(), {dir});
  absl::StatusOr<InodeRecord> record = shard_->GetInode(dir);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(record.status());
  if (record->nlink > 0 || !record->IsDirectory()) return absl::OkStatus();
  record->backend_identity.clear();
  {
    MutexLock lock(&ghost_mutex_);
    if (ghosts_.contains(dir)) {
      // It goes when the kernel forgets it.
      Shard::Update update(shard_.get(), kAgreed);
      update.PutInode(dir, *std::move(record));
      return update.Commit();
    }
  }
  return EraseOrphan(dir, *record, /*marked=*/false);
}

absl::Status LocalFileSystem::AddImported(InodeId dir, std::vector<Imported> entries) {
  std::vector<std::string> names;
  for (Imported& entry : entries) {
    names.push_back(entry.name);
    std::vector<Imported> one;
    one.push_back(std::move(entry));
    CFS_RETURN_IF_ERROR(Import(dir, std::move(one), nullptr));
  }
  if (cache_ == nullptr) return absl::OkStatus();
  for (const std::string& name : names) cache_->NameChanged(dir, name);
  cache_->ListingChanged(dir);
  cache_->AttrUnstable(dir);
  return absl::OkStatus();
}

absl::Status LocalFileSystem::MoveAside(InodeId dir, absl::string_view name,
                                        absl::string_view aside, Imported theirs) {
  {
    StripeLocks::Hold hold(&shard_->locks(), {dir});
    const auto dentry = shard_->GetDentry(dir, name);
    if (!dentry.ok() && !absl::IsNotFound(dentry.status())) return dentry.status();
    Shard::Update update(shard_.get(), kAgreed);
    if (dentry.ok()) {
      const absl::Status taken = shard_->GetDentry(dir, aside).status();
      if (!absl::IsNotFound(taken)) return taken.ok() ? PosixError(EEXIST) : taken;
      update.DeleteDentry(dir, name);
      update.PutDentry(dir, aside, *dentry);
      DirtyName mark;
      mark.since = shard_->NextDirtyVersion();
      update.PutRaw(Family::kQueue, DirtyNameKey(dir, aside), Encode(mark));
    }
    CFS_RETURN_IF_ERROR(update.Commit());
  }
  std::vector<Imported> entries;
  entries.push_back(std::move(theirs));
  CFS_RETURN_IF_ERROR(AddImported(dir, std::move(entries)));
  if (cache_ != nullptr && !aside.empty()) cache_->NameChanged(dir, aside);
  // Only now: until theirs is here, the name is not what it is there.
  StripeLocks::Hold hold(&shard_->locks(), {dir});
  Shard::Update update(shard_.get(), kAgreed);
  update.DeleteRaw(Family::kQueue, DirtyNameKey(dir, name));
  return update.Commit();
}

absl::Status LocalFileSystem::SyncMetaNow() {
  Awaited<absl::Status> synced;
  syncer_->Sync([&synced](absl::Status status) { synced.Set(std::move(status)); });
  return synced.Get();
}

}  // namespace cfs
