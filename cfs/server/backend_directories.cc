#include "cfs/server/backend_directories.h"

#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

constexpr size_t kDirectoriesKept = 256;
// Before each try. An object is a moment in its new place before its record says so.
constexpr int kPauses[] = {0, 0, 2, 30};
constexpr size_t kTriesWhereNoneMoves = 2;
constexpr size_t kDepthMax = 4096;  // Of a path of 16 KiB.

}  // namespace

BackendDirectories::BackendDirectories(LocalFileSystem* fs, UniqueFd top, bool moved,
                                       std::string own_name)
    : fs_(fs),
      moved_(moved),
      own_name_(std::move(own_name)),
      top_(std::make_shared<UniqueFd>(std::move(top))),
      directories_(kDirectoriesKept) {}

absl::StatusOr<BackendDirectories::Directory> BackendDirectories::Own() {
  if (auto known = directories_.Get(kNoInode)) {
    CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend((*known)->get(), ""));
    // Somebody may have cleaned up.
    if (st.stx_nlink > 0) return *std::move(known);
  }
  const auto make = [](int dir, const std::string& name) -> absl::StatusOr<UniqueFd> {
    if (mkdirat(dir, name.c_str(), 0700) != 0 && errno != EEXIST) return PosixError(errno);
    return OpenBackendDirectory(dir, name);
  };
  CFS_ASSIGN_OR_RETURN(const UniqueFd all, make(top_->get(), kBackendOwnName));
  CFS_ASSIGN_OR_RETURN(UniqueFd fd, make(all.get(), own_name_));
  auto own = std::make_shared<UniqueFd>(std::move(fd));
  directories_.Put(kNoInode, own);
  return own;
}

absl::StatusOr<BackendDirectories::Directory> BackendDirectories::Of(InodeId dir) {
  // Up to one that is open, and down again.
  std::vector<std::pair<InodeId, BackendIdentity>> way;
  Directory at;
  for (InodeId up = dir; at == nullptr;) {
    if (way.size() > kDepthMax) return PosixError(ELOOP);
    if (up == kRootInode) {
      at = top_;
    } else if (up == kNoInode) {
      CFS_ASSIGN_OR_RETURN(at, Own());
    } else if (auto known = directories_.Get(up)) {
      at = *std::move(known);
    } else {
      CFS_ASSIGN_OR_RETURN(const InodeRecord record, fs_->RecordNow(up));
      if (record.backend_identity.empty()) return PosixError(ENXIO, "it is not on the backend");
      CFS_ASSIGN_OR_RETURN(BackendIdentity identity,
                           DecodeBackendIdentity(record.backend_identity));
      const InodeId above = identity.dir;
      way.emplace_back(up, std::move(identity));
      up = above;
    }
  }
  for (; !way.empty(); way.pop_back()) {
    const BackendIdentity& identity = way.back().second;
    CFS_ASSIGN_OR_RETURN(UniqueFd fd, OpenBackendDirectory(at->get(), identity.name));
    if (moved_) {
      CFS_ASSIGN_OR_RETURN(const struct statx st, StatBackend(fd.get(), ""));
      if (st.stx_ino != identity.stamp.number) return PosixError(ESTALE);
    }
    at = std::make_shared<UniqueFd>(std::move(fd));
    directories_.Put(way.back().first, at);
  }
  return at;
}

absl::Status BackendDirectories::With(InodeId dir, absl::FunctionRef<absl::Status(int fd)> use) {
  absl::Status last;
  const size_t tries = moved_ ? std::size(kPauses) : kTriesWhereNoneMoves;
  for (const int milliseconds : absl::MakeConstSpan(kPauses).first(tries)) {
    if (milliseconds > 0) std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    const absl::StatusOr<Directory> directory = Of(dir);
    const absl::Status status = directory.ok() ? use((*directory)->get()) : directory.status();
    const int error = ErrnoOf(status);
    // A directory that was opened before may be gone, and another be there.
    last = status;
    if (error != ENOENT && error != ESTALE) break;
    directories_.Clear();
  }
  return last;
}

}  // namespace cfs
