#include "cfs/server/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "cfs/base/unique_fd.h"

namespace cfs {

std::string ReadSmallFile(int dir_fd, const std::string& name, size_t bytes_max) {
  const UniqueFd fd(openat(dir_fd, name.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text(bytes_max, '\0');
  text.resize(std::max<ssize_t>(pread(fd.get(), text.data(), text.size(), 0), 0));
  return text;
}

int WriteAtomically(int dir_fd, const std::string& name, absl::string_view contents) {
  const std::string temporary = name + ".new";
  const UniqueFd fd(openat(dir_fd, temporary.c_str(),
                           O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return errno;
  const ssize_t n = write(fd.get(), contents.data(), contents.size());
  int err = n < 0 ? errno : static_cast<size_t>(n) < contents.size() ? ENOSPC : 0;
  if (err == 0 && fsync(fd.get()) != 0) err = errno;
  if (err == 0 && renameat(dir_fd, temporary.c_str(), dir_fd, name.c_str()) != 0) err = errno;
  if (err != 0) unlinkat(dir_fd, temporary.c_str(), 0);
  if (err == 0 && fsync(dir_fd) != 0) err = errno;
  return err;
}

}  // namespace cfs
