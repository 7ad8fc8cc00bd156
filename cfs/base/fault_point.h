// Named points at which tests end the process, and a simulator a node.
#ifndef CFS_BASE_FAULT_POINT_H_
#define CFS_BASE_FAULT_POINT_H_

#ifdef CFS_FAULT_POINTS
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cfs/base/simulation.h"
#endif

namespace cfs {

// With CFS_TEST_DIE_AT=NAME or NAME:N in the environment, the N-th time that a
// thread comes here is the process's end, as by kill -9. Nothing in programs that
// are built without fault points.
inline void FaultPoint([[maybe_unused]] const char* name) {
#ifdef CFS_FAULT_POINTS
  if (simulation != nullptr) return simulation->At(name);
  static const char* const wanted = getenv("CFS_TEST_DIE_AT");
  if (wanted == nullptr) return;
  const size_t length = strlen(name);
  if (strncmp(wanted, name, length) != 0) return;
  if (wanted[length] != '\0' && wanted[length] != ':') return;
  static std::atomic<int> passed{0};
  const int which = wanted[length] == ':' ? atoi(wanted + length + 1) : 1;
  if (++passed == which) raise(SIGKILL);
#endif
}

}  // namespace cfs

#endif  // CFS_BASE_FAULT_POINT_H_
