// Nodes, network and time, simulated: everything happens in one thread, in an
// order that only the seed decides.
//
// What may go wrong. Network: a request or an answer is lost, is late, overtakes
// others, or is there twice, seconds after the first; but what was sent to a
// process reaches no later one. An ask whose answer is not there in time is
// UNAVAILABLE, whatever became of it. Nodes: killed or without power between any
// two events, and right after any write set was applied. Disks: see disk.h.
// Not simulated: errors of a disk, changes of who owns what, clocks that differ.
#ifndef CFS_TESTS_SIMULATOR_CLUSTER_H_
#define CFS_TESTS_SIMULATOR_CLUSTER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/clock.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/shard.h"
#include "cfs/server/transactor.h"
#include "tests/simulator/disk.h"
#include "tests/simulator/random.h"

namespace cfs {

using Microseconds = uint64_t;
inline constexpr Microseconds kMillisecond = 1000, kSecond = 1000 * kMillisecond;
inline constexpr uint32_t kNodes = 3;
inline constexpr uint16_t kUsedSlots = 9;

// The time that an operation has put on the records that it wrote: a number that
// no other run of an operation has.
using Stamp = uint64_t;
// What a write set's records have; nothing for one that writes none.
std::optional<Stamp> StampOf(const WriteSet& writes);

class Cluster final : private Clock {
 public:
  class Process;
  struct Node {
    NodeId id;
    SimulatedDisk disk;
    uint64_t incarnation = 0;
    std::unique_ptr<Process> process;  // Null: it is down.
    std::set<Stamp> lost;              // With the power.
  };
  // What goes wrong, per mille; all 0 is a good day.
  struct Weather {
    uint64_t loss = 0, twice = 0, late = 0, death = 0;
    Microseconds crash_interval = 0;  // 0: none.
  };
  struct Counts {
    uint64_t kills = 0, power_losses = 0, lost_messages = 0, copies = 0;
  };

  Cluster(uint64_t seed, bool verbose);
  ~Cluster();

  Random& random() { return random_; }
  Microseconds now() const { return now_; }
  void SetWeather(const Weather& weather);
  const Counts& counts() const { return counts_; }
  // `on_crash` learns of each node whose process is gone.
  void SetOnCrash(std::function<void(NodeId)> on_crash) { on_crash_ = std::move(on_crash); }
  // Learns of each stamp that is given out.
  void SetOnStamp(std::function<void(Stamp)> on_stamp) { on_stamp_ = std::move(on_stamp); }

  void After(Microseconds delay, std::function<void()> task);
  // Everything that happens in the next `duration`.
  void Run(Microseconds duration);

  static NodeId OwnerOf(Slot slot) { return NodeId(1 + Raw(slot) % kNodes); }
  Node& node(NodeId id) { return nodes_[Raw(id) - 1]; }
  std::array<Node, kNodes>& nodes() { return nodes_; }
  // Null when it is down, or just dying.
  Process* Alive(NodeId id);
  Namespace* NamesOf(NodeId id);
  Transactor* TransactorOf(NodeId id);
  bool HasLocks(NodeId id);

  void Start(Node* node);
  void Crash(Node* node, bool power_loss);

  // Nodes that the run of an operation which has the stamp asked to prepare writes.
  const std::set<NodeId>& AskedToWrite(Stamp stamp) { return asked_to_write_[stamp]; }
  // The first thing that must never happen, and did.
  const std::string& failure() const { return failure_; }
  void Fail(std::string what);

  template <typename... Args>
  void Trace(const Args&... args) {
    if (verbose_) TraceLine(absl::StrCat(args...));
  }

 private:
  timespec Now() override;
  void Deliver(NodeId to, uint64_t incarnation, std::function<void(Process*)> what);
  Microseconds Delay();
  void OnApply(Node* node, const WriteSet& writes);
  void TickLater(NodeId id);
  void CrashLater();
  void StartLater(Node* node);
  void TraceLine(const std::string& line);

  const bool verbose_;
  Random random_;
  Microseconds now_ = 0;
  uint64_t next_event_ = 0;
  std::map<std::pair<Microseconds, uint64_t>, std::function<void()>> events_;
  Weather weather_;
  uint64_t weather_number_ = 0;
  Stamp next_stamp_ = 1;
  Counts counts_;
  std::function<void(NodeId)> on_crash_;
  std::function<void(Stamp)> on_stamp_;
  std::map<Stamp, std::set<NodeId>> asked_to_write_;
  std::string failure_;
  std::array<Node, kNodes> nodes_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_CLUSTER_H_
