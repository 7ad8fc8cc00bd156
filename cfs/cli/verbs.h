// The command line: `cfs VERB [OPTION]... [ARGUMENT]...`, one file a verb.
#ifndef CFS_CLI_VERBS_H_
#define CFS_CLI_VERBS_H_

#include <functional>

#include "absl/status/status.h"
#include "cfs/cli/options.h"
#include "cfs/server/node_config.h"
#include "cfs/server/store_dir.h"

namespace cfs {

// Serves `store` until it is unmounted or the process is told to end; calls
// on_ready once, from any thread, when the node is usable.
using RunNodeFn = std::function<absl::Status(const NodeConfig& config, StoreDir store,
                                             std::function<void()> on_ready)>;

Verb MountVerb(RunNodeFn run_node);
Verb ServeVerb(RunNodeFn run_node);
Verb UmountVerb();
Verb StopVerb();
Verb StatusVerb();
Verb NodesVerb();
Verb TokenVerb();
Verb StatVerb();
Verb StageInVerb();
Verb EvictVerb();
Verb RefreshVerb();
Verb SyncVerb();
Verb FsckVerb();
Verb DoctorVerb();
Verb VersionVerb();

// Runs what `argv` asks for; returns the exit code. An error is one line on
// stderr.
int RunCli(int argc, char** argv, RunNodeFn run_node);

}  // namespace cfs

#endif  // CFS_CLI_VERBS_H_
