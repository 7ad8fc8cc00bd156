#include <memory>
#include <utility>

#include "cfs/base/status_macros.h"
#include "cfs/cli/serve_options.h"
#include "cfs/cli/verbs.h"

namespace cfs {

Verb ServeVerb(RunNodeFn run_node) {
  const auto options = std::make_shared<ServeOptions>();
  Verb verb;
  verb.name = "serve";
  verb.arguments_min = verb.arguments_max = 0;
  verb.summary = "Leaves a daemon that is a node of a cluster and has no mount.";
  verb.options = CommonOptions(options.get());
  verb.run = [options, run_node = std::move(run_node)](const auto&) -> absl::Status {
    CFS_RETURN_IF_ERROR(ResolveServeOptions(options.get()));
    return RunServe(*options, run_node, [](const StoreDir&) { return absl::OkStatus(); });
  };
  return verb;
}

}  // namespace cfs
