// The time that deadlines are about: std::chrono::steady_clock's, where no
// simulator has one of its own.
#ifndef CFS_BASE_STEADY_CLOCK_H_
#define CFS_BASE_STEADY_CLOCK_H_

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cfs/base/simulation.h"

namespace cfs {

struct SteadyClock {
  using duration = std::chrono::steady_clock::duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::steady_clock::time_point;
  static constexpr bool is_steady = true;

  static time_point now() {
#ifdef CFS_FAULT_POINTS
    if (simulation != nullptr) return simulation->Now();
#endif
    return std::chrono::steady_clock::now();
  }
};

// For deadlines that are absl::Times.
inline absl::Time WallNow() {
#ifdef CFS_FAULT_POINTS
  if (simulation != nullptr) {
    return absl::UnixEpoch() + absl::FromChrono(simulation->Now().time_since_epoch());
  }
#endif
  return absl::Now();
}

}  // namespace cfs

#endif  // CFS_BASE_STEADY_CLOCK_H_
