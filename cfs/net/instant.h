// Deadlines, on a clock that nobody sets.
#ifndef CFS_NET_INSTANT_H_
#define CFS_NET_INSTANT_H_

#include <algorithm>
#include <chrono>

#include "absl/time/time.h"
#include "cfs/base/steady_clock.h"

namespace cfs {

using Instant = SteadyClock::time_point;

inline Instant After(Instant start, absl::Duration duration) {
  // A year is for ever, and does not overflow.
  return start + absl::ToChronoNanoseconds(
                     std::clamp(duration, absl::ZeroDuration(), absl::Hours(24 * 365)));
}

}  // namespace cfs

#endif  // CFS_NET_INSTANT_H_
