// The metadata that this node owns: typed records over a Store, with caches.
#ifndef CFS_META_SHARD_H_
#define CFS_META_SHARD_H_

#include <atomic>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/clock.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/slot_set.h"
#include "cfs/base/stripe_locks.h"
#include "cfs/base/types.h"
#include "cfs/meta/key_locks.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/records.h"
#include "cfs/meta/store.h"
#include "cfs/meta/wal_syncer.h"

namespace cfs {

// The records of the slots that the node owns; others are not read, and not
// written. The callers' stripe locks keep the caches equal to the store.
class Shard final : public Records {
 public:
  // Owns all slots, until it is told otherwise. `syncer` learns of each change;
  // null: whoever syncs the store knows by itself.
  Shard(Store* store, WalSyncer* syncer);

  StripeLocks& locks() override { return locks_; }
  Store* store() { return store_; }
  WalSyncer* syncer() { return syncer_; }

  // Directories may have names on the backend that nobody has looked for. REQUIRES:
  // before the first operation.
  void SetOverBackend() { over_backend_ = true; }
  // What changes is noted, in the same batch, as not on the backend yet: inodes (kDirty)
  // and names (DirtyName). REQUIRES: before the first operation; `clock` outlives it all.
  void SetWriteback(Clock* clock) { dirty_clock_ = clock; }
  bool writes_back() const { return dirty_clock_ != nullptr; }
  // Of a change now: ns since the epoch, and never twice.
  uint64_t NextDirtyVersion();
  // The last one that was given.
  uint64_t dirty_version() const { return dirty_version_.load(std::memory_order_relaxed); }

  bool Owns(Slot slot) const { return owned_.Has(slot); }
  SlotSet owned() const { return owned_.Get(); }
  // REQUIRES: nothing reads or writes the slots, or a Barrier follows.
  void SetOwned(Slot slot, bool owned) { owned_.Set(slot, owned); }
  void SetOwned(const SlotSet& owned) { owned_.Set(owned); }
  // What began before has ended. REQUIRES: the caller holds no stripe lock.
  void Barrier();
  // Notes what is written in the slots from now on, until they are taken. What
  // began before is noted, or has been written before a Barrier that follows.
  void Track(const std::vector<Slot>& slots);
  using TrackedKeys = std::set<std::pair<Family, std::string>>;
  TrackedKeys TakeTracked();
  // What slots that go, or have come, have left in the caches.
  void ClearCaches();
  // What prepared transactions have locked: IsBusy for whoever comes.
  KeyLocks& key_locks() { return key_locks_; }

  absl::StatusOr<InodeRecord> GetInode(InodeId ino) override;
  // Reads what is not cached in one pass over the store, so that the GetInode of
  // each finds it. REQUIRES: the caller holds no stripe lock.
  void Prefetch(const std::vector<InodeId>& inos);
  absl::StatusOr<DentryRecord> GetDentry(InodeId dir, absl::string_view name) override;
  absl::StatusOr<BucketRecord> GetBucket(InodeId dir) override;
  absl::StatusOr<std::string> GetXattr(InodeId ino, absl::string_view name) override;
  absl::StatusOr<std::vector<std::string>> ListXattrs(InodeId ino) override;
  // The bytes of a record; nothing if there is none.
  absl::StatusOr<std::optional<std::string>> GetRaw(const std::string& key);

  // Everything in the queue, for recovery.
  absl::Status ScanQueue(
      const std::function<void(QueueKind, InodeId, absl::string_view value)>& visit);
  absl::Status ScanReplies(const std::function<void(Slot, const RequestId&)>& visit);

  // What the request of a peer made, kNoInode for nothing new; NOT_FOUND if it
  // has changed nothing.
  absl::StatusOr<InodeId> GetReply(Slot slot, const RequestId& request);

  // The inode of another node's that has its data in this backing file, kNoInode
  // if it is not known yet whether there is one.
  absl::StatusOr<InodeId> GetForeign(BackingId backing);
  absl::Status ScanForeign(const std::function<void(BackingId)>& visit);

  // Writes whatever is locked, with `update`, which it is for a transaction to
  // do. The caches lose what it touches.
  absl::Status ApplyUnchecked(const WriteSet& writes);

 private:
  absl::Status Apply(Update* update) override;
  // Whether the slot's record may be read, or written, now.
  absl::Status CheckRead(Slot slot, absl::FunctionRef<std::string()> key);
  absl::Status CheckWrites(const WriteSet& writes);
  absl::Status MarkDirty(Update* update);
  absl::Status MarkNameDirty(InodeId dir, const std::string& name, bool put, Update* update);
  void Forget(absl::string_view key);
  void Note(const WriteSet& writes);

  Store* const store_;
  WalSyncer* const syncer_;
  StripeLocks locks_;
  bool over_backend_ = false;
  Clock* dirty_clock_ = nullptr;
  // Relaxed: all that counts is that none is given twice.
  std::atomic<uint64_t> dirty_version_{0};
  AtomicSlotSet owned_;
  // Relaxed: see Track.
  std::atomic<bool> tracking_{false};
  Mutex tracked_mutex_;
  SlotSet tracked_slots_ ABSL_GUARDED_BY(tracked_mutex_);
  TrackedKeys tracked_ ABSL_GUARDED_BY(tracked_mutex_);
  KeyLocks key_locks_;
  LruCache<InodeId, InodeRecord> inodes_;
  LruCache<InodeId, BucketRecord> buckets_;
  // kNoInode: there is no such name, which a LOOKUP before each CREATE asks.
  LruCache<std::pair<InodeId, std::string>, DentryRecord> dentries_;
};

}  // namespace cfs

#endif  // CFS_META_SHARD_H_
