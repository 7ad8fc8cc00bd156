// What one run of a node is asked to do; filled by the command line.
#ifndef CFS_SERVER_NODE_CONFIG_H_
#define CFS_SERVER_NODE_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace cfs {

// kAuto uses what the machine has and says once what it has not; kOn refuses to
// run without it.
enum class Feature { kAuto, kOn, kOff };

// Who keeps flock and fcntl locks. kAuto is the kernel while the node is alone.
enum class LockMode { kAuto, kKernel, kDaemon };

// The node's part in a cluster. What is not given is as the store remembers it;
// a store that remembers nothing is alone.
struct ClusterConfig {
  std::string join;                // A token.
  std::string listen;              // "HOST:PORT"; port 0 takes a free one.
  std::optional<uint32_t> weight;  // 0: a client, which owns no slots.
  size_t expect = 0;               // Ready when this many nodes are up.
  std::string transports;          // As UCX_TLS; "" for the default.
  // How long a call may take before it fails with EIO.
  absl::Duration io_timeout = absl::Seconds(30);
};

// In the store, when `cfs stop` has ended and something is not on the backend: how much.
inline constexpr char kUnflushedFile[] = "unflushed";

struct NodeConfig {
  std::string store_dir;   // Absolute.
  std::string mountpoint;  // Absolute, without symbolic links; "": none.
  std::string log_file;    // Absolute: LogToFile was called for it. Else empty.
  ClusterConfig cluster;
  std::string backend;     // Absolute, without symbolic links; "": none.
  bool backend_readonly = false;
  uint64_t backend_store_bytes = 0;  // Of files that the store keeps; 0: what fits.
  // What was looked at there longer ago is looked at again when it is used; zero: never.
  absl::Duration backend_ttl;
  Feature io_uring = Feature::kAuto;
  Feature passthrough = Feature::kAuto;
  LockMode locks = LockMode::kAuto;
  std::vector<std::string> fuse_options;  // One option an element, as typed after -o.
};

}  // namespace cfs

#endif  // CFS_SERVER_NODE_CONFIG_H_
