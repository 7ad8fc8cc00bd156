// Which store a verb is about.
#ifndef CFS_CLI_STORES_H_
#define CFS_CLI_STORES_H_

#include <string>

#include "absl/status/statusor.h"

namespace cfs {

// The store that is meant when nothing says which: the one that is mounted, else
// the default.
absl::StatusOr<std::string> OnlyStore();

}  // namespace cfs

#endif  // CFS_CLI_STORES_H_
