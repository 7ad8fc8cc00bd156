// A value that one thread waits for and another one gives it.
#ifndef CFS_BASE_AWAITED_H_
#define CFS_BASE_AWAITED_H_

#include <optional>
#include <utility>

#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"

namespace cfs {

// Thread-safe. May go as soon as Get has returned.
template <typename T>
class Awaited {
 public:
  // REQUIRES: called once.
  void Set(T value) {
    MutexLock lock(&mutex_);
    value_ = std::move(value);
    set_.Signal();
  }
  // REQUIRES: called once.
  T Get() {
    MutexLock lock(&mutex_);
    while (!value_.has_value()) set_.Wait(&mutex_);
    return *std::move(value_);
  }
  // Nothing when there is no value in time.
  std::optional<T> GetWithin(SteadyClock::duration time) {
    const SteadyClock::time_point end = SteadyClock::now() + time;
    MutexLock lock(&mutex_);
    while (!value_.has_value()) {
      const auto left = end - SteadyClock::now();
      if (left <= SteadyClock::duration::zero()) return std::nullopt;
      set_.WaitFor(&mutex_, left);
    }
    return std::move(value_);
  }

 private:
  Mutex mutex_;
  CondVar set_;
  std::optional<T> value_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_BASE_AWAITED_H_
