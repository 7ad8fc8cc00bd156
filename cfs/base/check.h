// Assertions about our own mistakes. On in every build: going on with broken
// state could corrupt the only copy of a user's data. Anything that comes from
// the network, a disk, the kernel or a user gets a Status instead.
#ifndef CFS_BASE_CHECK_H_
#define CFS_BASE_CHECK_H_

#include "absl/base/optimization.h"

namespace cfs {

// Writes one line to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace cfs

#define CFS_CHECK(condition)                              \
  do {                                                    \
    if (ABSL_PREDICT_FALSE(!(condition))) {               \
      ::cfs::CheckFailed(__FILE__, __LINE__, #condition); \
    }                                                     \
  } while (false)

#endif  // CFS_BASE_CHECK_H_
