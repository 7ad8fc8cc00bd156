// Random numbers that nobody can guess.
#ifndef CFS_BASE_RANDOM_H_
#define CFS_BASE_RANDOM_H_

#include <sys/random.h>

#include <cstdint>

#include "cfs/base/check.h"
#include "cfs/base/simulation.h"

namespace cfs {

// Never 0. Thread-safe.
inline uint64_t RandomNumber() {
#ifdef CFS_FAULT_POINTS
  if (simulation != nullptr) return simulation->RandomNumber() | 1;
#endif
  uint64_t value = 0;
  while (value == 0) CFS_CHECK(getrandom(&value, sizeof(value), 0) == sizeof(value));
  return value;
}

}  // namespace cfs

#endif  // CFS_BASE_RANDOM_H_
