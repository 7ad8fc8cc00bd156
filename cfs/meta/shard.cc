#include "cfs/meta/shard.h"

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"

namespace cfs {

Shard::Shard(Store* store, WalSyncer* syncer)
    : store_(store),
      syncer_(syncer),
      inodes_(kRecordCacheEntries),
      buckets_(kRecordCacheEntries / 4),
      dentries_(kRecordCacheEntries) {}

absl::StatusOr<InodeRecord> Shard::GetInode(InodeId ino) {
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
  if (const auto cached = buckets_.Get(dir)) return *cached;
  BucketRecord record;
  std::string value;
  const absl::Status status = store_->Get(Family::kRecords, BucketKey(dir, 0), &value);
  if (status.ok()) {
    CFS_ASSIGN_OR_RETURN(record, DecodeBucket(value));
  } else if (absl::IsNotFound(status)) {
    CFS_ASSIGN_OR_RETURN(const InodeRecord inode, GetInode(dir));
    record.mtime = record.ctime = inode.btime;
  } else {
    return status;
  }
  buckets_.Put(dir, record);
  return record;
}

absl::StatusOr<std::string> Shard::GetXattr(InodeId ino, absl::string_view name) {
  std::string value;
  CFS_RETURN_IF_ERROR(store_->Get(Family::kRecords, XattrKey(ino, name), &value));
  return value;
}

absl::StatusOr<std::vector<std::string>> Shard::ListXattrs(InodeId ino) {
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
        if (!ParseQueueKey(key, &kind, &ino)) {
          result = absl::DataLossError("queue: malformed key");
          return false;
        }
        visit(kind, ino, value);
        return true;
      }));
  return result;
}

void Shard::Update::PutInode(InodeId ino, InodeRecord record) {
  writes_.Put(Family::kRecords, InodeKey(ino), Encode(record));
  inodes_.emplace_back(ino, std::move(record));
}

void Shard::Update::DeleteInode(InodeId ino) {
  writes_.Delete(Family::kRecords, InodeKey(ino));
  inodes_.emplace_back(ino, std::nullopt);
}

void Shard::Update::PutDentry(InodeId dir, absl::string_view name, DentryRecord record) {
  CFS_CHECK(record.ino != kNoInode);
  writes_.Put(Family::kRecords, DentryKey(dir, name), Encode(record));
  dentries_.emplace_back(std::make_pair(dir, std::string(name)), record);
}

void Shard::Update::DeleteDentry(InodeId dir, absl::string_view name) {
  writes_.Delete(Family::kRecords, DentryKey(dir, name));
  dentries_.emplace_back(std::make_pair(dir, std::string(name)), std::nullopt);
}

void Shard::Update::PutBucket(InodeId dir, BucketRecord record) {
  writes_.Put(Family::kRecords, BucketKey(dir, 0), Encode(record));
  buckets_.emplace_back(dir, record);
}

void Shard::Update::DeleteBucket(InodeId dir) {
  writes_.Delete(Family::kRecords, BucketKey(dir, 0));
  buckets_.emplace_back(dir, std::nullopt);
}

void Shard::Update::PutXattr(InodeId ino, absl::string_view name, absl::string_view value) {
  writes_.Put(Family::kRecords, XattrKey(ino, name), std::string(value));
}

void Shard::Update::DeleteXattr(InodeId ino, absl::string_view name) {
  writes_.Delete(Family::kRecords, XattrKey(ino, name));
}

void Shard::Update::PutQueue(QueueKind kind, InodeId ino, BackingId backing) {
  writes_.Put(Family::kQueue, QueueKey(kind, ino), EncodeBacking(backing));
}

void Shard::Update::DeleteQueue(QueueKind kind, InodeId ino) {
  writes_.Delete(Family::kQueue, QueueKey(kind, ino));
}

void Shard::Update::PutDoomed(BackingId backing) {
  writes_.Put(Family::kLocal, DoomedKey(backing), EncodeBacking(backing));
}

void Shard::Update::DeleteDoomed(BackingId backing) {
  writes_.Delete(Family::kLocal, DoomedKey(backing));
}

void Shard::Update::PutStoreState(const StoreState& state) {
  writes_.Put(Family::kLocal, kStoreStateKey, Encode(state));
}

absl::Status Shard::Update::Commit() {
  if (writes_.empty()) return absl::OkStatus();
  const absl::Status status = shard_->store_->Apply(writes_);
  // After a failure the store is asked again, whatever it did.
  for (auto& [ino, record] : inodes_) {
    if (status.ok() && record) {
      shard_->inodes_.Put(ino, *std::move(record));
    } else {
      shard_->inodes_.Erase(ino);
    }
  }
  for (const auto& [dir, record] : buckets_) {
    if (status.ok() && record) {
      shard_->buckets_.Put(dir, *record);
    } else {
      shard_->buckets_.Erase(dir);
    }
  }
  for (const auto& [id, record] : dentries_) {
    if (status.ok()) {
      shard_->dentries_.Put(id, record.value_or(DentryRecord()));
    } else {
      shard_->dentries_.Erase(id);
    }
  }
  if (status.ok()) shard_->syncer_->MarkDirty();
  return status;
}

}  // namespace cfs
