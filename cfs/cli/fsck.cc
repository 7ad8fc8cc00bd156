#include "cfs/server/fsck.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/exit_code.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

struct Options {
  bool strict = false;
  bool json = false;
};

const char* Level(const FsckFinding& finding) { return finding.is_error ? "error" : "note"; }

void PrintText(const FsckReport& report) {
  for (const FsckFinding& finding : report.findings) {
    printf("%s: %s: %s\n", Level(finding), finding.where.c_str(), finding.what.c_str());
  }
  const uint64_t left_out = report.errors + report.notes - report.findings.size();
  if (left_out > 0) {
    printf(
        "%s\n",
        absl::StrCat(left_out, " more, of kinds that ", kFsckFindingsMax, " are shown of").c_str());
  }
  printf("%s\n", absl::StrCat(report.inodes, " inodes, ", report.names, " names, ", report.files,
                              " files: ", report.errors, " errors, ", report.notes, " notes")
                     .c_str());
}

void PrintJson(const FsckReport& report) {
  nlohmann::ordered_json findings = nlohmann::ordered_json::array();
  for (const FsckFinding& finding : report.findings) {
    findings.push_back({{"level", Level(finding)},
                        {"kind", std::string(finding.kind)},
                        {"where", finding.where},
                        {"what", finding.what}});
  }
  puts(ToText({{"inodes", report.inodes},
               {"names", report.names},
               {"files", report.files},
               {"errors", report.errors},
               {"notes", report.notes},
               {"findings", findings}},
              2)
           .c_str());
}

absl::Status Run(const Options& options, const std::vector<std::string>& stores) {
  CFS_ASSIGN_OR_RETURN(const FsckReport report, CheckStores(stores, options.strict));
  if (options.json) {
    PrintJson(report);
  } else {
    PrintText(report);
  }
  if (report.errors == 0) return absl::OkStatus();
  return WrongFound(report.errors == 1 ? std::string("found an error")
                                       : absl::StrCat("found ", report.errors, " errors"));
}

}  // namespace

Verb FsckVerb() {
  const auto options = std::make_shared<Options>();
  return {"fsck",
          "STORE...",
          1,
          kClusterNodesMax,
          "Checks the stores of all nodes of a cluster, or of the one that is alone.",
          {Flag("strict", 0, "an open transaction is an error", &options->strict),
           Flag("json", 0, "print JSON", &options->json)},
          [=](const std::vector<std::string>& stores) { return Run(*options, stores); }};
}

}  // namespace cfs
