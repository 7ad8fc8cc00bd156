// Where a simulator takes over what decides the order of things: threads, locks,
// time and chance. Only in programs that are built with fault points.
#ifndef CFS_BASE_SIMULATION_H_
#define CFS_BASE_SIMULATION_H_

#ifdef CFS_FAULT_POINTS
#include <chrono>
#include <cstdint>
#include <functional>

namespace cfs {

// One of its threads runs at a time; another one may only where one of these is
// called.
class Simulation {
 public:
  using Instant = std::chrono::steady_clock::time_point;

  virtual ~Simulation() = default;

  // Lets others run, or not.
  virtual void Yield() = 0;
  // Until somebody wakes those who sleep at `place`; false: until `end`, before that.
  virtual bool Sleep(const void* place, Instant end) = 0;
  // One of those who sleep there, or all.
  virtual void Wake(const void* place, bool all) = 0;
  // The thread is at the fault point.
  virtual void At(const char* fault_point) = 0;

  // Never 0.
  virtual uint64_t StartThread(std::function<void()> body) = 0;
  virtual void JoinThread(uint64_t thread) = 0;

  virtual Instant Now() = 0;
  virtual uint64_t RandomNumber() = 0;
};

// Null: threads are the system's. Set before there are any but one.
inline Simulation* simulation = nullptr;

}  // namespace cfs
#endif

#endif  // CFS_BASE_SIMULATION_H_
