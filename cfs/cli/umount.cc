#include "cfs/cli/umount.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

constexpr int kEndSecondsMax = 60;

}  // namespace

absl::StatusOr<MountEntry> CfsMountAt(const std::string& path) {
  CFS_ASSIGN_OR_RETURN(const std::string resolved, ResolveMountPoint(path));
  CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
  const MountEntry* mount = MountAt(mounts, resolved);
  if (mount == nullptr || !mount->is_cfs()) {
    return absl::NotFoundError(absl::StrCat(resolved, " is not the mount point of a cfs"));
  }
  return *mount;
}

absl::Status UnmountAndWait(const MountEntry& mount) {
  if (IsDead(mount)) return Unmount(mount.mountpoint, /*lazy=*/true);

  // Taken before the process can end: afterwards its number may be another's.
  const std::optional<pid_t> owner = StoreOwner(mount.store());
  // By number, for the glibc of Debian 12 declares pidfd_open() without C linkage.
  const UniqueFd process(
      owner.value_or(0) > 0 ? static_cast<int>(syscall(SYS_pidfd_open, *owner, 0)) : -1);
  CFS_RETURN_IF_ERROR(Unmount(mount.mountpoint, /*lazy=*/false));
  if (!process.valid()) return absl::OkStatus();
  pollfd ended = {process.get(), POLLIN, 0};
  int ready;
  do {
    ready = poll(&ended, 1, kEndSecondsMax * 1000);
  } while (ready < 0 && errno == EINTR);
  if (ready > 0) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(mount.mountpoint, " is unmounted, but process ",
                                                  *owner, " has not ended within ", kEndSecondsMax,
                                                  " s; see ", mount.store(), "/cfs.log"));
}

Verb UmountVerb() {
  return {"umount",
          "MNT",
          1,
          1,
          "Unmounts MNT and waits until its daemon has ended.",
          {},
          [](const std::vector<std::string>& arguments) -> absl::Status {
            CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountAt(arguments[0]));
            return UnmountAndWait(mount);
          }};
}

}  // namespace cfs
