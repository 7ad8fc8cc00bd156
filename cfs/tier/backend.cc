#include "cfs/tier/backend.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/tier/io_uring.h"

namespace cfs {
namespace {

constexpr size_t kCopyBytes = 1 << 20;
// What is as long is copied past the page cache.
constexpr off_t kLargeBytes = off_t{16} << 20;

bool IsOfUse(absl::string_view xattr) {
  return absl::StartsWith(xattr, "user.") || absl::StartsWith(xattr, "security.") ||
         absl::StartsWith(xattr, "system.posix_acl_");
}

// `list` and `get` as listxattr(2) and getxattr(2).
absl::StatusOr<Xattrs> ReadXattrs(
    absl::FunctionRef<ssize_t(char* names, size_t size)> list,
    absl::FunctionRef<ssize_t(const char* name, char* value, size_t size)> get) {
  std::string names, value;
  Xattrs xattrs;
  // They may change between the two calls.
  for (;;) {
    const ssize_t size = list(nullptr, 0);
    if (size == 0 || (size < 0 && (errno == EOPNOTSUPP || errno == ENOSYS))) return xattrs;
    if (size < 0) return PosixError(errno);
    names.resize(static_cast<size_t>(size));
    const ssize_t got = list(names.data(), names.size());
    if (got < 0 && errno == ERANGE) continue;
    if (got < 0) return PosixError(errno);
    names.resize(static_cast<size_t>(got));
    break;
  }
  size_t list_bytes = 0;
  for (const absl::string_view name : absl::StrSplit(names, '\0', absl::SkipEmpty())) {
    if (!IsOfUse(name)) continue;
    value.resize(kXattrValueBytesMax);
    const std::string text(name);
    const ssize_t got = get(text.c_str(), value.data(), value.size());
    // What only some may see, and what has just gone.
    if (got < 0 && (errno == ENODATA || errno == EPERM || errno == EACCES || errno == EOPNOTSUPP)) {
      continue;
    }
    if (got < 0) return PosixError(errno);
    // More names than one can ask for here are of no use to anybody.
    list_bytes += text.size() + 1;
    if (list_bytes > kXattrListBytesMax) break;
    xattrs.emplace_back(text, value.substr(0, static_cast<size_t>(got)));
  }
  return xattrs;
}

absl::Status CopyPiece(int from, int to, off_t begin, off_t end, char* buffer,
                       const std::atomic<bool>& stop, uint64_t* copied) {
  while (begin < end) {
    if (stop.load(std::memory_order_relaxed)) return PosixError(EINTR);
    const size_t want = std::min<size_t>(kCopyBytes, static_cast<size_t>(end - begin));
    const ssize_t got = pread(from, buffer, want, begin);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return PosixError(errno);
    if (got == 0) return PosixError(EAGAIN);
    for (ssize_t done = 0; done < got;) {
      const ssize_t put = pwrite(to, buffer + done, static_cast<size_t>(got - done), begin + done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return PosixError(errno);
      done += put;
    }
    begin += got;
    *copied += static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

// The same, past the page cache; its ends, where they are not aligned, as ever.
absl::Status CopyLargePiece(int from, int to, off_t begin, off_t end, char* buffer,
                            const std::atomic<bool>& stop, LargeCopier* large, uint64_t* copied) {
  constexpr off_t kAligned = LargeCopier::kAligned;
  const off_t first = (begin + kAligned - 1) / kAligned * kAligned;
  const off_t last = end / kAligned * kAligned;
  // What is too much is known at once; and writes into what is there already do not wait for
  // each other.
  if (fallocate(to, 0, begin, end - begin) != 0 && (errno == ENOSPC || errno == EDQUOT)) {
    return PosixError(errno);
  }
  CFS_ASSIGN_OR_RETURN(const bool done, large->Copy(from, to, first, last, stop, copied));
  if (!done) return CopyPiece(from, to, begin, end, buffer, stop, copied);
  CFS_RETURN_IF_ERROR(CopyPiece(from, to, begin, first, buffer, stop, copied));
  return CopyPiece(from, to, last, end, buffer, stop, copied);
}

}  // namespace

absl::StatusOr<UniqueFd> OpenBackendTop(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("backend ", path));
  return fd;
}

absl::StatusOr<UniqueFd> OpenBackendDirectory(int dir, const std::string& name) {
  UniqueFd fd(openat(dir, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return PosixError(errno);
  return fd;
}

absl::StatusOr<UniqueFd> OpenBackendFile(int dir, const std::string& name, int flags) {
  // Should it be a FIFO by now, nobody waits for its other end.
  flags |= O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
  // Only its owner may leave no trace of having read it.
  UniqueFd fd(openat(dir, name.c_str(), flags | O_NOATIME));
  if (!fd.valid() && errno == EPERM) fd.reset(openat(dir, name.c_str(), flags));
  if (!fd.valid()) return PosixError(errno);
  return fd;
}

absl::StatusOr<struct statx> StatBackend(int dir, const std::string& name, bool now) {
  struct statx st {};
  const int flags = AT_SYMLINK_NOFOLLOW | (name.empty() ? AT_EMPTY_PATH : 0) |
                    (now ? AT_STATX_FORCE_SYNC : AT_STATX_SYNC_AS_STAT);
  if (statx(dir, name.c_str(), flags, STATX_BASIC_STATS | STATX_BTIME, &st) != 0) {
    return PosixError(errno);
  }
  return st;
}

absl::StatusOr<BackendObject> ReadBackendObject(int dir, const std::string& name) {
  BackendObject object;
  CFS_ASSIGN_OR_RETURN(object.st, StatBackend(dir, name));
  if (S_ISLNK(object.st.stx_mode)) {
    char target[kSymlinkBytesMax + 1];
    const ssize_t size = readlinkat(dir, name.c_str(), target, sizeof(target));
    if (size < 0) return PosixError(errno);
    object.target.assign(target, static_cast<size_t>(size));
  }
  // By this path, for there are no such calls relative to a directory.
  const std::string path = absl::StrCat("/proc/self/fd/", dir, name.empty() ? "/." : "/", name);
  CFS_ASSIGN_OR_RETURN(
      object.xattrs,
      ReadXattrs([&](char* names, size_t size) { return llistxattr(path.c_str(), names, size); },
                 [&](const char* xattr, char* value, size_t size) {
                   return lgetxattr(path.c_str(), xattr, value, size);
                 }));
  return object;
}

absl::StatusOr<Xattrs> ReadBackendXattrs(int fd) {
  return ReadXattrs([fd](char* names, size_t size) { return flistxattr(fd, names, size); },
                    [fd](const char* xattr, char* value, size_t size) {
                      return fgetxattr(fd, xattr, value, size);
                    });
}

absl::Status ListBackendDirectory(int dir, absl::FunctionRef<bool(const char* name)> visit) {
  // A description of its own: the position of `dir` is shared.
  UniqueFd fd(openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return PosixError(errno);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(fd.get()), closedir);
  if (stream == nullptr) return PosixError(errno);
  fd.release();
  for (;;) {
    errno = 0;
    const dirent* const entry = readdir(stream.get());
    if (entry == nullptr) return errno == 0 ? absl::OkStatus() : PosixError(errno);
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (!visit(entry->d_name)) return absl::OkStatus();
  }
}

absl::StatusOr<UniqueFd> CreateBackendFile(int dir, const std::string& name) {
  for (const bool again : {false, true}) {
    UniqueFd fd(
        openat(dir, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd.valid()) return fd;
    if (errno != EEXIST || again || unlinkat(dir, name.c_str(), 0) != 0) return PosixError(errno);
  }
  return PosixError(EEXIST);
}

absl::Status MakeBackendObject(int dir, const std::string& name, uint32_t mode, uint64_t rdev,
                               const std::string& target) {
  for (const bool again : {false, true}) {
    const int made = S_ISDIR(mode)   ? mkdirat(dir, name.c_str(), 0700)
                     : S_ISLNK(mode) ? symlinkat(target.c_str(), dir, name.c_str())
                                     : mknodat(dir, name.c_str(), (mode & S_IFMT) | 0600, rdev);
    if (made == 0) return absl::OkStatus();
    if (errno != EEXIST || again) return PosixError(errno);
    if (unlinkat(dir, name.c_str(), 0) != 0 &&
        (errno != EISDIR || unlinkat(dir, name.c_str(), AT_REMOVEDIR) != 0)) {
      return PosixError(errno);
    }
  }
  return PosixError(EEXIST);
}

absl::Status SetBackendMetadata(int dir, const std::string& name, const BackendMetadata& metadata,
                                const Xattrs& xattrs) {
  // Without a name, of the open file `dir`.
  const bool opened = name.empty();
  BackendObject present;
  if (opened) {
    CFS_ASSIGN_OR_RETURN(present.st, StatBackend(dir, ""));
    CFS_ASSIGN_OR_RETURN(present.xattrs, ReadBackendXattrs(dir));
  } else {
    CFS_ASSIGN_OR_RETURN(present, ReadBackendObject(dir, name));
  }
  const struct statx& st = present.st;
  if ((st.stx_mode & S_IFMT) != (metadata.mode & S_IFMT)) return PosixError(ESTALE);
  // Before the mode and capabilities, which it takes away.
  if ((st.stx_uid != metadata.uid || st.stx_gid != metadata.gid) &&
      fchownat(dir, name.c_str(), metadata.uid, metadata.gid,
               AT_SYMLINK_NOFOLLOW | (opened ? AT_EMPTY_PATH : 0)) != 0) {
    return PosixError(errno);
  }
  const std::string path = absl::StrCat("/proc/self/fd/", dir, opened ? "" : "/", name);
  const auto set = [&](const std::string& xattr, const std::string& value) {
    return opened ? fsetxattr(dir, xattr.c_str(), value.data(), value.size(), 0)
                  : lsetxattr(path.c_str(), xattr.c_str(), value.data(), value.size(), 0);
  };
  const auto remove = [&](const std::string& xattr) {
    return opened ? fremovexattr(dir, xattr.c_str()) : lremovexattr(path.c_str(), xattr.c_str());
  };
  const auto none_there = [] { return errno == EOPNOTSUPP || errno == ENOSYS; };
  for (const auto& [xattr, value] : present.xattrs) {
    const bool kept = std::ranges::any_of(
        xattrs, [&xattr = xattr](const auto& wanted) { return wanted.first == xattr; });
    // Labels that the backend's system gives by itself stay.
    if (!kept && remove(xattr) != 0 && errno != ENODATA && !absl::StartsWith(xattr, "security.") &&
        !none_there()) {
      return PosixError(errno);
    }
  }
  for (const auto& wanted : xattrs) {
    const auto& [xattr, value] = wanted;
    if (!IsOfUse(xattr) || std::ranges::find(present.xattrs, wanted) != present.xattrs.end()) {
      continue;
    }
    // They stay here: what cannot have them there loses none.
    if (set(xattr, value) != 0 && !none_there()) return PosixError(errno);
  }
  const mode_t mode = metadata.mode & 07777u;
  if (!S_ISLNK(metadata.mode) &&
      (opened ? fchmod(dir, mode) : fchmodat(dir, name.c_str(), mode, AT_SYMLINK_NOFOLLOW)) != 0) {
    return PosixError(errno);
  }
  const timespec times[2] = {metadata.atime, metadata.mtime};
  if ((opened ? futimens(dir, times) : utimensat(dir, name.c_str(), times, AT_SYMLINK_NOFOLLOW)) !=
      0) {
    return PosixError(errno);
  }
  return absl::OkStatus();
}

absl::Status MoveBackendObject(int from, const std::string& from_name, int to,
                               const std::string& to_name, bool replace) {
  if (!replace) {
    if (renameat2(from, from_name.c_str(), to, to_name.c_str(), RENAME_NOREPLACE) == 0) {
      return absl::OkStatus();
    }
    if (errno != EINVAL && errno != ENOSYS) return PosixError(errno);
    const absl::Status there = StatBackend(to, to_name).status();
    if (ErrnoOf(there) != ENOENT) return there.ok() ? PosixError(EEXIST) : there;
  }
  if (renameat(from, from_name.c_str(), to, to_name.c_str()) != 0) return PosixError(errno);
  return absl::OkStatus();
}

absl::Status SyncBackend(int top) {
  if (syncfs(top) != 0) return ErrnoStatus("sync of the backend");
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> CopyContents(int from, int to, const std::atomic<bool>& stop,
                                      LargeCopier* large) {
  struct stat st {};
  if (fstat(from, &st) != 0) return PosixError(errno);
  // Before, or XFS gives space behind what is written, where a hole is to be.
  if (ftruncate(to, st.st_size) != 0) return PosixError(errno);
  const std::unique_ptr<char[]> buffer(new char[kCopyBytes]);
  uint64_t copied = 0;
  off_t at = 0;
  while (at < st.st_size) {
    off_t data = lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {  // A hole up to the end, or that is not there any more.
      struct stat now {};
      if (fstat(from, &now) != 0) return PosixError(errno);
      if (now.st_size < st.st_size) return PosixError(EAGAIN);
      break;
    }
    off_t hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
    if (data < 0 || hole < 0) {  // It cannot say.
      data = at;
      hole = st.st_size;
    }
    CFS_RETURN_IF_ERROR(
        hole - data >= kLargeBytes
            ? CopyLargePiece(from, to, data, hole, buffer.get(), stop, large, &copied)
            : CopyPiece(from, to, data, hole, buffer.get(), stop, &copied));
    at = hole;
  }
  return copied;
}

}  // namespace cfs
