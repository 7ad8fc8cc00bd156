// The disk format of metadata: keys and values in RocksDB. Stable(meta-v1):
// a change needs a version step, golden bytes in tests/unit/meta, and an ADR.
//
// Keys begin with the slot, so that a slot is one contiguous range; integers in
// keys are big-endian, in values little-endian; every value begins with a
// version byte (but those of xattrs, which are as the user gave them). Three
// families (RocksDB column families):
//
//   records  slot 'i' ino                      InodeRecord
//            slot 'b' dir bucket(2)            BucketRecord
//            slot 'd' dir XXH3(name) name      DentryRecord
//            slot 'x' ino xattr-name           value
//            slot 'y' backend's number         see backend_format.h
//   queue    slot 'q' 'o' ino                  open mark: backing file number
//            slot 'q' 'u' ino                  orphan: unlinked while open
//            slot 'q' 's' ino                  staged in, perhaps not on the device yet
//            slot 'q' 'w' ino                  changed since it was equal to the backend's: when
//            slot 'q' 'n' ino                  number of the object that is put in its place there
//            slot 'm' dir XXH3(name) name      DirtyName (backend_format.h)
//            slot 'r' client incarnation seq   what the change that a peer asked for made
//            slot 'p', slot 'c'                see transaction_format.h
//   local    'd' backing number                doomed backing file
//            'f' backing number                backing file of an inode of another node's
//            'h' number                        slots that this node is giving to another
//            'k' number                        slots that it has taken: none are named
//            'o'                               the slots that this node owns; none: all
//            's'                               StoreState
//
// `records` and `queue` belong to the slot and move with it. `queue` is small
// and is read whole at start, which is why it is a family of its own. `local`
// is about this node's files and never moves.
#ifndef CFS_META_RECORD_FORMAT_H_
#define CFS_META_RECORD_FORMAT_H_

#include <sys/stat.h>

#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/slot_set.h"
#include "cfs/base/types.h"

namespace cfs {

inline constexpr uint8_t kRecordVersion = 1;

enum class Layout : uint8_t {
  kNone = 0,     // Not a regular file.
  kInline = 1,   // Reserved.
  kWhole = 2,    // One backing file on `home`.
  kStriped = 3,  // Chunks over `stripe_nodes`.
  kBackend = 4,  // Not resident.
};

enum class Residency : uint8_t { kComplete = 0, kPartial = 1 };

enum InodeFlags : uint32_t {
  kHasAccessAcl = 1u << 0,   // system.posix_acl_access exists.
  kHasDefaultAcl = 1u << 1,  // system.posix_acl_default exists.
  // Of a directory: nobody has looked yet what it has on the backend.
  kNotImported = 1u << 2,
};

struct InodeRecord {
  uint32_t mode = 0;
  uint32_t nlink = 0;  // Directories: 1; subdirectories are counted in buckets.
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t rdev = 0;
  uint64_t size = 0;
  uint64_t blocks = 0;  // 512-byte units, as of the last close.
  timespec atime{};
  timespec mtime{};  // Directories: of the inode itself; see BucketRecord.
  timespec ctime{};
  timespec btime{};
  uint32_t flags = 0;
  uint32_t xattr_list_bytes = 0;  // What listxattr(2) returns; 0: there are none.
  Layout layout = Layout::kNone;
  Residency residency = Residency::kComplete;
  uint8_t fan_out_log2 = 0;  // Directories: 2^k buckets.
  NodeId home{0};
  BackingId backing{0};
  // Size and times of a regular file are trusted only if this equals the
  // store's epoch, which every unclean start raises.
  uint32_t attr_epoch = 0;
  InodeId parent{0};                   // Directories.
  std::string target;                  // Symbolic links.
  std::string backend_identity;        // Object behind us (backend_format.h); empty: none.
  uint32_t chunk_bytes = 0;            // Striped.
  std::vector<NodeId> stripe_nodes{};  // Striped.

