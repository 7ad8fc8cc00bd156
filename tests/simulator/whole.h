// A cluster of whole nodes: map, hand-overs, transactions, retries.
#ifndef CFS_TESTS_SIMULATOR_WHOLE_H_
#define CFS_TESTS_SIMULATOR_WHOLE_H_

#include <cstdint>
#include <string>

namespace cfs {

// What a seed has come to. Of fixed size, for another process writes it.
struct WholeResult {
  bool ended = false;
  char wrong[600] = {};  // Empty: nothing.
  uint64_t hash = 0, switches = 0;
  uint64_t operations = 0, unknown = 0, refused = 0, starts = 0, kills = 0, power_losses = 0,
           calls = 0, lost = 0, late = 0, cut = 0, slots = 0, retries = 0;
  double seconds = 0;
};

// In a process of its own, which ends with it. `directory` is empty.
[[noreturn]] void RunWhole(uint64_t seed, bool verbose, const std::string& directory,
                           WholeResult* result);

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_WHOLE_H_
