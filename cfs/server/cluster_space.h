// How much room the nodes of a cluster have.
#ifndef CFS_SERVER_CLUSTER_SPACE_H_
#define CFS_SERVER_CLUSTER_SPACE_H_

#include <sys/statvfs.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_client.h"

namespace cfs {

// Asks all nodes that store files and are up: each second while somebody wants to
// know, and not at all otherwise. One that does not answer counts for some seconds
// more.
// Thread-safe. Cost: a call to each node a second, for ten seconds after the last
// who wanted to know.
class ClusterSpace {
 public:
  using MapFn = std::function<ClusterMapPtr()>;

  // All outlive the client's last request.
  ClusterSpace(LocalFileSystem* local, PeerClient* peers, NodeId self, MapFn map)
      : local_(local), peers_(peers), self_(self), map_(std::move(map)) {}

  // Runs `task` when it is known: at once if somebody has wanted to know of late,
  // else when all have answered, or a second later.
  void WhenKnown(absl::AnyInvocable<void()> task);
  // Of all nodes together, as far as they have answered.
  absl::StatusOr<struct statvfs> Sum();

  // Another node for a new file, by chance, each in proportion to its room for
  // files; with `anywhere`, to all that is free there. Nothing: no node has any.
  std::optional<NodeId> Choose(const absl::flat_hash_set<NodeId>& except, bool anywhere);

  // To be called twice a second.
  void Tick();
  // Nothing waits any more.
  void Stop() { EndRound(/*anyway=*/true); }

 private:
  using Clock = SteadyClock;
  struct Node {
    struct statvfs space {};
    Clock::time_point answered;
    bool asked = false;  // And has not answered.
  };

  void Ask();
  void Answered(NodeId node, const struct statvfs* space);
  // When all have answered, or anyway.
  void EndRound(bool anyway);
  // What other nodes have answered of late.
  std::vector<std::pair<NodeId, struct statvfs>> Known();

  LocalFileSystem* const local_;
  PeerClient* const peers_;
  const NodeId self_;
  const MapFn map_;

  Mutex mutex_;
  absl::flat_hash_map<NodeId, Node> nodes_ ABSL_GUARDED_BY(mutex_);
  // Of the round of questions under way.
  absl::flat_hash_set<NodeId> awaited_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::AnyInvocable<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
  // When the last round began and ended, and when somebody wanted to know.
  Clock::time_point began_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point ended_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point wanted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_SPACE_H_
