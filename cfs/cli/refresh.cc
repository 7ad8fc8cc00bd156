#include <sys/stat.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

constexpr absl::Duration kFirstPoll = absl::Milliseconds(5);
constexpr absl::Duration kPollMax = absl::Milliseconds(200);
// So long may the backend take for one name.
constexpr absl::Duration kStallMax = absl::Seconds(30);

struct Target {
  MountEntry mount;
  std::string below;  // Its path in the mount.
  ino_t top = 0;
};

// A name may be new on the backend: only the directory that it is in has to be here.
absl::StatusOr<Target> Find(std::string path) {
  while (path.size() > 1 && absl::EndsWith(path, "/")) path.pop_back();
  namespace fs = std::filesystem;
  struct stat st {};
  const bool there = lstat(path.c_str(), &st) == 0;
  if (!there && errno != ENOENT) {
    // A dead mount says so in its own words.
    CFS_RETURN_IF_ERROR(CfsMountOf(path).status());
  }
  const fs::path named(path);
  const bool whole = there && S_ISDIR(st.st_mode);
  const fs::path above = named.has_parent_path() ? named.parent_path() : fs::path(".");
  std::error_code error;
  fs::path resolved = fs::canonical(whole ? named : above, error);
  if (error) return ErrnoStatus(error.value(), path);
  Target target;
  CFS_ASSIGN_OR_RETURN(target.mount, CfsMountOf(resolved.string()));
  if (!whole) resolved /= named.filename();
  absl::string_view below = resolved.native();
  if (lstat(target.mount.mountpoint.c_str(), &st) != 0 ||
      !absl::ConsumePrefix(&below, target.mount.mountpoint)) {
    return absl::NotFoundError(absl::StrCat(path, " is not below ", target.mount.mountpoint));
  }
  target.below = std::string(below);
  target.top = st.st_ino;
  return target;
}

absl::Status Report(const nlohmann::json& reply) {
  if (const auto said = reply.find("said"); said != reply.end() && said->is_array()) {
    for (const nlohmann::json& each : *said) {
      fprintf(stderr, "cfs refresh: %s: %s\n", StringMember(each, "path").c_str(),
              StringMember(each, "error").c_str());
    }
  }
  const std::string error = StringMember(reply, "error");
  if (!error.empty()) {
    return absl::UnavailableError(absl::StrCat("the backend cannot be looked at: ", error));
  }
  const uint64_t left = UintMember(reply, "left");
  printf("%" PRIu64 " new, %" PRIu64 " changed, %" PRIu64 " gone%s\n", UintMember(reply, "added"),
         UintMember(reply, "changed"), UintMember(reply, "gone"),
         left == 0 ? "" : absl::StrCat(", ", left, " changed here and left as they are").c_str());
  if (const uint64_t failed = UintMember(reply, "failed"); failed > 0) {
    return absl::UnknownError(
        absl::StrCat(failed, " could not be looked at, and stay as they were"));
  }
  if (const uint64_t open = UintMember(reply, "open"); open > 0) {
    return absl::AbortedError(absl::StrCat(open, open == 1 ? " file is" : " files are", " open"));
  }
  return absl::OkStatus();
}

absl::Status Refresh(const std::string& path) {
  CFS_ASSIGN_OR_RETURN(const Target target, Find(path));
  if (IsDead(target.mount)) {
    return absl::UnavailableError(absl::StrCat(
        "the daemon of ", target.mount.mountpoint, " is dead; `cfs mount ", target.mount.mountpoint,
        " --store ", target.mount.store(), "` mounts it again"));
  }
  const std::string store = target.mount.store();
  CFS_ASSIGN_OR_RETURN(
      const nlohmann::json begun,
      ControlCall(
          store,
          {{"verb", "refresh"}, {"top", target.top}, {"path", absl::Base64Escape(target.below)}},
          kControlTimeout));
  const nlohmann::json question = {{"verb", "refresh_status"}, {"id", UintMember(begun, "id")}};
  uint64_t looked = 0;
  absl::Time moved = absl::Now();
  for (absl::Duration pause = kFirstPoll;; pause = std::min(pause * 2, kPollMax)) {
    CFS_ASSIGN_OR_RETURN(const nlohmann::json reply, ControlCall(store, question, kControlTimeout));
    if (BoolMember(reply, "done")) return Report(reply);
    if (const uint64_t now = UintMember(reply, "looked"); now != looked) {
      looked = now;
      moved = absl::Now();
    }
    if (absl::Now() - moved > kStallMax) {
      return absl::DeadlineExceededError(
          "the backend does not answer; should it, what has changed there is taken over then");
    }
    absl::SleepFor(pause);
  }
}

}  // namespace

Verb RefreshVerb() {
  return {"refresh",
          "[PATH]",
          0,
          1,
          "Looks again at what others have changed on the backend, at PATH and below.",
          {},
          [](const std::vector<std::string>& arguments) {
            return Refresh(arguments.empty() ? "." : arguments[0]);
          }};
}

}  // namespace cfs
