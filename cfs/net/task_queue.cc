#include "cfs/net/task_queue.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/error.h"

namespace cfs {

absl::Status TaskQueue::Open(int epoll, uint64_t number) {
  event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = number}};
  if (!event_.valid() || epoll_ctl(epoll, EPOLL_CTL_ADD, event_.get(), &event) != 0) {
    return ErrnoStatus("task queue");
  }
  return absl::OkStatus();
}

bool TaskQueue::Submit(Task task) {
  MutexLock lock(&mutex_);
  if (closed_) return false;
  tasks_.push_back(std::move(task));
  if (asleep_ && !woken_) {
    woken_ = true;
    CFS_CHECK(eventfd_write(event_.get(), 1) == 0);
  }
  return true;
}

bool TaskQueue::RunAll() {
  std::vector<Task> tasks;
  {
    MutexLock lock(&mutex_);
    tasks.swap(tasks_);
  }
  for (Task& task : tasks) task();
  return !tasks.empty();
}

bool TaskQueue::empty() {
  MutexLock lock(&mutex_);
  return tasks_.empty();
}

bool TaskQueue::Sleep() {
  MutexLock lock(&mutex_);
  asleep_ = tasks_.empty();
  return asleep_;
}

void TaskQueue::WakeUp() {
  MutexLock lock(&mutex_);
  asleep_ = false;
  if (!std::exchange(woken_, false)) return;
  eventfd_t count;
  eventfd_read(event_.get(), &count);
}

void TaskQueue::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
}

}  // namespace cfs
