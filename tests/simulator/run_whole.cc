#include "tests/simulator/run_whole.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "cfs/base/check.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "tests/simulator/whole.h"

namespace cfs {
namespace {

constexpr int kAtOnce = 2;
// A seed takes a second or less.
constexpr unsigned kSecondsMax = 300;
// That are run twice.
constexpr uint64_t kTwice = 3;

constexpr const char* kPlanted[] = {
    "again-not-said",
    "executed-twice",
    "given-with-transactions",
    "giver-serves-on",
    "giving-not-synced",
    "giving-not-written",
    "inodes-not-raised",
    "locks-stay",
    "map-told-first",
    "owned-before-written",
    "replies-not-looked-up",
    "replies-of-before-ignored",
    "replies-stay",
    "stale-map-accepted",
    "tail-not-copied",
    "taking-not-synced",
    "taking-not-written",
};

// Tables of hashes are ordered by addresses.
void FixAddresses(char** argv) {
  const int now = personality(0xffffffff);
  if (now == -1 || (now & ADDR_NO_RANDOMIZE) != 0) return;
  if (personality(static_cast<unsigned long>(now) | ADDR_NO_RANDOMIZE) == -1) return;
  execv("/proc/self/exe", argv);
}

// Seeds that run at the same time. Nothing here allocates memory: what a seed does
// may depend on where it gets its own.
class Runs {
 public:
  Runs() {
    void* const shared = mmap(nullptr, sizeof(WholeResult) * kAtOnce, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CFS_CHECK(shared != MAP_FAILED);
    results_ = static_cast<WholeResult*>(shared);
  }

  bool full() const { return running_ == kAtOnce; }
  bool none() const { return running_ == 0; }
  void Start(uint64_t seed, bool verbose, const char* planted) {
    const size_t at = static_cast<size_t>(std::ranges::find(pids_, 0) - pids_.begin());
    CFS_CHECK(at < kAtOnce);
    memset(static_cast<void*>(&results_[at]), 0, sizeof(WholeResult));
    seeds_[at] = seed;
    pids_[at] = fork();
    CFS_CHECK(pids_[at] >= 0);
    if (pids_[at] == 0) Supervise(at, verbose, planted);
    ++running_;
  }
  // Waits for one. The result lives until the next Start.
  const WholeResult& Next(uint64_t* seed) {
    const pid_t pid = waitpid(-1, nullptr, 0);
    const size_t at = static_cast<size_t>(std::ranges::find(pids_, pid) - pids_.begin());
    CFS_CHECK(at < kAtOnce);
    pids_[at] = 0;
    --running_;
    *seed = seeds_[at];
    return results_[at];
  }

 private:
  // Runs the seed, and removes what it leaves.
  [[noreturn]] void Supervise(size_t at, bool verbose, const char* planted) {
    const bool memory = access("/dev/shm", W_OK) == 0;
    char directory[64];
    snprintf(directory, sizeof(directory), "%s/cfs-simulator.%010d",
             memory ? "/dev/shm" : "/tmp////", getpid());
    WholeResult* const result = &results_[at];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // What a simulator left that was killed.
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
    const pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      CFS_CHECK(mkdir(directory, 0700) == 0);
      cpu_set_t cpus, one;
      CPU_ZERO(&one);
      if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) {
        int skip = static_cast<int>(at) % CPU_COUNT(&cpus);
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
          if (CPU_ISSET(cpu, &cpus) && skip-- == 0) CPU_SET(cpu, &one);
        }
        sched_setaffinity(0, sizeof(one), &one);
      }
      signal(SIGIO, SIG_IGN);
      alarm(kSecondsMax);
      planted_bug = planted;
      SetLogLevel(verbose ? LogLevel::kInfo : static_cast<LogLevel>(100));
      RunWhole(seeds_[at], verbose, directory, result);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (!result->ended) {
      result->ended = true;
      snprintf(result->wrong, sizeof(result->wrong), "the process ends by %s %d",
               WIFSIGNALED(status) ? "signal" : "itself with",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    std::filesystem::remove_all(directory, ignored);
    _exit(0);
  }

  WholeResult* results_;
  std::array<pid_t, kAtOnce> pids_{};
  std::array<uint64_t, kAtOnce> seeds_{};
  int running_ = 0;
};

struct Totals {
  uint64_t operations = 0, unknown = 0, refused = 0, starts = 0, kills = 0, power_losses = 0,
           calls = 0, lost = 0, late = 0, cut = 0;
  double seconds = 0;

