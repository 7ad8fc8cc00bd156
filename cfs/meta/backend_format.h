// What the records say of the objects on the backend. Stable(meta-v1), as
// record_format.h.
//
//   records  slot 'y' number(8)   the inode that an object with several names is
#ifndef CFS_META_BACKEND_FORMAT_H_
#define CFS_META_BACKEND_FORMAT_H_

#include <cstdint>
#include <ctime>
#include <string>

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

// The object that an inode stands for: where it is, and how it was when it and the
// inode were last equal. Only who moves data between the two changes it.
struct BackendIdentity {
  InodeId dir = kNoInode;  // Which directory it is in there; kNoInode: it is the top.
  std::string name;        // Its name in there.
  BackendStamp stamp;
  // Of the backing file; while that has it, nobody has written the file here.
  timespec clean_ctime{};
};

std::string Encode(const BackendIdentity& identity);
// DATA_LOSS for anything that Encode did not write.
absl::StatusOr<BackendIdentity> DecodeBackendIdentity(absl::string_view value);

// Which inode it is: by the number, that its other names lead to the same one.
std::string BackendLinkKey(uint64_t number);

}  // namespace cfs

#endif  // CFS_META_BACKEND_FORMAT_H_
