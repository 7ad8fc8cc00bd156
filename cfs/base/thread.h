// The project's thread: std::thread, where no simulator takes its place.
#ifndef CFS_BASE_THREAD_H_
#define CFS_BASE_THREAD_H_

#include <thread>

#ifdef CFS_FAULT_POINTS
#include <functional>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/simulation.h"
#endif

namespace cfs {

#ifdef CFS_FAULT_POINTS
// What of std::thread we use. Thread-compatible.
class Thread {
 public:
  Thread() = default;
  explicit Thread(std::function<void()> body) {
    if (simulation != nullptr) {
      simulated_ = simulation->StartThread(std::move(body));
    } else {
      thread_ = std::thread(std::move(body));
    }
  }
  Thread(Thread&& other) noexcept
      : thread_(std::move(other.thread_)), simulated_(std::exchange(other.simulated_, 0)) {}
  Thread& operator=(Thread&& other) noexcept {
    CFS_CHECK(simulated_ == 0);
    thread_ = std::move(other.thread_);
    simulated_ = std::exchange(other.simulated_, 0);
    return *this;
  }
  ~Thread() { CFS_CHECK(simulated_ == 0); }

  bool joinable() const { return simulated_ != 0 || thread_.joinable(); }
  void join() {
    if (simulated_ == 0) return thread_.join();
    simulation->JoinThread(std::exchange(simulated_, 0));
  }

 private:
  std::thread thread_;
  uint64_t simulated_ = 0;
};
#else
using Thread = std::thread;
#endif

}  // namespace cfs

#endif  // CFS_BASE_THREAD_H_
