// Runs seeds of whole nodes, each in a process of its own.
#ifndef CFS_TESTS_SIMULATOR_RUN_WHOLE_H_
#define CFS_TESTS_SIMULATOR_RUN_WHOLE_H_

#include <cstdint>

namespace cfs {

struct WholeOptions {
  uint64_t seeds = 1000;
  uint64_t seed = 0;  // 0: all of them.
  bool verbose = false;
  const char* planted = "";
};

// Whether all is well: no seed finds anything, one run twice is the same, and each
// planted bug is found. `argv` is main's: the program begins again where addresses
// are chance.
bool RunAllWhole(const WholeOptions& options, char** argv);

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_RUN_WHOLE_H_
