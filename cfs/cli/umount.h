// Ending a mount, for the verbs that do.
#ifndef CFS_CLI_UMOUNT_H_
#define CFS_CLI_UMOUNT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/cli/mounts.h"

namespace cfs {

// The cfs mount whose mount point is `path`, also when its process is dead.
// Errors: NOT_FOUND when it is none.
absl::StatusOr<MountEntry> CfsMountAt(const std::string& path);

// Unmounts and waits until the process has ended. A mount whose process is dead
// is taken away, also while it is in use. Errors: ABORTED in use;
// DEADLINE_EXCEEDED when it is unmounted, but the process goes on.
absl::Status UnmountAndWait(const MountEntry& mount);

}  // namespace cfs

#endif  // CFS_CLI_UMOUNT_H_
