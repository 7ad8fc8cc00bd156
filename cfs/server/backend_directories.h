// The directories of the backend that are directories here.
#ifndef CFS_SERVER_BACKEND_DIRECTORIES_H_
#define CFS_SERVER_BACKEND_DIRECTORIES_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/types.h"
#include "cfs/base/unique_fd.h"
#include "cfs/server/local_file_system.h"

namespace cfs {

// Finds them by the identities that the records say, each in the one above it, and keeps
// some open. Thread-safe.
class BackendDirectories {
 public:
  using Directory = std::shared_ptr<UniqueFd>;

  // `fs` outlives it. With `moved` they are moved by us: another one in the place of one
  // (ESTALE) is what comes of looking at the wrong moment.
  // What cfs keeps there is in .cfs/`own_name`, for other stores may be in front of it, too.
  BackendDirectories(LocalFileSystem* fs, UniqueFd top, bool moved, std::string own_name);

  const UniqueFd& top() const { return *top_; }
  // What cfs keeps for itself; made when it is not there.
  absl::StatusOr<Directory> Own();
  // ENXIO: it is not on the backend.
  absl::StatusOr<Directory> Of(InodeId dir);
  // Runs `use` with it; again where it was another one in the meantime.
  absl::Status With(InodeId dir, absl::FunctionRef<absl::Status(int fd)> use);
  // Any of them may be gone, or another one, or this one.
  void ForgetAll() { directories_.Clear(); }
  void Forget(InodeId dir) { directories_.Erase(dir); }

 private:
  LocalFileSystem* const fs_;
  const bool moved_;
  const std::string own_name_;
  const Directory top_;
  LruCache<InodeId, Directory> directories_;
};

}  // namespace cfs

#endif  // CFS_SERVER_BACKEND_DIRECTORIES_H_
