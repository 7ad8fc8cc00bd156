// What `cfs mount` and `cfs serve` have in common: options, and the way to a
// process that runs a node.
#ifndef CFS_CLI_SERVE_OPTIONS_H_
#define CFS_CLI_SERVE_OPTIONS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cfs/cli/options.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/node_config.h"
#include "cfs/server/store_dir.h"

namespace cfs {

struct ServeOptions {
  NodeConfig config;
  std::string join;  // As given: a token or @FILE.
  bool foreground = false;
};

// --store, --foreground and those of the cluster; `options` outlives them.
std::vector<Option> CommonOptions(ServeOptions* options);

// Completes config.store_dir and config.cluster. Changes nothing on disk.
absl::Status ResolveServeOptions(ServeOptions* options);

// Runs the node, in the foreground or as a daemon, and says how others join a
// cluster that it makes. `prepare` runs before the node, with its store.
absl::Status RunServe(const ServeOptions& options, const RunNodeFn& run_node,
                      const std::function<absl::Status(const StoreDir&)>& prepare);

}  // namespace cfs

#endif  // CFS_CLI_SERVE_OPTIONS_H_
