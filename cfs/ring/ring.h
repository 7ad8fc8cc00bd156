// The placement ring: which node each of the 65,536 slots belongs to.
#ifndef CFS_RING_RING_H_
#define CFS_RING_RING_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cfs/base/types.h"

namespace cfs {

inline constexpr size_t kSlotCount = 1 << 16;

// One node for each slot, by its number: a lookup is an array index.
using SlotOwners = std::vector<NodeId>;

struct RingMember {
  NodeId node{0};
  uint32_t weight = 0;  // Its share is weight / sum of weights; 0 owns nothing.

  bool operator==(const RingMember&) const = default;
};

// Guarantees: equal members give equal owners on every machine, compiler and
// release (docs/adr/0009-placement.md; golden values in tests/unit/ring). No
// node gets more than 1.15 times its share, whatever the weights; a share below
// one slot may get none. When a node joins or leaves, few more slots move than
// those it gets or had.
// Errors: INVALID_ARGUMENT unless `members` is ascending by node and at most
// kClusterNodesMax long, FAILED_PRECONDITION if no weight is above 0.
// Cost: 2 to 5 ns for each slot and node with a weight: 5 ms at 16 nodes,
// 0.14 s at 1,024.
absl::StatusOr<SlotOwners> PlaceSlots(absl::Span<const RingMember> members);

}  // namespace cfs

#endif  // CFS_RING_RING_H_
