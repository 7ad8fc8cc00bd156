// Strong identifiers shared by every layer.
#ifndef CFS_BASE_TYPES_H_
#define CFS_BASE_TYPES_H_

#include <cstdint>

namespace cfs {

// An inode number says where its inode lives: slot(16) << 48 | counter(48).
// Never reused. The root directory is 1: slot 0, counter 1.
enum class InodeId : uint64_t {};
// One of 65,536 positions on the ring.
enum class Slot : uint16_t {};
// Number of a backing file in one node's store; never reused there.
enum class BackingId : uint64_t {};
enum class NodeId : uint32_t {};

inline constexpr InodeId kRootInode{1};
inline constexpr InodeId kNoInode{0};
inline constexpr BackingId kNoBacking{0};
inline constexpr uint64_t kCounterMask = (uint64_t{1} << 48) - 1;

constexpr uint64_t Raw(InodeId ino) { return static_cast<uint64_t>(ino); }
constexpr uint16_t Raw(Slot slot) { return static_cast<uint16_t>(slot); }
constexpr uint64_t Raw(BackingId id) { return static_cast<uint64_t>(id); }
constexpr uint32_t Raw(NodeId id) { return static_cast<uint32_t>(id); }

constexpr Slot SlotOf(InodeId ino) { return Slot(static_cast<uint16_t>(Raw(ino) >> 48)); }
constexpr InodeId MakeInode(Slot slot, uint64_t counter) {
  return InodeId((uint64_t{Raw(slot)} << 48) | (counter & kCounterMask));
}

}  // namespace cfs

#endif  // CFS_BASE_TYPES_H_
