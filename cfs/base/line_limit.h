// Log lines about what others do to us: at most one a second, that a flood does
// not fill the disk.
#ifndef CFS_BASE_LINE_LIMIT_H_
#define CFS_BASE_LINE_LIMIT_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cfs/base/log.h"
#include "cfs/base/steady_clock.h"

namespace cfs {

// Thread-safe.
class LineLimit {
 public:
  // Each line ends with the number of those that were left out before it.
  void Log(LogLevel level, absl::string_view text) {
    const int64_t now =
        SteadyClock::now().time_since_epoch() / std::chrono::seconds(1);
    if (last_.exchange(now, std::memory_order_relaxed) == now) {
      suppressed_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const uint64_t suppressed = suppressed_.exchange(0, std::memory_order_relaxed);
    LogLine(level, absl::StrCat(text, " suppressed=", suppressed));
  }

 private:
  // Relaxed: two threads may both write a line, which harms nobody.
  std::atomic<int64_t> last_{-1};
  std::atomic<uint64_t> suppressed_{0};
};

}  // namespace cfs

#endif  // CFS_BASE_LINE_LIMIT_H_
