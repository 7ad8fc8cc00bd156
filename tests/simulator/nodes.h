// Whole nodes, as RunNode makes them but for the mount: a simulated disk for their
// records, files of the system's for data and for the map, and lives that end
// anywhere.
#ifndef CFS_TESTS_SIMULATOR_NODES_H_
#define CFS_TESTS_SIMULATOR_NODES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cfs/server/cluster_part.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/membership.h"
#include "tests/simulator/disk.h"
#include "tests/simulator/network.h"
#include "tests/simulator/scheduler.h"

namespace cfs {

class Nodes {
 public:
  struct Process {
    ProcessId id = kWorld;
    std::unique_ptr<Clock> clock;
    std::unique_ptr<ClusterPart> part;
    std::unique_ptr<Membership> membership;
    std::unique_ptr<LocalFileSystem> local;
    bool serving = false, ends = false;
  };
  struct Node {
    size_t index = 0;
    NodeId id{0};
    uint32_t weight = 0;
    std::string address, directory;
    SimulatedDisk disk;
    uint64_t storage_epoch = 1;
    std::shared_ptr<Process> process;  // Null: it is down.
    bool started = false;              // Ever.
  };
  struct Counts {
    uint64_t starts = 0, kills = 0, power_losses = 0, ends = 0;
  };

  // `directory` is empty. The first node makes the cluster.
  Nodes(Scheduler* scheduler, Network* net, std::string directory,
        const std::vector<uint32_t>& weights);

  // Learns of each process that serves, in a thread of it, and of power that is lost.
  std::function<void(Node*)> on_serving, on_power_loss;
  // Per mille, of fault points and of what is written.
  uint64_t death_at_point = 0;
  // See ClusterConfig.
  absl::Duration io_timeout = absl::Seconds(30);

  std::vector<std::unique_ptr<Node>>& all() { return nodes_; }
  const Counts& counts() const { return counts_; }
  void Start(Node* node);
  void Kill(Node* node, bool power_loss);
  // In good order; a thread of the node does it.
  void End(Node* node);
  // All are there, the map is what the ring wants, and nothing is under way: empty.
  // Otherwise, what is not.
  std::string Unrest();

 private:
  void Run(Node* node, const std::shared_ptr<Process>& process);
  absl::Status Begin(Node* node, Process* process);
  void At(ProcessId process, const char* point);
  // Who serves a slot has written down that it owns it.
  void CheckWritten(ProcessId process);

  Scheduler* const scheduler_;
  Network* const network_;
  Token token_;
  std::vector<std::unique_ptr<Node>> nodes_;
  ProcessId next_process_ = 1;
  Counts counts_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_NODES_H_
