#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/sync_backend.h"
#include "cfs/cli/umount.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"
#include "cfs/server/node_config.h"

namespace cfs {
namespace {

// How long --force tries to leave nothing behind.
constexpr absl::Duration kForcedSyncMax = absl::Seconds(30);

// OK when there is nothing that the backend should have and has not.
absl::Status BringToBackend(const MountEntry& mount, absl::Duration time_max) {
  const absl::StatusOr<SyncResult> result = SyncBackend(mount, time_max);
  if (ErrnoOf(result.status()) == EOPNOTSUPP) return absl::OkStatus();  // There is none.
  CFS_RETURN_IF_ERROR(result.status());
  return ReportSync("stop", *result);
}

absl::Status Stop(const std::string& path, bool force) {
  CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountAt(path));
  const absl::Status synced =
      BringToBackend(mount, force ? kForcedSyncMax : absl::InfiniteDuration());
  if (!synced.ok() && !force) {
    return absl::Status(
        synced.code(),
        absl::StrCat(synced.message(), "; ", mount.mountpoint, " is still mounted; --force leaves ",
                     "what is missing in the store, and it is flushed after the next mount"));
  }
  if (!synced.ok()) {
    fprintf(stderr, "cfs stop: %s; what is missing is in %s, and is flushed after the next mount\n",
            std::string(synced.message()).c_str(), mount.store().c_str());
  }
  // What is changed until it is unmounted goes there as well.
  if (synced.ok()) {
    const auto last =
        ControlCall(mount.store(), {{"verb", "sync"}, {"finish", true}}, kControlTimeout);
    if (!last.ok() && ErrnoOf(last.status()) != EOPNOTSUPP) return last.status();
  }
  CFS_RETURN_IF_ERROR(UnmountAndWait(mount));
  if (!synced.ok() || access(absl::StrCat(mount.store(), "/", kUnflushedFile).c_str(), F_OK) != 0) {
    return absl::OkStatus();
  }
  return absl::AbortedError(absl::StrCat(
      mount.mountpoint, " is unmounted, but what was changed while it was stopped is not on the ",
      "backend; it is in ", mount.store(), ", and is flushed after the next mount"));
}

}  // namespace

Verb StopVerb() {
  const auto force = std::make_shared<bool>(false);
  return {"stop",
          "MNT",
          1,
          1,
          "Brings everything to the backend, if there is one, and then unmounts MNT.",
          {Flag("force", 0, "unmount even if not everything gets to the backend", force.get())},
          [=](const std::vector<std::string>& arguments) { return Stop(arguments[0], *force); }};
}

}  // namespace cfs
