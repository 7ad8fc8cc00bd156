// The counter of inode and backing numbers, and the other facts about a store
// that outlive a run.
#ifndef CFS_META_STORE_STATE_H_
#define CFS_META_STORE_STATE_H_

#include <memory>

#include "cfs/base/mutex.h"
#include "cfs/meta/shard.h"

namespace cfs {

// Guarantees: a number is given out once in the life of a store, also across
// power loss: numbers are reserved in blocks that are synced before use.
// Thread-safe.
class StoreStateKeeper {
 public:
  // Loads or creates the state, notes that the store is in use, and syncs.
  static absl::StatusOr<std::unique_ptr<StoreStateKeeper>> Open(Shard* shard);

  // Whether the last run ended in good order (true for a new store).
  bool was_clean() const { return was_clean_; }
  bool is_new() const { return is_new_; }
  // What the last run left: numbers in [first, second) may be files that no
  // record names.
  std::pair<uint64_t, uint64_t> unsettled() const { return unsettled_; }
  uint32_t attr_epoch() const { return attr_epoch_; }

  // What is to be added to a fresh number to make an inode counter of it.
  uint64_t inode_lead() {
    MutexLock lock(&mutex_);
    return state_.inode_lead;
  }
  // An inode counter above all that were given out.
  uint64_t inode_end() {
    MutexLock lock(&mutex_);
    return state_.counter_end + state_.inode_lead;
  }
  // From now on, and after power loss, inode counters are at least `first`.
  absl::Status RaiseInodes(uint64_t first);
  // A fresh number. Waits for a synced commit only if TopUp has not kept up.
  absl::StatusOr<uint64_t> Next();
  // Reserves the next block when less than half of one is left. Called by a
  // background thread.
  absl::Status TopUp();
  // Backing numbers below `settled` are referenced, doomed or gone.
  absl::Status SetSettled(uint64_t settled);
  // The run ends in good order. REQUIRES: nothing is written afterwards.
  absl::Status MarkClean();

 private:
  explicit StoreStateKeeper(Shard* shard) : shard_(shard) {}
  absl::Status ReserveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteLocked(bool sync) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Shard* const shard_;
  bool was_clean_ = true;
  bool is_new_ = false;
  std::pair<uint64_t, uint64_t> unsettled_{0, 0};
  uint32_t attr_epoch_ = 1;
  Mutex mutex_;
  StoreState state_ ABSL_GUARDED_BY(mutex_);       // As last written.
  uint64_t usable_end_ ABSL_GUARDED_BY(mutex_) = 0;  // What of it is synced.
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace cfs

#endif  // CFS_META_STORE_STATE_H_
