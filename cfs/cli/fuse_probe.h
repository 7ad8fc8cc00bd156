// What the kernel's FUSE can do, found out with a mount that nobody else sees.
#ifndef CFS_CLI_FUSE_PROBE_H_
#define CFS_CLI_FUSE_PROBE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace cfs {

struct FuseProbe {
  uint32_t protocol_minor = 0;      // Of 7.x.
  bool offers_passthrough = false;  // Compiled in.
  bool offers_io_uring = false;     // Compiled in and switched on.
  int passthrough_errno = 0;        // Of registering a backing file; 0 when that worked.
};

// Mounts a file system in a mount namespace of a short-lived process, registers a
// nameless file of `directory` as a backing file, and ends. Needs CAP_SYS_ADMIN.
// REQUIRES: the calling process has one thread.
absl::StatusOr<FuseProbe> ProbeFuse(const std::string& directory);

}  // namespace cfs

#endif  // CFS_CLI_FUSE_PROBE_H_
