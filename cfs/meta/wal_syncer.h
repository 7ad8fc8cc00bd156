// Group commit: callers that want durability share one WAL sync.
#ifndef CFS_META_WAL_SYNCER_H_
#define CFS_META_WAL_SYNCER_H_

#include <atomic>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"
#include "cfs/meta/store.h"

namespace cfs {

// Guarantees: a waiter is called after a sync that began when everything that
// its caller had applied was in the WAL. Without waiters the WAL is synced
// every kWalSyncMilliseconds if `MarkDirty` was called since.
// Thread-safe. Waiters run on the syncer's thread and must not block.
// Errors: a failed sync is sticky: what the kernel dropped cannot be synced
// again, so every later waiter gets the error too.
class WalSyncer {
 public:
  using Waiter = absl::AnyInvocable<void(absl::Status)>;

  explicit WalSyncer(Store* store);
  // Syncs once more and calls all waiters.
  ~WalSyncer();

  void Sync(Waiter waiter);
  // Something was applied. Relaxed: the syncer looks again within a second.
  void MarkDirty() { dirty_.store(true, std::memory_order_relaxed); }
  uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }

 private:
  void Run();

  Store* const store_;
  std::atomic<bool> dirty_{false};
  std::atomic<uint64_t> syncs_{0};
  Mutex mutex_;
  CondVar wake_;
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

}  // namespace cfs

#endif  // CFS_META_WAL_SYNCER_H_
