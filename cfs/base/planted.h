// Bugs that tests plant, to see that they would find them.
#ifndef CFS_BASE_PLANTED_H_
#define CFS_BASE_PLANTED_H_

#include <cstdlib>
#include <string>

#include "absl/strings/string_view.h"

namespace cfs {

#ifdef CFS_FAULT_POINTS
// Set before anything runs, by a test in this process or from outside.
inline std::string planted_bug =
    getenv("CFS_TEST_PLANTED") != nullptr ? getenv("CFS_TEST_PLANTED") : "";
inline bool Planted(absl::string_view name) { return planted_bug == name; }
#else
constexpr bool Planted(absl::string_view) { return false; }
#endif

}  // namespace cfs

#endif  // CFS_BASE_PLANTED_H_
