// The only place that knows both absl::Status and errno.
//
// abseil's mapping from errno is many to one, so PosixError keeps the errno as
// a payload; ErrnoOf gives it back. Expected answers on hot paths (a lookup
// that finds nothing) use the code-only forms, which do not allocate.
#ifndef CFS_BASE_ERROR_H_
#define CFS_BASE_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace cfs {

// REQUIRES: err > 0.
absl::Status PosixError(int err, absl::string_view message = "");

// ENOENT without a payload or a message: 10 ns.
inline absl::Status NotFound() { return absl::Status(absl::StatusCode::kNotFound, ""); }

// The errno that an application should see; 0 for OK.
int ErrnoOf(const absl::Status& status);

// "mkdir /x: Permission denied" from the calling thread's errno.
absl::Status ErrnoStatus(absl::string_view what);
absl::Status ErrnoStatus(int err, absl::string_view what);

}  // namespace cfs

#endif  // CFS_BASE_ERROR_H_
