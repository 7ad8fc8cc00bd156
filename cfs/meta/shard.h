// The metadata that this node owns: typed records over a Store, with caches.
#ifndef CFS_META_SHARD_H_
#define CFS_META_SHARD_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/stripe_locks.h"
#include "cfs/base/types.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/store.h"
#include "cfs/meta/wal_syncer.h"

namespace cfs {

// Guarantees: a read returns what the last Update committed.
// Thread-safety: the caller holds the stripe lock of each inode (for dentries
// and buckets: of the directory) that it reads or updates; that is what keeps
// the caches equal to the store.
// Errors: NOT_FOUND for what is not there; DATA_LOSS for a malformed record.
class Shard {
 public:
  Shard(Store* store, WalSyncer* syncer);

  StripeLocks& locks() { return locks_; }
  Store* store() { return store_; }
  WalSyncer* syncer() { return syncer_; }

  absl::StatusOr<InodeRecord> GetInode(InodeId ino);
  // Reads what is not cached in one pass over the store, so that the GetInode of
  // each finds it. REQUIRES: the caller holds no stripe lock.
  void Prefetch(const std::vector<InodeId>& inos);
  absl::StatusOr<DentryRecord> GetDentry(InodeId dir, absl::string_view name);
  // `dir` is a directory.
  absl::StatusOr<BucketRecord> GetBucket(InodeId dir);
  absl::StatusOr<std::string> GetXattr(InodeId ino, absl::string_view name);
  absl::StatusOr<std::vector<std::string>> ListXattrs(InodeId ino);

  // Everything in the queue, for recovery.
  absl::Status ScanQueue(
      const std::function<void(QueueKind, InodeId, absl::string_view value)>& visit);

  // One operation's writes. Commit applies them atomically and brings the
  // caches up to date; without Commit nothing happens.
  class Update {
   public:
    explicit Update(Shard* shard) : shard_(shard) {}
    Update(const Update&) = delete;
    Update& operator=(const Update&) = delete;

    void PutInode(InodeId ino, InodeRecord record);
    void DeleteInode(InodeId ino);
    void PutDentry(InodeId dir, absl::string_view name, DentryRecord record);
    void DeleteDentry(InodeId dir, absl::string_view name);
    void PutBucket(InodeId dir, BucketRecord record);
    void DeleteBucket(InodeId dir);
    void PutXattr(InodeId ino, absl::string_view name, absl::string_view value);
    void DeleteXattr(InodeId ino, absl::string_view name);
    void PutQueue(QueueKind kind, InodeId ino, BackingId backing);
    void DeleteQueue(QueueKind kind, InodeId ino);
    void PutDoomed(BackingId backing);
    void DeleteDoomed(BackingId backing);
    void PutStoreState(const StoreState& state);

    bool empty() const { return writes_.empty(); }
    absl::Status Commit();

   private:
    Shard* const shard_;
    WriteSet writes_;
    std::vector<std::pair<InodeId, std::optional<InodeRecord>>> inodes_;
    std::vector<std::pair<InodeId, std::optional<BucketRecord>>> buckets_;
    std::vector<std::pair<std::pair<InodeId, std::string>, std::optional<DentryRecord>>> dentries_;
  };

 private:
  Store* const store_;
  WalSyncer* const syncer_;
  StripeLocks locks_;
  LruCache<InodeId, InodeRecord> inodes_;
  LruCache<InodeId, BucketRecord> buckets_;
  // kNoInode: there is no such name, which a LOOKUP before each CREATE asks.
  LruCache<std::pair<InodeId, std::string>, DentryRecord> dentries_;
};

}  // namespace cfs

#endif  // CFS_META_SHARD_H_
