#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/tree_walk.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

absl::StatusOr<nlohmann::json> Ask(const std::string& store, const char* verb, ino_t ino) {
  return ControlCall(store, {{"verb", verb}, {"ino", ino}}, kControlTimeout);
}

// Who has just closed it is still being seen off.
absl::StatusOr<bool> Evict(const std::string& store, ino_t ino) {
  constexpr int kTries = 10;
  for (int i = 0;; ++i) {
    const auto reply = Ask(store, "evict", ino);
    if (reply.ok()) return BoolMember(*reply, "evicted");
    if (ErrnoOf(reply.status()) != EBUSY || i == kTries) return reply.status();
    absl::SleepFor(absl::Milliseconds(20));
  }
}

absl::Status EvictAll(const std::vector<std::string>& paths) {
  uint64_t files = 0, bytes = 0, kept = 0;
  for (const std::string& path : paths) {
    CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountOf(path));
    const std::string store = mount.store();
    absl::Status lost;  // The node does not answer.
    CFS_RETURN_IF_ERROR(WalkTree(
        path,
        [&](const struct stat& st) {
          // Where nobody has looked yet, nothing is to be evicted.
          const auto reply = Ask(store, "stat", st.st_ino);
          return lost.ok() && (!reply.ok() || !BoolMember(*reply, "not_imported"));
        },
        [&](const std::string& at, const struct stat& st) {
          if (!lost.ok()) return;
          const absl::StatusOr<bool> evicted = Evict(store, st.st_ino);
          if (!evicted.ok() && ErrnoOf(evicted.status()) != EBUSY) {
            lost = evicted.status();
          } else if (!evicted.ok()) {
            ++kept;
            fprintf(stderr, "cfs evict: %s: %s\n", at.c_str(),
                    std::string(evicted.status().message()).c_str());
          } else if (*evicted) {
            ++files;
            bytes += static_cast<uint64_t>(st.st_blocks) * 512;
          }
        }));
    CFS_RETURN_IF_ERROR(lost);
  }
  printf("%" PRIu64 " files, %s evicted\n", files, HumanBytes(bytes).c_str());
  if (kept > 0) return absl::AbortedError(absl::StrCat(kept, kept == 1 ? " file" : " files", " kept"));
  return absl::OkStatus();
}

}  // namespace

Verb EvictVerb() {
  return {"evict", "PATH...", 1, kArgumentsMax,
          "Drops the copies of files that are on the backend; the next open gets them from there.",
          {}, EvictAll};
}

}  // namespace cfs
