#include "cfs/meta/shard.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/request_scope.h"
#include "cfs/meta/snapshot.h"

namespace cfs {

Shard::Shard(Store* store, WalSyncer* syncer)
    : store_(store),
      syncer_(syncer),
      inodes_(kRecordCacheEntries),
      buckets_(kRecordCacheEntries / 4),
      dentries_(kRecordCacheEntries) {
  owned_.Set(SlotSet().set());
}

void Shard::Barrier() {
  for (size_t i = 0; i < kLockStripes; ++i) MutexLock lock(&locks_.At(i));
}

void Shard::Track(const std::vector<Slot>& slots) {
  MutexLock lock(&tracked_mutex_);
  for (const Slot slot : slots) tracked_slots_.set(Raw(slot));
  tracking_.store(true, std::memory_order_relaxed);
}

Shard::TrackedKeys Shard::TakeTracked() {
  MutexLock lock(&tracked_mutex_);
  tracking_.store(false, std::memory_order_relaxed);
  tracked_slots_.reset();
  return std::exchange(tracked_, {});
}

void Shard::Note(const WriteSet& writes) {
  if (!tracking_.load(std::memory_order_relaxed)) return;
  MutexLock lock(&tracked_mutex_);
  for (const WriteSet::Write& write : writes.writes()) {
    if (write.family == Family::kLocal || !tracked_slots_[Raw(SlotOfKey(write.key))]) continue;
    tracked_.emplace(write.family, write.key);
  }
}

void Shard::ClearCaches() {
  inodes_.Clear();
  buckets_.Clear();
  dentries_.Clear();
}

absl::Status Shard::CheckRead(Slot slot, absl::FunctionRef<std::string()> key) {
  if (!owned_.Has(slot)) return NotOwned();
  if (!key_locks_.none() && !key_locks_.MayRead(key())) return Busy();
  return absl::OkStatus();
}

absl::Status Shard::CheckWrites(const WriteSet& writes) {
  for (const WriteSet::Write& write : writes.writes()) {
    if (write.family == Family::kLocal) continue;
    if (!owned_.Has(SlotOfKey(write.key))) return NotOwned();
    if (write.family == Family::kRecords && !key_locks_.none() && !key_locks_.MayWrite(write.key)) {
      return Busy();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<InodeRecord> Shard::GetInode(InodeId ino) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOf(ino), [ino] { return InodeKey(ino); }));
  if (auto cached = inodes_.Get(ino)) return *std::move(cached);
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kRecords, InodeKey(ino), &value));
  CFS_ASSIGN_OR_RETURN(InodeRecord record, DecodeInode(value));
  inodes_.Put(ino, record);
  return record;
}

void Shard::Prefetch(const std::vector<InodeId>& inos) {
  std::vector<std::string> keys;
  for (InodeId ino : inos) {
    if (!inodes_.Get(ino)) keys.push_back(InodeKey(ino));
  }
  // The values warm the block cache; only GetInode, under the inode's lock, may
  // enter a record into ours.
  if (keys.size() > 1) store_->MultiGet(Family::kRecords, keys);
}

absl::StatusOr<DentryRecord> Shard::GetDentry(InodeId dir, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOf(dir), [dir, name] { return DentryKey(dir, name); }));
  if (over_backend_) {
    const auto record = GetInode(dir);
    if (record.ok() && (record->flags & kNotImported)) {
      return NeedsBackend({BackendNeed::kNames, dir});
    }
  }
  std::pair<InodeId, std::string> id(dir, std::string(name));
  if (const auto cached = dentries_.Get(id)) {
    if (cached->ino == kNoInode) return NotFound();
    return *cached;
  }
  std::string value;
  const absl::Status status = store_->Get(Family::kRecords, DentryKey(dir, name), &value);
  if (absl::IsNotFound(status)) dentries_.Put(std::move(id), {});
  CFS_RETURN_IF_ERROR(status);
  CFS_ASSIGN_OR_RETURN(DentryRecord record, DecodeDentry(value));
  dentries_.Put(id, record);
  return record;
}

