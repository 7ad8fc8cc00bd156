#include <sys/stat.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

absl::Status Stat(bool as_json, const std::string& path) {
  CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountOf(path));
  struct stat st;
  if (lstat(path.c_str(), &st) != 0) return ErrnoStatus(path);
  CFS_ASSIGN_OR_RETURN(
      nlohmann::json reply,
      ControlCall(mount.store(), {{"verb", "stat"}, {"ino", st.st_ino}}, kControlTimeout));
  PrintReply(std::move(reply), as_json);
  return absl::OkStatus();
}

}  // namespace

Verb StatVerb() {
  const auto json = std::make_shared<bool>(false);
  return {"stat",
          "FILE",
          1,
          1,
          "Shows where the data of a file in a cfs mount is, and how it is opened.",
          {Flag("json", 0, "print JSON", json.get())},
          [=](const std::vector<std::string>& arguments) { return Stat(*json, arguments[0]); }};
}

}  // namespace cfs
