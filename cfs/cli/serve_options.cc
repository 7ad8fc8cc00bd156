#include "cfs/cli/serve_options.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/daemon.h"
#include "cfs/server/cluster_words.h"

namespace cfs {
namespace {

absl::Status Serve(const ServeOptions& options, const RunNodeFn& run_node,
                   const std::function<absl::Status(const StoreDir&)>& prepare,
                   std::function<void()> on_ready) {
  const std::string& join = options.config.cluster.join;
  CFS_ASSIGN_OR_RETURN(StoreDir store, StoreDir::Open(options.config.store_dir,
                                                      join.empty() ? "" : ClusterOfToken(join)));
  const std::string& log = options.config.log_file;
  if (!log.empty()) CFS_RETURN_IF_ERROR(DetachFromTerminal(log));
  CFS_RETURN_IF_ERROR(prepare(store));
  return run_node(options.config, std::move(store), std::move(on_ready));
}

// On the terminal of whoever made a cluster.
void SayHowToJoin(const NodeConfig& config) {
  if (config.cluster.listen.empty() || !config.cluster.join.empty()) return;
  printf("others join with --join @FILE, where FILE has what `cfs token --store %s` prints\n",
         config.store_dir.c_str());
  fflush(stdout);
}

}  // namespace

std::vector<Option> CommonOptions(ServeOptions* options) {
  NodeConfig* const config = &options->config;
  ClusterConfig* const cluster = &config->cluster;
  return {
      {"store", 0, "DIR", "keep the data in DIR (default: $CFS_STORE, else /var/lib/cfs for root)",
       [=](const std::string& value) {
         config->store_dir = value;
         return !value.empty();
       }},
      Flag("foreground", 'f', "stay in the foreground and log to stderr", &options->foreground),
      {"listen", 0, "HOST[:PORT]",
       "be reached by other nodes there; without --join, make a cluster",
       [=](const std::string& value) { return ParseListen(value, &cluster->listen); }},
      {"join", 0, "TOKEN|@FILE", "join the cluster of a token, or of that in FILE (or $CFS_TOKEN)",
       [=](const std::string& value) {
         options->join = value;
         return !value.empty();
       }},
      {"weight", 0, "WEIGHT", "share of the metadata, 0 for none (default: 100)",
       [=](const std::string& value) {
         uint32_t weight;
         if (!absl::SimpleAtoi(value, &weight) || weight > kNodeWeightMax) return false;
         cluster->weight = weight;
         return true;
       }},
      {"expect", 0, "NODES", "be ready only when this many nodes are up",
       [=](const std::string& value) {
         return absl::SimpleAtoi(value, &cluster->expect) && cluster->expect > 0 &&
                cluster->expect <= kClusterNodesMax;
       }},
      {"transports", 0, "LIST", "what UCX may use, as in UCX_TLS",
       [=](const std::string& value) {
         cluster->transports = value;
         return !value.empty();
       }},
      {"io-timeout", 0, "SECONDS", "when a node does not answer, fail after this (default: 30)",
       [=](const std::string& value) {
         double seconds;
         if (!absl::SimpleAtod(value, &seconds) || !(seconds > 0 && seconds <= 86'400)) {
           return false;
         }
         cluster->io_timeout = absl::Seconds(seconds);
         return true;
       }},
  };
}

absl::Status ResolveServeOptions(ServeOptions* options) {
  NodeConfig& config = options->config;
  if (config.store_dir.empty()) {
    CFS_ASSIGN_OR_RETURN(config.store_dir, DefaultStorePath());
  }
  CFS_ASSIGN_OR_RETURN(config.store_dir, ResolveStorePath(config.store_dir));
  if (!options->foreground) config.log_file = config.store_dir + "/cfs.log";
  const char* const token = getenv("CFS_TOKEN");
  if (!options->join.empty()) {
    CFS_ASSIGN_OR_RETURN(config.cluster.join, ReadToken(options->join));
  } else if (token != nullptr && *token != '\0') {
    auto text = ReadToken(token);
    if (!text.ok()) {
      return absl::Status(text.status().code(),
                          absl::StrCat("CFS_TOKEN: ", text.status().message()));
    }
    config.cluster.join = *std::move(text);
  }
  return absl::OkStatus();
}

absl::Status RunServe(const ServeOptions& options, const RunNodeFn& run_node,
                      const std::function<absl::Status(const StoreDir&)>& prepare) {
  const NodeConfig& config = options.config;
  if (options.foreground) {
    return Serve(options, run_node, prepare, [&config] { SayHowToJoin(config); });
  }
  CFS_RETURN_IF_ERROR(RunAsDaemon(config.log_file, [&](std::function<void()> on_ready) {
    return Serve(options, run_node, prepare, std::move(on_ready));
  }));
  SayHowToJoin(config);
  return absl::OkStatus();
}

}  // namespace cfs
