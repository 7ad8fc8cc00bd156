// What cfs does with the slower file system behind it: always relative to a
// descriptor of a directory there, and never through a symbolic link.
//
// Thread-safe. Any of it may wait for as long as that file system does.
// Errors: its errno.
#ifndef CFS_TIER_BACKEND_H_
#define CFS_TIER_BACKEND_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

class LargeCopier;

using Xattrs = std::vector<std::pair<std::string, std::string>>;

// All that an object has but its data.
struct BackendObject {
  struct statx st {};
  std::string target;  // Of a symbolic link.
  // user.* and security.*, and POSIX ACLs; what else there is, is of no use elsewhere.
  Xattrs xattrs;
};

absl::StatusOr<UniqueFd> OpenBackendTop(const std::string& path);
// `name` in `dir`: a directory, or with O_NONBLOCK any file. ELOOP for a symbolic link.
absl::StatusOr<UniqueFd> OpenBackendDirectory(int dir, const std::string& name);
absl::StatusOr<UniqueFd> OpenBackendFile(int dir, const std::string& name, int flags);

// Size, times, number and so on; of `dir` itself if `name` is empty. `now`: as the file
// server has them, not as this machine remembers them.
absl::StatusOr<struct statx> StatBackend(int dir, const std::string& name, bool now = false);
absl::StatusOr<BackendObject> ReadBackendObject(int dir, const std::string& name);
// Of an open file.
absl::StatusOr<Xattrs> ReadBackendXattrs(int fd);

// Each name in the directory but "." and "..", in no order, until `visit` returns false.
absl::Status ListBackendDirectory(int dir, absl::FunctionRef<bool(const char* name)> visit);

// An empty file that only its owner may use. What had the name before is removed.
absl::StatusOr<UniqueFd> CreateBackendFile(int dir, const std::string& name);
// Any other object, that only its owner may use. The same.
absl::Status MakeBackendObject(int dir, const std::string& name, uint32_t mode, uint64_t rdev,
                               const std::string& target);
// Gives the object all that `st_mode` and so on say: the owner and the mode, exactly these
// xattrs (of those of use), and the times. `name` is empty: of the open file `dir`.
struct BackendMetadata {
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  timespec atime{};
  timespec mtime{};
};
absl::Status SetBackendMetadata(int dir, const std::string& name, const BackendMetadata& metadata,
                                const Xattrs& xattrs);
// As renameat2(2) with RENAME_NOREPLACE, also where that is not known.
absl::Status MoveBackendObject(int from, const std::string& from_name, int to,
                               const std::string& to_name, bool replace);
// All of the file system is on its devices, and nothing was lost before.
absl::Status SyncBackend(int top);

// Copies what is in one file to another that is empty; holes stay holes. How many bytes
// were no hole. EAGAIN: the file has become shorter. EINTR: `stop` is set.
absl::StatusOr<uint64_t> CopyContents(int from, int to, const std::atomic<bool>& stop,
                                      LargeCopier* large);

}  // namespace cfs

#endif  // CFS_TIER_BACKEND_H_
