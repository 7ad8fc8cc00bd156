#include "cfs/tier/io_pool.h"

#include <utility>

#include "cfs/base/thread_name.h"

namespace cfs {

IoPool::IoPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

IoPool::~IoPool() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  for (Thread& thread : threads_) thread.join();
}

void IoPool::Run(absl::AnyInvocable<void()> task) {
  {
    MutexLock lock(&mutex_);
    tasks_.push_back(std::move(task));
  }
  // Whoever wakes up wants the mutex.
  wake_.Signal();
}

void IoPool::Drain() {
  MutexLock lock(&mutex_);
  while (!tasks_.empty() || running_ > 0) idle_.Wait(&mutex_);
}

void IoPool::Work() {
  NameThread("cfs-io");
  for (;;) {
    absl::AnyInvocable<void()> task;
    {
      MutexLock lock(&mutex_);
      while (tasks_.empty() && !stopping_) wake_.Wait(&mutex_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      ++running_;
    }
    task();
    task = nullptr;
    MutexLock lock(&mutex_);
    --running_;
    if (tasks_.empty() && running_ == 0) idle_.SignalAll();
  }
}

}  // namespace cfs
