#include <dirent.h>

#include <algorithm>

#include "cfs/base/status_macros.h"
#include "cfs/meta/namespace.h"

namespace cfs {
namespace {

// Offsets: 0 start, 1 after ".", 2 after "..", then one for each name: the top
// 63 bits of its hash (the kernel's offsets are signed), kept off the special
// values at both ends.
constexpr uint64_t kAfterDot = 1;
constexpr uint64_t kAfterDotDot = 2;
constexpr uint64_t kLastOffset = (uint64_t{1} << 63) - 2;

uint64_t OffsetOf(uint64_t hash) {
  return std::clamp(hash >> 1, kAfterDotDot + 1, kLastOffset);
}

}  // namespace

absl::Status ReadDirectory(Shard* shard, InodeId dir, uint64_t offset,
                           absl::FunctionRef<bool(const DirectoryEntry&)> take) {
  InodeId parent;
  {
    StripeLocks::Hold hold(&shard->locks(), {dir});
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard->GetInode(dir));
    if (record.flags & kNotImported) return NeedsBackend({BackendNeed::kNames, dir});
    parent = record.parent;
  }
  if (offset < kAfterDot && !take({".", dir, DT_DIR, kAfterDot})) return absl::OkStatus();
  if (offset < kAfterDotDot && !take({"..", parent, DT_DIR, kAfterDotDot})) {
    return absl::OkStatus();
  }
  if (offset >= kLastOffset) return absl::OkStatus();
  const uint64_t first_hash = offset <= kAfterDotDot ? 0 : (offset + 1) << 1;

  // Names whose offsets are equal (a hash collision, or the clamped ends) can
  // only be continued after the last of them. The others carry the offset
  // before, so that a reader who stops among them meets some twice, not never.
  absl::Status malformed;
  DirectoryEntry held;
  bool holding = false;
  bool stopped = false;
  CFS_RETURN_IF_ERROR(shard->store()->Scan(
      Family::kRecords, DentrySeekKey(dir, first_hash), DentryPrefix(dir),
      [&](absl::string_view key, absl::string_view value) {
        uint64_t hash;
        absl::string_view name;
        const auto dentry = DecodeDentry(value);
        if (!ParseDentryKey(key, &hash, &name) || !dentry.ok()) {
          malformed = absl::DataLossError("malformed directory entry");
          return false;
        }
        const uint64_t at = OffsetOf(hash);
        if (at <= offset) return true;  // A clamped name that was given already.
        if (holding) {
          if (held.next == at) held.next = at - 1;
          if (!take(held)) {
            stopped = true;
            return false;
          }
        }
        held = {std::string(name), dentry->ino, dentry->type, at};
        holding = true;
        return true;
      }));
  CFS_RETURN_IF_ERROR(malformed);
  if (holding && !stopped) take(held);
  return absl::OkStatus();
}

}  // namespace cfs
