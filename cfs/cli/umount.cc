#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

constexpr int kEndSecondsMax = 60;

absl::Status Umount(const std::string& path) {
  const auto resolved = ResolveMountPoint(path);
  if (!resolved.ok()) return resolved.status();
  CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
  const MountEntry* mount = MountAt(mounts, *resolved);
  if (mount == nullptr || !mount->is_cfs()) {
    return absl::NotFoundError(absl::StrCat(*resolved, " is not the mount point of a cfs"));
  }
  if (IsDead(*mount)) return Unmount(*resolved, /*lazy=*/true);

  // Taken before the process can end: afterwards its number may be another's.
  const std::optional<pid_t> owner = StoreOwner(mount->store());
  // By number, for the glibc of Debian 12 declares pidfd_open() without C linkage.
  const UniqueFd process(
      owner.value_or(0) > 0 ? static_cast<int>(syscall(SYS_pidfd_open, *owner, 0)) : -1);
  CFS_RETURN_IF_ERROR(Unmount(*resolved, /*lazy=*/false));
  if (!process.valid()) return absl::OkStatus();
  pollfd ended = {process.get(), POLLIN, 0};
  int ready;
  do {
    ready = poll(&ended, 1, kEndSecondsMax * 1000);
  } while (ready < 0 && errno == EINTR);
  if (ready > 0) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(*resolved, " is unmounted, but process ", *owner,
                                                  " has not ended within ", kEndSecondsMax,
                                                  " s; see ", mount->store(), "/cfs.log"));
}

}  // namespace

Verb UmountVerb() {
  return {"umount",
          "MNT",
          1,
          1,
          "Unmounts MNT and waits until its daemon has ended.",
          {},
          [](const std::vector<std::string>& arguments) { return Umount(arguments[0]); }};
}

}  // namespace cfs