absl::StatusOr<BucketRecord> Shard::GetBucket(InodeId dir) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOf(dir), [dir] { return BucketKey(dir, 0); }));
  if (const auto cached = buckets_.Get(dir)) return *cached;
  BucketRecord record;
  std::string value;
  const absl::Status status = store_->Get(Family::kRecords, BucketKey(dir, 0), &value);
  if (status.ok()) {
    CFS_ASSIGN_OR_RETURN(record, DecodeBucket(value));
  } else if (absl::IsNotFound(status)) {
    CFS_ASSIGN_OR_RETURN(const InodeRecord inode, GetInode(dir));
    record = EmptyBucket(inode);
  } else {
    return status;
  }
  buckets_.Put(dir, record);
  return record;
}

absl::StatusOr<std::string> Shard::GetXattr(InodeId ino, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOf(ino), [ino] { return InodeKey(ino); }));
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kRecords, XattrKey(ino, name), &value));
  return value;
}

absl::StatusOr<std::optional<std::string>> Shard::GetRaw(const std::string& key) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOfKey(key), [&key] { return key; }));
  std::string value;
  const absl::Status status = store_->Get(Family::kRecords, key, &value);
  if (absl::IsNotFound(status)) return std::optional<std::string>();
  CFS_RETURN_IF_ERROR(status);
  return value;
}

absl::StatusOr<std::vector<std::string>> Shard::ListXattrs(InodeId ino) {
  CFS_RETURN_IF_ERROR(CheckRead(SlotOf(ino), [ino] { return InodeKey(ino); }));
  std::vector<std::string> names;
  const std::string prefix = XattrPrefix(ino);
  CFS_RETURN_IF_ERROR(store_->Scan(Family::kRecords, prefix, prefix,
                                   [&](absl::string_view key, absl::string_view) {
                                     names.emplace_back(key.substr(prefix.size()));
                                     return true;
                                   }));
  return names;
}

absl::Status Shard::ScanQueue(
    const std::function<void(QueueKind, InodeId, absl::string_view)>& visit) {
  absl::Status result;
  CFS_RETURN_IF_ERROR(
      store_->Scan(Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
        QueueKind kind;
        InodeId ino;
        Slot slot;
        RequestId request;
        TransactionId transaction;
        absl::string_view name;
        if (ParseReplyKey(key, &slot, &request) || ParsePreparedKey(key, &slot, &transaction) ||
            ParseOutcomeKey(key, &transaction) || ParseDirtyNameKey(key, &ino, &name)) {
          return true;
        }
        if (!ParseQueueKey(key, &kind, &ino)) {
          result = absl::DataLossError("queue: malformed key");
          return false;
        }
        // What a slot has left behind is of no interest.
        if (Owns(SlotOf(ino))) visit(kind, ino, value);
        return true;
      }));
  return result;
}

absl::Status Shard::ScanReplies(const std::function<void(Slot, const RequestId&)>& visit) {
  return store_->Scan(Family::kQueue, "", "", [&](absl::string_view key, absl::string_view) {
    Slot slot;
    RequestId request;
    if (ParseReplyKey(key, &slot, &request) && Owns(slot)) visit(slot, request);
    return true;
  });
}

absl::StatusOr<InodeId> Shard::GetReply(Slot slot, const RequestId& request) {
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kQueue, ReplyKey(slot, request), &value));
  return DecodeInodeNumber(value);
}

absl::StatusOr<InodeId> Shard::GetForeign(BackingId backing) {
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kLocal, ForeignKey(backing), &value));
  return DecodeInodeNumber(value);
}

absl::Status Shard::ScanForeign(const std::function<void(BackingId)>& visit) {
  return store_->Scan(Family::kLocal, kForeignPrefix, kForeignPrefix,
                      [&](absl::string_view key, absl::string_view) {
                        BackingId backing;
                        if (ParseForeignKey(key, &backing)) visit(backing);
                        return true;
                      });
}

absl::Status Shard::Apply(Update* update) {
  CFS_RETURN_IF_ERROR(CheckWrites(update->writes_));
  if (writes_back() && update->purpose_ != Update::Purpose::kAgreed) {
    CFS_RETURN_IF_ERROR(MarkDirty(update));
  }
  RequestScope* const request =
      update->purpose_ == Update::Purpose::kRequested ? RequestScope::Current() : nullptr;
  if (request != nullptr) request->AddTo(update);
  const absl::Status status = store_->Apply(update->writes_);
  Note(update->writes_);
  if (status.ok() && request != nullptr) request->SetRecorded();
  // After a failure the store is asked again, whatever it did.
  for (auto& [ino, record] : update->inodes_) {
    if (status.ok() && record) {
      inodes_.Put(ino, *std::move(record));
    } else {
      inodes_.Erase(ino);
    }
  }
  for (const auto& [dir, record] : update->buckets_) {
    if (status.ok() && record) {
      buckets_.Put(dir, *record);
    } else {
      buckets_.Erase(dir);
    }
  }
  for (const auto& [id, record] : update->dentries_) {
    if (status.ok()) {
      dentries_.Put(id, record.value_or(DentryRecord()));
    } else {
      dentries_.Erase(id);
    }
  }
  if (status.ok() && syncer_ != nullptr) syncer_->MarkDirty();
  return status;
}

