// The project's mutex: std::mutex (which ThreadSanitizer understands, unlike
// the uninstrumented absl::Mutex of a distribution) with clang's annotations. A
// simulator, where there is one, takes its place.
#ifndef CFS_BASE_MUTEX_H_
#define CFS_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "cfs/base/simulation.h"

namespace cfs {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) {
      simulation->Yield();
      return LockSimulated();
    }
#endif
    mutex_.lock();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) return UnlockSimulated();
#endif
    mutex_.unlock();
  }
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  friend class CondVar;
#ifdef CFS_FAULT_POINTS
  void LockSimulated() {
    while (held_) {
      ++waiters_;
      simulation->Sleep(this, Simulation::Instant::max());
      --waiters_;
    }
    held_ = true;
  }
  void UnlockSimulated() {
    held_ = false;
    if (waiters_ > 0) simulation->Wake(this, /*all=*/false);
  }

  // Of the simulated thread that runs.
  bool held_ = false;
  int waiters_ = 0;
#endif
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

// Of a mutex that may be null: then it holds nothing.
class MutexLockMaybe {
 public:
  explicit MutexLockMaybe(Mutex* mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS : mutex_(mutex) {
    if (mutex_ != nullptr) mutex_->Lock();
  }
  ~MutexLockMaybe() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (mutex_ != nullptr) mutex_->Unlock();
  }
  MutexLockMaybe(const MutexLockMaybe&) = delete;
  MutexLockMaybe& operator=(const MutexLockMaybe&) = delete;

 private:
  Mutex* const mutex_;
};

class CondVar {
 public:
  void Wait(Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) {
      WaitSimulated(mutex, Simulation::Instant::max());
      return;
    }
#endif
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // False after `timeout` without a signal.
  template <typename Duration>
  bool WaitFor(Mutex* mutex, Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) return WaitSimulated(mutex, simulation->Now() + timeout);
#endif
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    const bool signalled =
        cv_.wait_until(lock, WaitClock::now() + timeout) == std::cv_status::no_timeout;
    lock.release();
    return signalled;
  }
  void Signal() {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) return simulation->Wake(this, /*all=*/false);
#endif
    cv_.notify_one();
  }
  void SignalAll() {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) return simulation->Wake(this, /*all=*/true);
#endif
    cv_.notify_all();
  }

 private:
#ifdef CFS_FAULT_POINTS
  bool WaitSimulated(Mutex* mutex, Simulation::Instant end) {
    mutex->UnlockSimulated();
    const bool signalled = simulation->Sleep(this, end);
    mutex->LockSimulated();
    return signalled;
  }
#endif
#ifdef __SANITIZE_THREAD__
  // TSan of gcc 12 does not know pthread_cond_clockwait.
  using WaitClock = std::chrono::system_clock;
#else
  using WaitClock = std::chrono::steady_clock;
#endif

  std::condition_variable cv_;
};

}  // namespace cfs

#endif  // CFS_BASE_MUTEX_H_
