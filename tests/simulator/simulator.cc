// Runs simulated clusters, each decided by a seed: the protocol of transactions alone,
// and whole nodes with their map, hand-overs and retries. Needs a build with fault
// points.
//
// Usage: simulator [--protocol | --whole] [--seeds N [--whole-seeds N]]
//            all there is
//        simulator --protocol | --whole --seed N [--planted NAME] [--verbose]
//            one seed, again
//        simulator --planted NAME [--seeds N]
//            until it is found
//
// Each planted bug must be found by one of the seeds.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "tests/simulator/check.h"
#include "tests/simulator/cluster.h"
#include "tests/simulator/run_whole.h"
#include "tests/simulator/workload.h"

namespace cfs {
namespace {

constexpr const char* kPlanted[] = {
    "abort-keeps-locks",
    "committed-stays-prepared",
    "commits-not-synced",
    "compare-skipped",
    "count-overwrites",
    "errors-not-checked",
    "found-not-synced",
    "late-prepare",
    "locks-not-taken-again",
    "lost-commits-not-repeated",
    "no-locks",
    "outcome-forgotten-early",
    "outcome-not-synced",
    "outcome-not-written",
    "own-part-not-checked",
    "prepare-not-synced",
    "presumed-commit",
    "reads-not-locked",
    "silence-is-yes",
    "undecided-is-aborted",
};

struct Totals {
  Workload::Counts operations;
  Cluster::Counts faults;

  void Add(const Workload::Counts& o, const Cluster::Counts& f) {
    operations.alone += o.alone;
    operations.transactions += o.transactions;
    operations.refused += o.refused;
    operations.unknown += o.unknown;
    operations.unknown_happened += o.unknown_happened;
    faults.kills += f.kills;
    faults.power_losses += f.power_losses;
    faults.lost_messages += f.lost_messages;
    faults.copies += f.copies;
  }
  std::string ToString() const {
    return absl::StrCat(operations.alone, " operations of one node, ", operations.transactions,
                        " transactions, ", operations.refused, " refused, ", operations.unknown,
                        " unknown (", operations.unknown_happened, " happened), ", faults.kills,
                        " kills, ", faults.power_losses, " power losses, ", faults.lost_messages,
                        " messages lost, ", faults.copies, " twice");
  }
  // Whether there was some of everything.
  bool Complete() const {
    return operations.alone > 0 && operations.transactions > 0 && operations.refused > 0 &&
           operations.unknown > operations.unknown_happened && operations.unknown_happened > 0 &&
           faults.kills > 0 && faults.power_losses > 0 && faults.lost_messages > 0 &&
           faults.copies > 0;
  }
};

// Everybody is there and can be heard, until nothing is left to do.
std::string ComeToRest(Cluster* cluster, const Workload& workload) {
  constexpr int kSeconds = 120;
  for (int second = 0; second < kSeconds; ++second) {
    for (Cluster::Node& node : cluster->nodes()) cluster->Start(&node);
    cluster->Run(kSecond);
    if (!cluster->failure().empty()) return cluster->failure();
    if (!workload.done() || HasUnfinished(cluster)) continue;
    for (const Cluster::Node& node : cluster->nodes()) {
      if (cluster->HasLocks(node.id)) return absl::StrCat("node ", Raw(node.id), " keeps locks");
    }
    return "";
  }
  return "does not come to rest";
}

// What is wrong, empty if nothing is.
std::string RunSeed(uint64_t seed, bool verbose, Totals* totals) {
  Cluster cluster(seed, verbose);
  Workload workload(&cluster);
  Random& random = cluster.random();
  Cluster::Weather weather;
  // Each seed has its own mixture, some of it not at all.
  const auto some = [&random](uint64_t most) {
    return random.PerMille(400) ? 0 : random.Below(most);
  };
  weather.loss = some(150);
  weather.twice = some(300);
  weather.late = some(100);
  weather.death = some(20);
  weather.crash_interval = random.PerMille(300) ? 0 : kSecond + random.Below(4 * kSecond);
  cluster.SetWeather(weather);
  workload.Start(/*clients=*/3 + random.Below(6), /*operations_each=*/20 + random.Below(20));
  for (int i = 0; i < 20 && !workload.done(); ++i) cluster.Run(kSecond);
  cluster.SetWeather({});
  std::string wrong = ComeToRest(&cluster, workload);
  if (!wrong.empty()) return wrong;
  for (Cluster::Node& node : cluster.nodes()) cluster.Crash(&node, /*power_loss=*/true);
  wrong = ComeToRest(&cluster, workload);
  if (wrong.empty()) wrong = workload.CheckAnswers();
  if (wrong.empty()) wrong = CheckTree(&cluster);
  totals->Add(workload.counts(), cluster.counts());
  return wrong;
}

struct Options {
  uint64_t seeds = 1000;
  uint64_t whole_seeds = 1000;
  uint64_t seed = 0;  // 0: all of them.
  bool verbose = false;
  bool protocol = true, whole = true;
  const char* planted = "";
};

bool Parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const absl::string_view word = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : "";
    if (word == "--verbose") options->verbose = true;
    if (word == "--protocol") options->whole = false;
    if (word == "--whole") options->protocol = false;
    if (word == "--verbose" || word == "--protocol" || word == "--whole") continue;
    ++i;
    if (word == "--planted") {
      options->planted = value;
    } else if (word == "--seeds") {
      if (!absl::SimpleAtoi(value, &options->seeds)) return false;
      options->whole_seeds = options->seeds;
    } else if (word == "--whole-seeds") {
      if (!absl::SimpleAtoi(value, &options->whole_seeds)) return false;
    } else if (word == "--seed") {
      if (!absl::SimpleAtoi(value, &options->seed)) return false;
    } else {
      return false;
    }
  }
  return true;
}

