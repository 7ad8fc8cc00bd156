// A node from start to end: store, cluster, file system, control socket and mount.
#ifndef CFS_NODE_H_
#define CFS_NODE_H_

#include <functional>

#include "absl/status/status.h"
#include "cfs/server/node_config.h"
#include "cfs/server/store_dir.h"

namespace cfs {

// Serves `store` at the mount point until it is unmounted, or without one until
// it is told to end. SIGTERM and SIGINT unmount lazily, a second one at once; so
// does a cluster that has the node no more. Calls on_ready once, from any
// thread, when the node is usable and the nodes that are expected are up.
// Nothing stays mounted after an error.
absl::Status RunNode(const NodeConfig& config, StoreDir store, std::function<void()> on_ready);

}  // namespace cfs

#endif  // CFS_NODE_H_
