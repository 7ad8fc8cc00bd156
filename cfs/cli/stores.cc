#include "cfs/cli/stores.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/server/store_dir.h"

namespace cfs {

absl::StatusOr<std::string> OnlyStore() {
  CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
  std::vector<std::string> stores;
  for (const MountEntry& mount : mounts) {
    if (mount.is_cfs()) stores.push_back(mount.store());
  }
  if (stores.empty()) return DefaultStorePath();
  if (stores.size() == 1) return stores.front();
  return absl::InvalidArgumentError(
      absl::StrCat(stores.size(), " cfs are mounted; name one with --store"));
}

}  // namespace cfs
