// The files that somebody names, and those below the directories among them.
#ifndef CFS_CLI_TREE_WALK_H_
#define CFS_CLI_TREE_WALK_H_

#include <sys/stat.h>

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace cfs {

// Calls `file` for each regular file at or below `path` and in the same mount, where no
// symbolic link is followed; `enter` says whether to look into a directory. The first error ends it.
absl::Status WalkTree(const std::string& path,
                      absl::FunctionRef<bool(const struct stat& st)> enter,
                      absl::FunctionRef<void(const std::string& path, const struct stat& st)> file);

}  // namespace cfs

#endif  // CFS_CLI_TREE_WALK_H_
