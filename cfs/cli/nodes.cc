#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/report.h"
#include "cfs/cli/stores.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

struct Options {
  std::string store;
  bool json = false;
  bool remove_lost = false;
};

constexpr size_t kNodesMax = 64;
// Until nodes that are removed are lost, and others have taken over their slots.
constexpr absl::Duration kRemovalMax = absl::Minutes(2);
// Until the nodes have counted what is lost: they read all their metadata.
constexpr absl::Duration kCountMax = absl::Hours(24);
constexpr absl::Duration kPoll = absl::Milliseconds(200);

constexpr size_t kColumns = 9;
using Row = std::array<std::string, kColumns>;

Row RowOf(const nlohmann::json& node) {
  std::string addresses;
  if (const auto it = node.find("addresses"); it != node.end() && it->is_array()) {
    for (const nlohmann::json& address : *it) {
      if (!address.is_string()) continue;
      absl::StrAppend(&addresses, addresses.empty() ? "" : ",", address.get<std::string>());
    }
  }
  std::string notes;
  if (BoolMember(node, "keeper")) notes = "keeper";
  if (BoolMember(node, "self")) absl::StrAppend(&notes, notes.empty() ? "" : ",", "self");
  return {absl::StrCat(UintMember(node, "id")),
          StringMember(node, "state"),
          absl::StrCat(UintMember(node, "weight")),
          absl::StrCat(UintMember(node, "slots_owned")),
          absl::StrCat(UintMember(node, "slots_leaving")),
          absl::StrCat(UintMember(node, "slots_coming")),
          addresses,
          StringMember(node, "incarnation"),
          notes};
}

