#include "cfs/cli/tree_walk.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"

namespace cfs {

absl::Status WalkTree(
    const std::string& path, absl::FunctionRef<bool(const struct stat& st)> enter,
    absl::FunctionRef<void(const std::string& path, const struct stat& st)> file) {
  struct stat st {};
  if (lstat(path.c_str(), &st) != 0) return ErrnoStatus(path);
  const dev_t device = st.st_dev;
  if (S_ISREG(st.st_mode)) file(path, st);
  if (!S_ISDIR(st.st_mode) || !enter(st)) return absl::OkStatus();
  namespace fs = std::filesystem;
  std::error_code error;
  for (fs::recursive_directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    const std::string at = it->path().string();
    if (lstat(at.c_str(), &st) != 0) {
      if (errno == ENOENT) continue;  // Removed meanwhile.
      return ErrnoStatus(at);
    }
    const bool here = st.st_dev == device;
    if (S_ISREG(st.st_mode) && here) file(at, st);
    if (S_ISDIR(st.st_mode) && (!here || !enter(st))) it.disable_recursion_pending();
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat("below ", path));
  return absl::OkStatus();
}

}  // namespace cfs
