// What one run of a node is asked to do; filled by the command line.
#ifndef CFS_SERVER_NODE_CONFIG_H_
#define CFS_SERVER_NODE_CONFIG_H_

#include <string>
#include <vector>

namespace cfs {

// kAuto uses what the machine has and says once what it has not; kOn refuses to
// run without it.
enum class Feature { kAuto, kOn, kOff };

// Who keeps flock and fcntl locks. kAuto is the kernel while the node is alone.
enum class LockMode { kAuto, kKernel, kDaemon };

struct NodeConfig {
  std::string store_dir;   // Absolute.
  std::string mountpoint;  // Absolute, without symbolic links.
  Feature io_uring = Feature::kAuto;
  Feature passthrough = Feature::kAuto;
  LockMode locks = LockMode::kAuto;
  std::vector<std::string> fuse_options;  // One option an element, as typed after -o.
};

}  // namespace cfs

#endif  // CFS_SERVER_NODE_CONFIG_H_
