#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/stores.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

struct Options {
  std::string store;
  bool json = false;
};

absl::Status Status(const Options& options, const std::vector<std::string>& arguments) {
  std::string store = options.store;
  if (!arguments.empty()) {
    if (!store.empty()) return absl::InvalidArgumentError("give MNT or --store, not both");
    CFS_ASSIGN_OR_RETURN(const MountEntry mount, CfsMountOf(arguments[0]));
    if (IsDead(mount)) {
      return absl::UnavailableError(absl::StrCat("the daemon of ", mount.mountpoint,
                                                 " is dead; `cfs mount ", mount.mountpoint,
                                                 " --store ", mount.store(), "` mounts it again"));
    }
    store = mount.store();
  } else if (store.empty()) {
    CFS_ASSIGN_OR_RETURN(store, OnlyStore());
  }
  CFS_ASSIGN_OR_RETURN(nlohmann::json reply,
                       ControlCall(store, {{"verb", "status"}}, kControlTimeout));
  if (!options.json) {
    // Most kinds of requests never come.
    nlohmann::json none = nlohmann::json::object();
    nlohmann::json& requests = reply.contains("fuse") ? reply["fuse"]["requests"] : none;
    for (auto it = requests.begin(); it != requests.end();) {
      it = *it == 0 ? requests.erase(it) : std::next(it);
    }
    // `cfs nodes` shows them.
    nlohmann::json& cluster = reply["cluster"];
    if (const auto nodes = cluster.find("nodes"); nodes != cluster.end()) {
      *nodes = nodes->size();
    }
  }
  PrintReply(std::move(reply), options.json);
  return absl::OkStatus();
}

}  // namespace

Verb StatusVerb() {
  const auto options = std::make_shared<Options>();
  return {"status",
          "[MNT]",
          0,
          1,
          "Shows what the node that serves MNT or a store is and has done.",
          {{"store", 0, "DIR", "ask the node of the store DIR",
            [=](const std::string& value) {
              options->store = value;
              return !value.empty();
            }},
           Flag("json", 0, "print JSON", &options->json)},
          [=](const std::vector<std::string>& arguments) { return Status(*options, arguments); }};
}

}  // namespace cfs