void PrintTable(const nlohmann::json& reply) {
  std::vector<Row> rows = {
      {"NODE", "STATE", "WEIGHT", "SLOTS", "LEAVING", "COMING", "ADDRESS", "INCARNATION", ""}};
  if (const auto it = reply.find("nodes"); it != reply.end() && it->is_array()) {
    for (const nlohmann::json& node : *it) rows.push_back(RowOf(node));
  }
  std::array<size_t, kColumns> widths = {};
  for (const Row& row : rows) {
    for (size_t i = 0; i < kColumns; ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text =
      absl::StrCat("epoch ", UintMember(reply, "epoch"),
                   BoolMember(reply, "keeper_answers") ? "" : ", the keeper does not answer", "\n");
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < kColumns; ++i) {
      absl::StrAppend(&line, row[i], std::string(widths[i] + 2 - row[i].size(), ' '));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  fputs(text.c_str(), stdout);
}

// Whether all of them are lost, and their slots others'.
absl::StatusOr<bool> AreLost(const nlohmann::json& reply, const std::vector<uint64_t>& ids) {
  size_t lost = 0;
  const auto nodes = reply.find("nodes");
  for (size_t i = 0; nodes != reply.end() && nodes->is_array() && i < nodes->size(); ++i) {
    const nlohmann::json& node = (*nodes)[i];
    if (std::ranges::find(ids, UintMember(node, "id")) == ids.end()) continue;
    const std::string state = StringMember(node, "state");
    if (state == "up") {
      return absl::FailedPreconditionError(
          absl::StrCat("node ", UintMember(node, "id"), " is up again"));
    }
    lost += state == "lost";
  }
  return lost == ids.size() && UintMember(reply, "slots_vacant") == 0;
}

void PrintLosses(const nlohmann::json& losses) {
  std::string text = absl::StrCat("slots          ", UintMember(losses, "slots"),
                                  "\nfiles          ", UintMember(losses, "files"),
                                  "\nnames          ", UintMember(losses, "names"), "\n");
  const auto add = [&](absl::string_view member, absl::string_view what) {
    const auto it = losses.find(std::string(member));
    if (it == losses.end() || !it->is_array()) return;
    for (const nlohmann::json& value : *it) {
      absl::StrAppend(&text, what, value.is_string() ? value.get<std::string>() : value.dump(),
                      "\n");
    }
  };
  add("silent", "not counted at node ");
  add("paths_of_data", "lost data      ");
  add("paths_of_inodes", "lost inode     ");
  fputs(text.c_str(), stdout);
}

absl::Status RemoveLost(const std::string& store, const Options& options,
                        const std::vector<std::string>& arguments) {
  std::vector<uint64_t> ids;
  for (const std::string& argument : arguments) {
    uint32_t id;
    if (!absl::SimpleAtoi(argument, &id) || id == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(argument, " is no node number; `cfs nodes` shows them"));
    }
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
  }
  CFS_ASSIGN_OR_RETURN(nlohmann::json reply,
                       ControlCall(store, {{"verb", "nodes"}}, kControlTimeout));
  uint64_t slots = 0;
  for (const nlohmann::json& node : reply["nodes"]) {
    if (std::ranges::find(ids, UintMember(node, "id")) != ids.end()) {
      slots += UintMember(node, "slots_owned");
    }
  }
  CFS_RETURN_IF_ERROR(
      ControlCall(store, {{"verb", "remove-lost"}, {"nodes", ids}}, kControlTimeout).status());
  const absl::Time give_up = absl::Now() + kRemovalMax;
  for (bool lost = false; !lost;) {
    if (absl::Now() > give_up) {
      return absl::DeadlineExceededError(
          "the removal has not ended: a node that is needed for it is not up (see `cfs nodes`); it "
          "goes on by itself when that is, and the same command then says what is lost");
    }
    absl::SleepFor(kPoll);
    CFS_ASSIGN_OR_RETURN(reply, ControlCall(store, {{"verb", "nodes"}}, kControlTimeout));
    CFS_ASSIGN_OR_RETURN(lost, AreLost(reply, ids));
  }
  nlohmann::json losses;
  const absl::Time stop_counting = absl::Now() + kCountMax;
  while (!BoolMember(losses, "ready")) {
    if (absl::Now() > stop_counting) return absl::DeadlineExceededError("the count has not ended");
    absl::SleepFor(kPoll);
    CFS_ASSIGN_OR_RETURN(losses,
                         ControlCall(store, {{"verb", "losses"}, {"nodes", ids}}, kControlTimeout));
  }
  losses.erase("ready");
  losses["nodes"] = ids;
  losses["slots"] = slots;
  if (options.json) {
    PrintReply(std::move(losses), /*as_json=*/true);
  } else {
    PrintLosses(losses);
  }
  return absl::OkStatus();
}

absl::Status Nodes(const Options& options, const std::vector<std::string>& arguments) {
  if (options.remove_lost && arguments.empty()) {
    return absl::InvalidArgumentError("--remove-lost needs ids of nodes; `cfs nodes` shows them");
  }
  if (!options.remove_lost && !arguments.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", arguments.front(), "'; ids are for --remove-lost"));
  }
  std::string store = options.store;
  if (store.empty()) {
    CFS_ASSIGN_OR_RETURN(store, OnlyStore());
  }
  if (options.remove_lost) return RemoveLost(store, options, arguments);
  CFS_ASSIGN_OR_RETURN(nlohmann::json reply,
                       ControlCall(store, {{"verb", "nodes"}}, kControlTimeout));
  if (options.json) {
    PrintReply(std::move(reply), /*as_json=*/true);
  } else {
    PrintTable(reply);
  }
  return absl::OkStatus();
}

}  // namespace

Verb NodesVerb() {
  const auto options = std::make_shared<Options>();
  return {"nodes",
          "[--remove-lost ID...]",
          0,
          kNodesMax,
          "Shows the nodes of the cluster, as one of them knows them, or gives some up as lost.",
          {{"store", 0, "DIR", "ask the node of the store DIR",
            [=](const std::string& value) {
              options->store = value;
              return !value.empty();
            }},
           Flag("json", 0, "print JSON", &options->json),
           Flag("remove-lost", 0, "these nodes are gone for ever: go on without what they had",
                &options->remove_lost)},
          [=](const std::vector<std::string>& arguments) { return Nodes(*options, arguments); }};
}

}  // namespace cfs
