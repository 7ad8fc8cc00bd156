#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/sync_backend.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

bool ParseSeconds(const std::string& value, absl::Duration* duration) {
  double seconds;
  // What is too large for a double is read as infinite.
  if (!absl::SimpleAtod(value, &seconds) || !(seconds > 0) || !std::isfinite(seconds)) return false;
  *duration = absl::Seconds(seconds);
  return true;
}

absl::Status Sync(const std::string& path, absl::Duration time_max) {
  CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountOf(path));
  CFS_ASSIGN_OR_RETURN(const SyncResult result, SyncBackend(mount, time_max));
  const absl::Status status = ReportSync("sync", result);
  if (result.done) return status;
  return absl::DeadlineExceededError(absl::StrCat(
      status.message(), "; what is left stays in the store and goes on being flushed"));
}

}  // namespace

Verb SyncVerb() {
  const auto time_max = std::make_shared<absl::Duration>(absl::InfiniteDuration());
  return {"sync",
          "[PATH]",
          0,
          1,
          "Brings everything of the mount that holds PATH to the backend, and waits for it.",
          {{"deadline", 0, "SECONDS", "fail when it has taken this long",
            [=](const std::string& value) { return ParseSeconds(value, time_max.get()); }}},
          [=](const std::vector<std::string>& arguments) {
            return Sync(arguments.empty() ? "." : arguments[0], *time_max);
          }};
}

}  // namespace cfs
