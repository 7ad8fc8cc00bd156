// Whether stores hold what they should: those of all nodes of a cluster, or the one
// of a node that is alone. None is in use meanwhile, and nothing is changed.
#ifndef CFS_SERVER_FSCK_H_
#define CFS_SERVER_FSCK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

struct FsckFinding {
  // A note is what a store may hold, and somebody may want to know.
  bool is_error = false;
  absl::string_view kind;  // The same for all of a kind; a constant.
  std::string where;       // "inode 5 (/a/b)", "store /local/cfs", "slots 0-99".
  std::string what;
};

struct FsckReport {
  uint64_t inodes = 0;
  uint64_t names = 0;
  uint64_t files = 0;  // In data directories.
  uint64_t errors = 0;
  uint64_t notes = 0;
  // At most kFsckFindingsMax of a kind.
  std::vector<FsckFinding> findings;
};

// `strict`: the nodes have ended in good order, so that no transaction is open.
// Errors: those of OpenIdleStore, INVALID_ARGUMENT for stores that do not go
// together, DATA_LOSS for one that cannot be read.
// Cost: about 90 bytes of memory a file, and one pass over all metadata and the
// directories of all data; no data is read.
absl::StatusOr<FsckReport> CheckStores(const std::vector<std::string>& paths, bool strict);

}  // namespace cfs

#endif  // CFS_SERVER_FSCK_H_
