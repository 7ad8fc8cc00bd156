// Threads for what may wait for a device.
#ifndef CFS_TIER_IO_POOL_H_
#define CFS_TIER_IO_POOL_H_

#include <deque>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"

namespace cfs {

// Guarantees: tasks start in order; all tasks run before the destructor
// returns. Thread-safe. The queue is as long as the number of requests that
// the kernel has outstanding, which it bounds.
class IoPool {
 public:
  explicit IoPool(int threads);
  ~IoPool();

  void Run(absl::AnyInvocable<void()> task);
  // Returns when no task waits or runs.
  void Drain();

 private:
  void Work();

  Mutex mutex_;
  CondVar wake_;
  std::deque<absl::AnyInvocable<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  CondVar idle_;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Thread> threads_;
};

}  // namespace cfs

#endif  // CFS_TIER_IO_POOL_H_