// Whether every seed is well.
bool RunProtocol(const Options& options) {
  Totals totals;
  const uint64_t first = options.seed > 0 ? options.seed : 1;
  const uint64_t last = options.seed > 0 ? options.seed : options.seeds;
  for (uint64_t seed = first; seed <= last; ++seed) {
    const std::string wrong = RunSeed(seed, options.verbose, &totals);
    if (wrong.empty()) continue;
    printf("FAIL protocol: seed %lu: %s; again: simulator --protocol --seed %lu --verbose\n", seed,
           wrong.c_str(), seed);
    return false;
  }
  if (options.seed == 0 && !totals.Complete()) {
    printf("FAIL protocol: not everything came to pass: %s\n", totals.ToString().c_str());
    return false;
  }
  printf("%s\nok protocol\n", totals.ToString().c_str());
  return true;
}

// Whether a seed finds it.
bool FindPlanted(const char* name, const Options& options) {
  planted_bug = name;
  Totals totals;
  std::string wrong;
  uint64_t seed = options.seed > 0 ? options.seed : 1;
  const uint64_t last = options.seed > 0 ? options.seed : options.seeds;
  for (; seed <= last && wrong.empty(); ++seed) wrong = RunSeed(seed, options.verbose, &totals);
  planted_bug.clear();
  if (wrong.empty()) {
    printf("FAIL planted/%s: not found\n", name);
    return false;
  }
  printf("# seed %lu: %s\nok planted/%s\n", seed - 1, wrong.c_str(), name);
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) {
    fprintf(stderr,
            "usage: simulator [--protocol | --whole] [--seeds N [--whole-seeds N] | --seed N] "
            "[--planted NAME] [--verbose]\n");
    return 2;
  }
  static char line[BUFSIZ];
  setvbuf(stdout, line, _IOLBF, sizeof(line));
  bool well = true;
  // First, for the processes of seeds are copies of this one.
  if (options.whole) {
    well = RunAllWhole({options.whole_seeds, options.seed, options.verbose, options.planted}, argv);
  }
  if (!options.protocol) return well ? 0 : 1;
  SetLogLevel(LogLevel::kError);
  const absl::string_view planted = options.planted;
  if (planted.empty()) well = RunProtocol(options) && well;
  for (const char* name : kPlanted) {
    if (planted.empty() ? options.seed == 0 : planted == name) {
      well = FindPlanted(name, options) && well;
    }
  }
  return well ? 0 : 1;
}

}  // namespace
}  // namespace cfs

int main(int argc, char** argv) { return cfs::Main(argc, argv); }
