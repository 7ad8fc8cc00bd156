// Wall-clock stamps for inodes.
#ifndef CFS_BASE_CLOCK_H_
#define CFS_BASE_CLOCK_H_

#include <ctime>

namespace cfs {

inline bool operator<(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}
inline bool operator==(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

// Gives the time of an operation. Implementations are thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual timespec Now() = 0;
};

// The coarse clock, as the kernel's file systems use it: a stamp of ours is
// never later than one that the kernel puts on a backing file afterwards.
class RealClock final : public Clock {
 public:
  timespec Now() override {
    timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return now;
  }
};

}  // namespace cfs

#endif  // CFS_BASE_CLOCK_H_
