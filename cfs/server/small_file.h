// Small files that are read and written whole.
#ifndef CFS_SERVER_SMALL_FILE_H_
#define CFS_SERVER_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace cfs {

// The first `bytes_max` bytes; nothing when the file can't be read.
std::string ReadSmallFile(int dir_fd, const std::string& name, size_t bytes_max = 64 << 10);

// All of `contents` under `name`, or nothing of it; durable when it returns.
// Only the owner may read the file. Returns an errno, 0 when it is done.
[[nodiscard]] int WriteAtomically(int dir_fd, const std::string& name, absl::string_view contents);

}  // namespace cfs

#endif  // CFS_SERVER_SMALL_FILE_H_