  void Add(const WholeResult& result) {
    operations += result.operations;
    unknown += result.unknown;
    refused += result.refused;
    starts += result.starts;
    kills += result.kills;
    power_losses += result.power_losses;
    calls += result.calls;
    lost += result.lost;
    late += result.late;
    cut += result.cut;
    seconds += result.seconds;
  }
  // Whether there was some of everything.
  bool Complete() const {
    return operations > 0 && unknown > 0 && refused > 0 && starts > kills && kills > 0 &&
           power_losses > 0 && lost > 0 && late > 0 && cut > 0;
  }
  void Print() const {
    printf(
        "%lu operations, %lu unknown, %lu refused, %lu starts, %lu kills, %lu power losses, "
        "%lu calls, %lu lost, %lu late, %lu cut off, %.0f s\n",
        operations, unknown, refused, starts, kills, power_losses, calls, lost, late, cut,
        seconds);
  }
};

// The first of the seeds that finds something, 0 if none does.
uint64_t FindFirst(const WholeOptions& options, const char* planted, Totals* totals,
                   WholeResult* found) {
  Runs runs;
  uint64_t next = options.seed > 0 ? options.seed : 1;
  const uint64_t last = options.seed > 0 ? options.seed : options.seeds;
  uint64_t first = 0;
  while (!runs.none() || (next <= last && first == 0)) {
    if (!runs.full() && next <= last && first == 0) {
      runs.Start(next++, options.verbose, planted);
      continue;
    }
    uint64_t seed;
    const WholeResult& result = runs.Next(&seed);
    totals->Add(result);
    if (options.seed > 0) printf("# hash %lx switches %lu\n", result.hash, result.switches);
    if (result.wrong[0] == '\0' || (first != 0 && first < seed)) continue;
    first = seed;
    *found = result;
  }
  return first;
}

// Whether a seed does the same each time.
bool RunTwice() {
  Runs runs;
  for (uint64_t seed = 1; seed <= kTwice; ++seed) {
    uint64_t hashes[2];
    for (uint64_t& hash : hashes) {
      uint64_t ignored;
      runs.Start(seed, /*verbose=*/false, "");
      hash = runs.Next(&ignored).hash;
    }
    if (hashes[0] == hashes[1]) continue;
    printf("FAIL twice: seed %lu does something else each time\n", seed);
    return false;
  }
  printf("ok twice\n");
  return true;
}

}  // namespace

bool RunAllWhole(const WholeOptions& options, char** argv) {
  FixAddresses(argv);
  bool well = true;
  Totals totals;
  WholeResult found;
  if (*options.planted == '\0') {
    const uint64_t seed = FindFirst(options, "", &totals, &found);
    if (seed != 0) {
      printf("FAIL whole: seed %lu: %s; again: simulator --whole --seed %lu --verbose\n", seed,
             found.wrong, seed);
      return false;
    }
    totals.Print();
    well = options.seed > 0 || totals.Complete();
    printf(well ? "ok whole\n" : "FAIL whole: not everything came to pass\n");
    if (options.seed == 0) well = RunTwice() && well;
  }
  for (const char* name : kPlanted) {
    if (*options.planted == '\0' ? options.seed > 0 : strcmp(options.planted, name) != 0) continue;
    const uint64_t seed = FindFirst(options, name, &totals, &found);
    if (seed == 0) {
      printf("FAIL planted/%s: not found\n", name);
      well = false;
    } else {
      printf("# seed %lu: %s\nok planted/%s\n", seed, found.wrong, name);
    }
  }
  return well;
}

}  // namespace cfs
