// The mount table, as /proc/self/mountinfo shows it.
#ifndef CFS_CLI_MOUNTS_H_
#define CFS_CLI_MOUNTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

struct MountEntry {
  uint64_t id;
  std::string mountpoint;
  std::string type;
  std::string source;

  bool is_cfs() const { return type == "fuse.cfs"; }
  std::string store() const;  // Of a cfs mount.
};

// In the order of mounting: of two on one mount point the later one hides the
// earlier.
std::vector<MountEntry> ParseMounts(absl::string_view mountinfo);
absl::StatusOr<std::vector<MountEntry>> ReadMounts();

// The mount that is seen at exactly `mountpoint`; nullptr when there is none.
const MountEntry* MountAt(const std::vector<MountEntry>& mounts, absl::string_view mountpoint);

// Absolute and without symbolic links; works for a mount point whose process is
// dead.
absl::StatusOr<std::string> ResolveMountPoint(const std::string& path);

// The cfs mount that holds the file `path`, also when its process is dead.
absl::StatusOr<MountEntry> CfsMountOf(const std::string& path);

// True when nobody serves the cfs mount any more. Does not wait for a process
// that hangs. `own_store` is a store that is locked by us and not served yet.
bool IsDead(const MountEntry& mount, absl::string_view own_store = "");

// Takes the topmost mount off `mountpoint`, by fusermount3 where we lack the
// privilege; `lazy` does it also while the mount is in use. Errors: ABORTED in
// use.
absl::Status Unmount(const std::string& mountpoint, bool lazy);

}  // namespace cfs

#endif  // CFS_CLI_MOUNTS_H_
