#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cfs/base/status_macros.h"
#include "cfs/cli/report.h"
#include "cfs/cli/stores.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

absl::Status PrintToken(std::string store) {
  if (store.empty()) {
    CFS_ASSIGN_OR_RETURN(store, OnlyStore());
  }
  CFS_ASSIGN_OR_RETURN(const nlohmann::json reply,
                       ControlCall(store, {{"verb", "token"}}, kControlTimeout));
  puts(StringMember(reply, "token").c_str());
  return absl::OkStatus();
}

}  // namespace

Verb TokenVerb() {
  const auto store = std::make_shared<std::string>();
  return {"token",
          "",
          0,
          0,
          "Prints the token that other nodes join the cluster with; it has a secret.",
          {{"store", 0, "DIR", "ask the node of the store DIR",
            [=](const std::string& value) {
              *store = value;
              return !value.empty();
            }}},
          [=](const std::vector<std::string>&) { return PrintToken(*store); }};
}

}  // namespace cfs
