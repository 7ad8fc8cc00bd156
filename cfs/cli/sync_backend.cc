#include "cfs/cli/sync_backend.h"

#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/report.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(100);

// A line on the terminal that is gone when its owner is.
class ProgressLine {
 public:
  ProgressLine() : shown_(isatty(STDERR_FILENO)) {}
  ~ProgressLine() {
    if (shown_) fputs("\r\033[K", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(const SyncResult& result) const {
    if (!shown_) return;
    fprintf(stderr, "\r%s written, %" PRIu64 " left \033[K", HumanBytes(result.bytes).c_str(),
            result.left);
  }

 private:
  const bool shown_;
};

SyncResult ResultOf(const nlohmann::json& reply) {
  SyncResult result;
  result.done = BoolMember(reply, "done");
  result.left = UintMember(reply, "left");
  result.bytes = UintMember(reply, "bytes");
  result.stay = UintMember(reply, "stay");
  if (const auto failed = reply.find("failed"); failed != reply.end() && failed->is_array()) {
    for (const nlohmann::json& failure : *failed) {
      result.failed.push_back({StringMember(failure, "path"), StringMember(failure, "error")});
    }
  }
  result.failed_count = std::max<uint64_t>(UintMember(reply, "failed_count"), result.failed.size());
  return result;
}

// "3 things are"
std::string Things(uint64_t count) {
  return absl::StrCat(count, count == 1 ? " thing is" : " things are");
}

}  // namespace

absl::StatusOr<SyncResult> SyncBackend(const MountEntry& mount, absl::Duration time_max) {
  const absl::Time deadline = absl::Now() + time_max;
  if (IsDead(mount)) {
    return absl::UnavailableError(absl::StrCat("the daemon of ", mount.mountpoint,
                                               " is dead; `cfs mount ", mount.mountpoint,
                                               " --store ", mount.store(), "` mounts it again"));
  }
  const std::string store = mount.store();
  CFS_ASSIGN_OR_RETURN(const nlohmann::json started,
                       ControlCall(store, {{"verb", "sync"}}, kControlTimeout));
  const nlohmann::json question = {{"verb", "sync_status"}, {"id", UintMember(started, "id")}};
  const ProgressLine progress;
  while (true) {
    CFS_ASSIGN_OR_RETURN(const nlohmann::json reply, ControlCall(store, question, kControlTimeout));
    SyncResult result = ResultOf(reply);
    const absl::Duration time_left = deadline - absl::Now();
    if (result.done || time_left <= absl::ZeroDuration()) return result;
    progress.Show(result);
    absl::SleepFor(std::min(kPollInterval, time_left));
  }
}

absl::Status ReportSync(absl::string_view verb, const SyncResult& result) {
  const std::string who = absl::StrCat("cfs ", verb, ": ");
  for (const SyncFailure& failure : result.failed) {
    fprintf(stderr, "%s%s: %s\n", who.c_str(), failure.path.c_str(), failure.error.c_str());
  }
  if (const uint64_t more = result.failed_count - result.failed.size(); more > 0) {
    fprintf(stderr, "%sand %" PRIu64 " more\n", who.c_str(), more);
  }
  const std::string written = HumanBytes(result.bytes) + " written";
  if (!result.done) {
    return absl::DeadlineExceededError(
        absl::StrCat(Things(result.left), " not yet on the backend, ", written));
  }
  if (result.failed_count > 0) {
    return absl::AbortedError(absl::StrCat(Things(result.failed_count), " not on the backend"));
  }
  if (result.stay > 0) {
    printf("everything is on the backend, %s, but for %" PRIu64 " files of user.cfs.flush=never\n",
           written.c_str(), result.stay);
  } else {
    printf("everything is on the backend, %s\n", written.c_str());
  }
  return absl::OkStatus();
}

}  // namespace cfs
