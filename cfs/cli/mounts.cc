#include "cfs/cli/mounts.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/server/store_dir.h"

namespace cfs {
namespace {

constexpr char kMountInfo[] = "/proc/self/mountinfo";
constexpr absl::string_view kSourcePrefix = "cfs:";

// The kernel escapes these four in mountinfo.
std::string Unescape(absl::string_view field) {
  return absl::StrReplaceAll(field,
                             {{"\\040", " "}, {"\\011", "\t"}, {"\\012", "\n"}, {"\\134", "\\"}});
}

bool Contains(const std::string& directory, const std::string& path) {
  return path == directory || directory == "/" || absl::StartsWith(path, directory + "/");
}

// What fusermount3 said on stderr; OK when it succeeded.
absl::Status RunFusermount(const std::string& mountpoint, bool lazy) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDERR_FILENO);
  std::string program = "fusermount3", options = lazy ? "-uz" : "-u", end = "--", path = mountpoint;
  char* argv[] = {program.data(), options.data(), end.data(), path.data(), nullptr};
  pid_t pid;
  const int err = posix_spawnp(&pid, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  const UniqueFd errors(pipe_fds[0]);
  close(pipe_fds[1]);
  if (err == ENOENT) {
    return absl::UnavailableError("fusermount3 is missing; install it (package fuse3) or be root");
  }
  if (err != 0) return ErrnoStatus(err, "fusermount3");
  std::string output;
  char buffer[512];
  for (ssize_t n; (n = read(errors.get(), buffer, sizeof(buffer))) > 0;) output.append(buffer, n);
  int wait_status = 0;
  while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return absl::OkStatus();
  if (absl::StrContains(output, "busy")) return PosixError(EBUSY);
  return absl::PermissionDeniedError(absl::StripAsciiWhitespace(output));
}

}  // namespace

std::string MountEntry::store() const {
  return std::string(absl::StripPrefix(source, kSourcePrefix));
}

std::vector<MountEntry> ParseMounts(absl::string_view mountinfo) {
  // 36 35 98:0 /root /mountpoint options [optional...] - type source super-options
  std::vector<MountEntry> mounts;
  for (absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    uint64_t id;
    if (fields.end() - dash < 3 || dash - fields.begin() < 6 || !absl::SimpleAtoi(fields[0], &id)) {
      continue;
    }
    mounts.push_back({id, Unescape(fields[4]), Unescape(dash[1]), Unescape(dash[2])});
  }
  return mounts;
}

absl::StatusOr<std::vector<MountEntry>> ReadMounts() {
  std::ifstream file(kMountInfo);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return absl::UnavailableError(absl::StrCat(kMountInfo, " can't be read; mount /proc"));
  return ParseMounts(text.str());
}

const MountEntry* MountAt(const std::vector<MountEntry>& mounts, absl::string_view mountpoint) {
  const auto it = std::find_if(mounts.rbegin(), mounts.rend(), [&](const MountEntry& mount) {
    return mount.mountpoint == mountpoint;
  });
  return it == mounts.rend() ? nullptr : &*it;
}

absl::StatusOr<std::string> ResolveMountPoint(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path canonical = fs::canonical(path, error);
  if (!error) return canonical.string();
  if (error.value() == ENOTCONN || error.value() == ECONNABORTED) {
    // The mount point itself may be what is dead: its parent can tell its name.
    fs::path absolute = fs::absolute(path);
    if (!absolute.has_filename()) absolute = absolute.parent_path();
    const fs::path parent = fs::canonical(absolute.parent_path(), error);
    if (!error) return (parent / absolute.filename()).string();
  }
  return ErrnoStatus(error.value(), path);
}

absl::StatusOr<MountEntry> CfsMountOf(const std::string& path) {
  CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
  const MountEntry* found = nullptr;
  struct statx st;
  if (statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_MNT_ID, &st) ==
          0 &&
      (st.stx_mask & STATX_MNT_ID) != 0) {
    for (const MountEntry& mount : mounts) {
      if (mount.id == st.stx_mnt_id) found = &mount;
    }
  } else {
    CFS_ASSIGN_OR_RETURN(const std::string resolved, ResolveMountPoint(path));
    for (const MountEntry& mount : mounts) {
      if (Contains(mount.mountpoint, resolved) &&
          (found == nullptr || mount.mountpoint.size() >= found->mountpoint.size())) {
        found = &mount;
      }
    }
  }
  if (found == nullptr || !found->is_cfs()) {
    return absl::NotFoundError(absl::StrCat(path, " is not in a cfs mount"));
  }
  return *found;
}

bool IsDead(const MountEntry& mount, absl::string_view own_store) {
  // With a process in charge statfs() might wait for it; without one it can't.
  if (mount.store() != own_store && StoreOwner(mount.store())) return false;
  struct statfs fs;
  return statfs(mount.mountpoint.c_str(), &fs) != 0 && (errno == ENOTCONN || errno == ECONNABORTED);
}

absl::Status Unmount(const std::string& mountpoint, bool lazy) {
  const int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0);
  absl::Status status;
  if (umount2(mountpoint.c_str(), flags) != 0) {
    status = errno == EPERM ? RunFusermount(mountpoint, lazy) : ErrnoStatus("umount " + mountpoint);
  }
  if (ErrnoOf(status) != EBUSY) return status;
  return absl::AbortedError(
      absl::StrCat(mountpoint, " is in use; `fuser -vm ", mountpoint, "` lists by whom"));
}

}  // namespace cfs
