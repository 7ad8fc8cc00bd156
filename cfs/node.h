// A node from start to end: store, file system, control socket and mount.
#ifndef CFS_NODE_H_
#define CFS_NODE_H_

#include <functional>

#include "absl/status/status.h"
#include "cfs/server/node_config.h"
#include "cfs/server/store_dir.h"

namespace cfs {

// Serves `store` at the mount point until it is unmounted. SIGTERM and SIGINT
// unmount lazily, a second one at once. Calls on_ready once, when the mount is
// usable. Nothing stays mounted after an error.
absl::Status RunNode(const NodeConfig& config, StoreDir store, std::function<void()> on_ready);

}  // namespace cfs

#endif  // CFS_NODE_H_
