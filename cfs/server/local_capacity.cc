// What LocalFileSystem has of a store that fills up: see Evictor.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/xattr.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

constexpr uint64_t kBlockBytes = 512;
constexpr size_t kDepthMax = 4096;

}  // namespace

uint64_t DaemonBytes(uint64_t total) {
  return std::max(total / kDaemonShare, std::min(total / kDaemonShareOfSmall, kDaemonBytesOfSmall));
}

absl::Status LocalFileSystem::MayGrow() const {
  const absl::Status room = RoomToGrow();
  return IsFull(room) ? NeedsBackend({BackendNeed::kRoom}) : room;
}

bool LocalFileSystem::WritesThroughDaemon() const {
  if (fetcher_ == nullptr) return false;
  if (room_.load(std::memory_order_relaxed) != Room::kPlenty) return true;
  const absl::StatusOr<struct statvfs> space = chunks_->Space();
  return space.ok() &&
         space->f_bavail * space->f_frsize < DaemonBytes(space->f_blocks * space->f_frsize);
}

absl::Status LocalFileSystem::ListResident(absl::FunctionRef<void(const Resident&)> visit) {
  return store_->Scan(
      Family::kRecords, "", "", [&](absl::string_view key, absl::string_view value) {
        if (!IsInodeKey(key)) return true;
        const auto record = DecodeInode(value);
        if (!record.ok() || !record->IsRegular() || record->layout != Layout::kWhole ||
            record->home != node_ || record->backing == kNoBacking) {
          return true;
        }
        Resident file;
        file.ino = InodeOfKey(key);
        file.bytes = record->blocks * kBlockBytes;
        // What is written to it is not in the record yet.
        struct stat st;
        file.open = open_.Find(file.ino) != nullptr;
        if (file.open && chunks_->Stat(record->backing, &st).ok()) {
          file.bytes = static_cast<uint64_t>(st.st_blocks) * kBlockBytes;
        }
        file.used = record->atime.tv_sec;
        file.has_xattrs = record->xattr_list_bytes > 0;
        const auto identity = DecodeBackendIdentity(record->backend_identity);
        if (!record->backend_identity.empty() && identity.ok()) {
          file.dir = identity->dir;
          file.clean = identity->clean_ctime.tv_sec != 0 && record->nlink > 0;
          file.used = std::max(file.used, identity->clean_ctime.tv_sec);
        }
        if (const auto used = used_.Peek(file.ino)) file.used = std::max(file.used, *used);
        visit(file);
        return true;
      });
}

absl::StatusOr<std::string> LocalFileSystem::OwnPolicy(InodeId ino, absl::string_view xattr) {
  std::string value;
  const absl::Status found = store_->Get(Family::kRecords, XattrKey(ino, xattr), &value);
  if (absl::IsNotFound(found)) return "";
  CFS_RETURN_IF_ERROR(found);
  return value;
}

absl::StatusOr<std::string> LocalFileSystem::PolicyOf(InodeId ino, InodeId dir,
                                                      absl::string_view xattr,
                                                      KnownPolicies* known) {
  if (ino != kNoInode) {
    CFS_ASSIGN_OR_RETURN(std::string own, OwnPolicy(ino, xattr));
    if (!own.empty()) return own;
  }
  std::vector<InodeId> asked;
  std::string policy;
  // More names than that are no tree, but a loop that is being made or undone.
  while (dir != kNoInode && asked.size() < kDepthMax) {
    if (const auto it = known->find(dir); it != known->end()) {
      policy = it->second;
      break;
    }
    asked.push_back(dir);
    const absl::StatusOr<InodeRecord> record = ReadInode(dir);
    if (absl::IsNotFound(record.status())) break;
    CFS_RETURN_IF_ERROR(record.status());
    if (record->xattr_list_bytes > 0) {
      CFS_ASSIGN_OR_RETURN(policy, OwnPolicy(dir, xattr));
      if (!policy.empty()) break;
    }
    if (dir == kRootInode) break;
    dir = record->parent;
  }
  for (const InodeId each : asked) (*known)[each] = policy;
  return policy;
}

absl::StatusOr<bool> LocalFileSystem::IsPinned(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = ReadInode(ino);
  if (absl::IsNotFound(record.status())) return false;
  CFS_RETURN_IF_ERROR(record.status());
  if (!record->IsRegular()) return false;
  const auto identity = DecodeBackendIdentity(record->backend_identity);
  KnownPolicies known;
  CFS_ASSIGN_OR_RETURN(const std::string pin,
                       PolicyOf(ino, identity.ok() ? identity->dir : kNoInode, kPinXattr, &known));
  return pin == "1";
}

}  // namespace cfs