uint64_t Shard::NextDirtyVersion() {
  const timespec now = dirty_clock_->Now();
  const uint64_t wanted =
      static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  uint64_t last = dirty_version_.load(std::memory_order_relaxed);
  uint64_t next;
  do {
    next = std::max(wanted, last + 1);
  } while (!dirty_version_.compare_exchange_weak(last, next, std::memory_order_relaxed));
  return next;
}

absl::Status Shard::MarkNameDirty(InodeId dir, const std::string& name, bool put,
                                  Update* update) {
  if (put && dir == kRootInode && name == kBackendOwnName) return PosixError(EPERM);
  std::string key = DirtyNameKey(dir, name), value;
  const absl::Status marked = store_->Get(Family::kQueue, key, &value);
  if (!absl::IsNotFound(marked)) return marked;
  DirtyName mark;
  mark.since = NextDirtyVersion();
  const auto before = GetDentry(dir, name);
  if (!before.ok() && !absl::IsNotFound(before.status())) return before.status();
  if (before.ok()) {
    const auto record = GetInode(before->ino);
    if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
    if (record.ok() && !record->backend_identity.empty()) {
      CFS_ASSIGN_OR_RETURN(const BackendIdentity identity,
                           DecodeBackendIdentity(record->backend_identity));
      mark.base = before->ino;
      mark.stamp = identity.stamp;
    }
    const absl::Status pending =
        store_->Get(Family::kQueue, QueueKey(QueueKind::kPending, before->ino), &value);
    if (!pending.ok() && !absl::IsNotFound(pending)) return pending;
    if (pending.ok()) {
      CFS_ASSIGN_OR_RETURN(const BackingId number, DecodeBacking(value));
      mark.next = before->ino;
      mark.next_number = Raw(number);
    }
  }
  update->PutRaw(Family::kQueue, std::move(key), Encode(mark));
  return absl::OkStatus();
}

absl::Status Shard::MarkDirty(Update* update) {
  for (const auto& [id, record] : update->dentries_) {
    CFS_RETURN_IF_ERROR(MarkNameDirty(id.first, id.second, record.has_value(), update));
  }
  const auto mark = [&](InodeId ino) {
    update->PutQueue(QueueKind::kDirty, ino, BackingId(NextDirtyVersion()));
  };
  // Their times.
  for (const auto& [dir, record] : update->buckets_) {
    if (record) mark(dir);
  }
  for (const auto& [ino, record] : update->inodes_) {
    if (!record) {
      update->DeleteQueue(QueueKind::kDirty, ino);
      continue;
    }
    const auto before = GetInode(ino);
    if (!before.ok() && !absl::IsNotFound(before.status())) return before.status();
    if (!before.ok() || before->mode != record->mode || before->uid != record->uid ||
        before->gid != record->gid || before->size != record->size ||
        !(before->mtime == record->mtime) || (before->nlink == 0 && record->nlink > 0) ||
        std::ranges::find(update->xattrs_, ino) != update->xattrs_.end()) {
      mark(ino);
    }
  }
  return absl::OkStatus();
}

absl::Status Shard::ApplyUnchecked(const WriteSet& writes) {
  const absl::Status status = store_->Apply(writes);
  Note(writes);
  for (const WriteSet::Write& write : writes.writes()) {
    if (write.family == Family::kRecords) Forget(write.key);
  }
  if (status.ok() && syncer_ != nullptr) syncer_->MarkDirty();
  return status;
}

void Shard::Forget(absl::string_view key) {
  const InodeId ino = InodeOfKey(key);
  uint64_t hash;
  absl::string_view name;
  if (ParseDentryKey(key, &hash, &name)) return dentries_.Erase({ino, std::string(name)});
  inodes_.Erase(ino);
  buckets_.Erase(ino);
}

}  // namespace cfs
