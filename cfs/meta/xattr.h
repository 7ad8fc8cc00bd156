// Extended attributes of an inode, POSIX ACLs among them.
#ifndef CFS_META_XATTR_H_
#define CFS_META_XATTR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/clock.h"
#include "cfs/meta/shard.h"

namespace cfs {

// Of a directory: where new directories in it get their slot, "local" or "spread".
// They inherit it.
inline constexpr char kPlacementXattr[] = "user.cfs.placement";
inline constexpr char kPlacementLocal[] = "local";
inline constexpr char kPlacementSpread[] = "spread";
// Of a file or of what is below a directory, unless something nearer says otherwise:
// "1" keeps copies of what is on the backend, and "0" does not.
inline constexpr char kPinXattr[] = "user.cfs.pin";
// The same: when files go to the backend. "never", "close" (at once when it is closed) or
// the seconds after a change, as "30s".
inline constexpr char kFlushXattr[] = "user.cfs.flush";

// Not kept anywhere: why a file could not be brought to the backend, as long as that is so.
// Cannot be set.
inline constexpr char kFlushErrorXattr[] = "user.cfs.flush_error";

struct FlushPolicy {
  bool never = false;
  std::optional<uint32_t> seconds;  // Nothing: as is usual.
};
// Nothing for what is no value of kFlushXattr.
std::optional<FlushPolicy> ParseFlushPolicy(absl::string_view value);

// Each takes the inode's stripe lock itself. Errors as in xattr(7): ENODATA,
// EEXIST, ERANGE (name too long), E2BIG, EOPNOTSUPP (no such namespace); of those
// above also ENOTDIR, EPERM, and EINVAL for another value.
absl::StatusOr<std::string> GetXattr(Shard* shard, InodeId ino, absl::string_view name);
absl::StatusOr<std::vector<std::string>> ListXattrs(Shard* shard, InodeId ino);
// An access ACL changes the permission bits too; `clear_setgid` says that the
// caller may not keep a setgid bit of the file's group.
absl::Status SetXattr(Shard* shard, Clock* clock, InodeId ino, absl::string_view name,
                      absl::string_view value, int flags, bool clear_setgid);
absl::Status RemoveXattr(Shard* shard, Clock* clock, InodeId ino, absl::string_view name);

// Parts of an update that also writes the record: a name that is new, and one
// that may be there. The caller holds the inode's stripe lock.
void AddXattr(InodeId ino, absl::string_view name, absl::string_view value, InodeRecord* record,
              Shard::Update* update);
absl::Status DropXattr(Shard* shard, InodeId ino, absl::string_view name, InodeRecord* record,
                       Shard::Update* update);
// What a write and a change of owner do. An empty value grants nothing and stays,
// as Linux has it.
absl::Status DropCapability(Shard* shard, InodeId ino, InodeRecord* record, Shard::Update* update);

}  // namespace cfs

#endif  // CFS_META_XATTR_H_
