// What the records say of the objects on the backend. Stable(meta-v1), as
// record_format.h.
//
//   records  slot 'y' number(8)               BackendLinks
//   queue    slot 'm' dir XXH3(name) name     DirtyName
#ifndef CFS_META_BACKEND_FORMAT_H_
#define CFS_META_BACKEND_FORMAT_H_

#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/types.h"

namespace cfs {

// What tells an object from others, and from what it was before.
struct BackendStamp {
  uint64_t number = 0;  // Its inode number there.
  uint64_t size = 0;
  timespec mtime{};
  timespec ctime{};

  bool operator==(const BackendStamp& other) const;
};

// It has another ctime, perhaps: one that was renamed, or got another owner.
inline bool SameContent(const BackendStamp& a, const BackendStamp& b) {
  return a.number == b.number && a.size == b.size && a.mtime.tv_sec == b.mtime.tv_sec &&
         a.mtime.tv_nsec == b.mtime.tv_nsec;
}

// The object that an inode stands for: where it is, and how it was when it and the
// inode were last equal. Only who moves data between the two changes it.
struct BackendIdentity {
  // Which directory it is in there; kNoInode: it is the top, or in what cfs keeps for
  // itself at the top, or (without a name) where nobody has looked yet.
  InodeId dir = kNoInode;
  std::string name;  // Its name in there.
  BackendStamp stamp;
  // Of the backing file; while that has it, nobody has written the file here. Of a
  // directory: when it was made.
  timespec clean_ctime{};
};

std::string Encode(const BackendIdentity& identity);
// DATA_LOSS for anything that Encode did not write.
absl::StatusOr<BackendIdentity> DecodeBackendIdentity(absl::string_view value);

// A name in a directory that is, or may be, another one's on the backend. A name without
// such a record is there what it is here.
struct DirtyName {
  uint64_t since = 0;       // When it was changed first: ns since the epoch, never twice.
  InodeId base = kNoInode;  // Whose object the backend has there; kNoInode: nothing.
  BackendStamp stamp;       // How that object was.
  // Whose object, with what number, is just being put there.
  InodeId next = kNoInode;
  uint64_t next_number = 0;
};

std::string Encode(const DirtyName& mark);
absl::StatusOr<DirtyName> DecodeDirtyName(absl::string_view value);
std::string DirtyNameKey(InodeId dir, absl::string_view name);
// False if it is no such key.
bool ParseDirtyNameKey(absl::string_view key, InodeId* dir, absl::string_view* name);

// What cfs keeps for itself at the top of a backend.
inline constexpr char kBackendOwnName[] = ".cfs";

// Of an object that has, or had, several names: which inode it is, and those of its names
// that are known. By the number, that its other names lead to the same one.
struct BackendLinks {
  struct Place {
    InodeId dir = kNoInode;
    std::string name;
    bool operator==(const Place&) const = default;
  };
  InodeId ino = kNoInode;
  std::vector<Place> places;
};

std::string Encode(const BackendLinks& links);
absl::StatusOr<BackendLinks> DecodeBackendLinks(absl::string_view value);
std::string BackendLinkKey(uint64_t number);

}  // namespace cfs

#endif  // CFS_META_BACKEND_FORMAT_H_
