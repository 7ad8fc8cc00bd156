// Runs the threads of simulated nodes one at a time, in an order and at times that
// only the seed decides.
//
// A simulated thread is a thread of the system that runs while it has the baton. It
// may lose it wherever it asks for a lock, waits, or is at a fault point; threads are
// slow now and then. Time passes when nobody can run, and a little with each step.
// What belongs to a process ends with it, wherever its threads are: they never run
// again, and nothing that they have is freed.
#ifndef CFS_TESTS_SIMULATOR_SCHEDULER_H_
#define CFS_TESTS_SIMULATOR_SCHEDULER_H_

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/simulation.h"
#include "tests/simulator/random.h"

namespace cfs {

// One life of a node. 0: the world, which does not end.
using ProcessId = uint32_t;
inline constexpr ProcessId kWorld = 0;

class Scheduler final : public Simulation {
 public:
  struct Options {
    uint64_t seed = 1;
    bool verbose = false;
    // Mean number of points passed before others may run.
    uint64_t stride = 8;
    // Per mille of the times that others may run: the thread is slow.
    uint64_t slow = 0;
    std::chrono::nanoseconds slow_max{0};
  };

  // The calling thread becomes the world's first one.
  explicit Scheduler(const Options& options);

  // Threads belong to the process of who starts them, but for these.
  void Spawn(ProcessId process, std::function<void()> body);
  // Does not return if the calling thread is of the process.
  void Kill(ProcessId process);
  ProcessId process() const { return current_->process; }
  // At fault points of processes; may kill them.
  void SetAt(std::function<void(ProcessId, const char*)> at) { at_ = std::move(at); }

  // Of the calling thread.
  void SleepFor(std::chrono::nanoseconds time) { Sleep(nullptr, now_ + time); }
  // Of what happens outside of the nodes' code.
  Random& random() { return random_; }
  double seconds() const {
    return std::chrono::duration<double>(now_.time_since_epoch()).count() - kStart.count();
  }
  // Of all that has happened so far.
  uint64_t hash() const { return hash_; }
  uint64_t switches() const { return switches_; }

  template <typename... Args>
  void Trace(const Args&... args) {
    if (verbose_) TraceLine(absl::StrCat(args...));
  }
  // The seed has found something. Ends this process of the system.
  [[noreturn]] void Fail(const std::string& what);
  // What Fail calls, to tell who waits for it.
  void SetOnFail(std::function<void(const std::string&)> on_fail) {
    on_fail_ = std::move(on_fail);
  }

  // Simulation:
  void Yield() override;
  bool Sleep(const void* place, Instant end) override;
  void Wake(const void* place, bool all) override;
  void At(const char* fault_point) override;
  uint64_t StartThread(std::function<void()> body) override;
  void JoinThread(uint64_t thread) override;
  Instant Now() override { return now_; }
  uint64_t RandomNumber() override { return random_.Next(); }

 private:
  // Not 0, which some take for never.
  static constexpr std::chrono::seconds kStart{1'000'000'000};

  struct SimulatedThread {
    uint64_t id = 0;
    ProcessId process = kWorld;
    std::function<void()> body;
    std::atomic<int> baton{0};
    pthread_t pthread{};
    // While it sleeps.
    const void* place = nullptr;
    Instant end = Instant::max();
    bool sleeps = false, woken = false, ended = false, dead = false;
  };

  SimulatedThread* Make(ProcessId process, std::function<void()> body);
  static void* Enter(void* thread);
  static void GiveBaton(SimulatedThread* to);
  static void AwaitBaton(SimulatedThread* self);
  // Another one runs until somebody has made this one run again.
  void SwitchAway();
  // After which the thread has the baton.
  void Arrived();
  SimulatedThread* Next();
  void WakeThread(SimulatedThread* thread, bool woken);
  void Unlist(SimulatedThread* thread);
  void TraceLine(const std::string& line);

  const bool verbose_;
  Random random_;
  const Options options_;
  Instant now_ = Instant(kStart);
  uint64_t points_left_ = 1;
  uint64_t switches_ = 0;
  uint64_t hash_ = 0;
  std::vector<std::unique_ptr<SimulatedThread>> threads_;  // By id - 1.
  SimulatedThread* current_ = nullptr;
  std::vector<SimulatedThread*> runnable_;
  std::unordered_map<const void*, std::vector<SimulatedThread*>> sleepers_;
  std::set<std::pair<Instant, uint64_t>> timers_;
  std::optional<pthread_t> ended_;  // Whom the next one to run waits for.
  std::function<void(ProcessId, const char*)> at_;
  std::function<void(const std::string&)> on_fail_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_SCHEDULER_H_
