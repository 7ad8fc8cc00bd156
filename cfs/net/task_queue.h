// Tasks from any thread for the one that owns the queue, which sleeps in epoll.
#ifndef CFS_NET_TASK_QUEUE_H_
#define CFS_NET_TASK_QUEUE_H_

#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "cfs/base/mutex.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

class TaskQueue {
 public:
  using Task = absl::AnyInvocable<void()>;

  // False, with the task dropped, when the queue was closed. Thread-safe.
  bool Submit(Task task);

  // The rest is the owner's, whom others wake only when it sleeps.

  // `number` is what `epoll` reports when there are tasks.
  absl::Status Open(int epoll, uint64_t number);
  // False when there were none.
  bool RunAll();
  bool empty();
  // From now on the first task wakes the owner; false, and nothing is changed,
  // when there are tasks.
  bool Sleep();
  // The opposite, and what has woken it is over.
  void WakeUp();
  // What was taken can still be run.
  void Close();

 private:
  UniqueFd event_;
  Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool asleep_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace cfs

#endif  // CFS_NET_TASK_QUEUE_H_
