// What went with nodes that were lost: how much, and what it was called.
#ifndef CFS_SERVER_LOSSES_H_
#define CFS_SERVER_LOSSES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/mutex.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_client.h"
#include "cfs/server/peer_format.h"

namespace cfs {

// Files whose data was at nodes that are lost, and names whose inode was. Each node
// counts in its own slots, and reads all that they have for it.
// Thread-safe.
class Losses {
 public:
  using MapFn = std::function<ClusterMapPtr()>;

  // None is owned; all outlive the last count.
  Losses(LocalFileSystem* local, PeerClient* peers, NodeId self, MapFn map)
      : local_(local), peers_(peers), self_(self), map_(std::move(map)) {}

  // Of this node's slots, for a peer. Waits for other nodes and for the device.
  absl::StatusOr<std::string> CountHere(absl::string_view arguments);

  // Counts at all nodes, in the background: to be asked until it is "ready", and begun
  // again when it is asked then. `names` is the whole file system.
  nlohmann::json Count(FileSystem* names, std::vector<NodeId> nodes);

 private:
  struct Report {
    uint64_t files = 0, names = 0;
    std::vector<uint64_t> silent;  // Nodes that did not answer.
    // Some of them; data lost, or inode.
    std::vector<std::string> paths_of_data, paths_of_inodes;
  };
  struct Counted;

  // Of the names, those whose inodes their owner does not have.
  void AskFor(NodeId owner, std::vector<std::pair<InodeId, std::string>> names,
              const std::vector<InodeId>& inodes, Counted* counted);
  absl::StatusOr<std::string> Ask(NodeId node, PeerOp op, std::string arguments);
  Report CountAll(FileSystem* names, const std::vector<NodeId>& nodes);

  LocalFileSystem* const local_;
  PeerClient* const peers_;
  const NodeId self_;
  const MapFn map_;

  Mutex mutex_;
  bool counting_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Report> report_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_SERVER_LOSSES_H_