  bool IsDirectory() const { return S_ISDIR(mode); }
  bool IsRegular() const { return S_ISREG(mode); }
};

// What a directory's bucket knows of its entries, so that a create touches
// this and not the directory's inode record. A bucket that never had an entry
// has no record: it counts 0, and its times are the directory's btime.
struct BucketRecord {
  uint64_t entries = 0;
  uint64_t subdirs = 0;  // This bucket's part of the directory's nlink.
  timespec mtime{};
  timespec ctime{};
};

struct DentryRecord {
  InodeId ino{0};
  uint8_t type = 0;  // DT_*.
};

// About this node's store as a whole.
struct StoreState {
  uint64_t counter_end = 2;  // Backing numbers below are reserved.
  // Inode counters are this much ahead of backing numbers: it grows with slots
  // that come from elsewhere, where more counters were used.
  uint64_t inode_lead = 0;
  uint64_t settled = 2;      // Backing numbers below are referenced or doomed or gone.
  uint32_t attr_epoch = 1;
  bool clean = false;  // Ended in good order.
};

// Of a key of `records` or `queue`.
Slot SlotOfKey(absl::string_view key);
// Of a key of `records`; kNoInode if it is none.
InodeId InodeOfKey(absl::string_view key);
bool IsInodeKey(absl::string_view key);
bool IsBucketKey(absl::string_view key);

std::string InodeKey(InodeId ino);
std::string BucketKey(InodeId dir, uint16_t bucket);
std::string DentryKey(InodeId dir, absl::string_view name);
std::string DentryPrefix(InodeId dir);
// The first dentry key of `dir` whose name's hash is at least `hash`.
std::string DentrySeekKey(InodeId dir, uint64_t hash);
// Splits a dentry key; false if it is not one.
bool ParseDentryKey(absl::string_view key, uint64_t* hash, absl::string_view* name);
std::string XattrKey(InodeId ino, absl::string_view name);
std::string XattrPrefix(InodeId ino);

enum class QueueKind : char {
  kOpen = 'o',
  kOrphan = 'u',
  kStaged = 's',
  kDirty = 'w',
  kPending = 'n',
};
std::string QueueKey(QueueKind kind, InodeId ino);
bool ParseQueueKey(absl::string_view key, QueueKind* kind, InodeId* ino);

// A request of another node: which process there, and its number of it.
struct RequestId {
  NodeId client{0};
  uint64_t incarnation = 0;
  uint64_t sequence = 0;
};
std::string ReplyKey(Slot slot, const RequestId& request);
bool ParseReplyKey(absl::string_view key, Slot* slot, RequestId* request);

std::string DoomedKey(BackingId backing);
inline constexpr char kDoomedPrefix[] = "d";
bool ParseDoomedKey(absl::string_view key, BackingId* backing);
std::string ForeignKey(BackingId backing);
inline constexpr char kForeignPrefix[] = "f";
bool ParseForeignKey(absl::string_view key, BackingId* backing);
inline constexpr char kStoreStateKey[] = "s";
inline constexpr char kOwnedSlotsKey[] = "o";
// Of a hand-over.
std::string GivingKey(uint64_t number);
inline constexpr char kGivingPrefix[] = "h";
bool ParseGivingKey(absl::string_view key, uint64_t* number);
std::string TakenKey(uint64_t number);
inline constexpr char kTakenPrefix[] = "k";

std::string Encode(const InodeRecord& record);
std::string Encode(const BucketRecord& record);
std::string Encode(const DentryRecord& record);
std::string Encode(const StoreState& state);
std::string EncodeBacking(BackingId backing);
std::string EncodeInodeNumber(InodeId ino);
std::string Encode(const SlotSet& slots);
// DATA_LOSS for anything that Encode did not write, UNIMPLEMENTED for a newer
// version.
absl::StatusOr<InodeRecord> DecodeInode(absl::string_view value);
absl::StatusOr<BucketRecord> DecodeBucket(absl::string_view value);
absl::StatusOr<DentryRecord> DecodeDentry(absl::string_view value);
absl::StatusOr<StoreState> DecodeStoreState(absl::string_view value);
absl::StatusOr<BackingId> DecodeBacking(absl::string_view value);
absl::StatusOr<InodeId> DecodeInodeNumber(absl::string_view value);
absl::StatusOr<SlotSet> DecodeSlots(absl::string_view value);

}  // namespace cfs

#endif  // CFS_META_RECORD_FORMAT_H_
