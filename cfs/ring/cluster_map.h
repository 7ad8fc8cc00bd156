// The cluster map: who is in the cluster and which node owns each slot.
#ifndef CFS_RING_CLUSTER_MAP_H_
#define CFS_RING_CLUSTER_MAP_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cfs/base/slot_set.h"
#include "cfs/base/types.h"
#include "cfs/ring/ring.h"

namespace cfs {

enum class Epoch : uint64_t {};
constexpr uint64_t Raw(Epoch epoch) { return static_cast<uint64_t>(epoch); }

using ClusterId = std::array<uint8_t, 16>;

// Sent and stored: values never change.
enum class NodeState : uint8_t {
  kJoining = 1,  // In the map, and has not said yet that it serves.
  kUp = 2,
  kDown = 3,  // Does not answer; keeps its slots.
  kLost = 4,  // For ever: owns nothing, and stays listed until it is removed.
  // Going to be lost: others say first what they have taken from it. Weight 0.
  kRemoving = 5,
};
// Nobody will ever hear of the node again.
constexpr bool IsGone(NodeState state) {
  return state == NodeState::kLost || state == NodeState::kRemoving;
}

struct ClusterNode {
  NodeId id{0};  // Never 0.
  NodeState state = NodeState::kJoining;
  uint32_t weight = 0;  // 0: a client, or a node that gives its slots away.
  std::string machine;
  std::vector<std::string> addresses;  // At least one; unique among nodes not lost.
  uint64_t store = 0;                  // Random, of the store: tells nodes with one id apart.
  uint64_t incarnation = 0;            // Random, of the process. Never 0.

  bool operator==(const ClusterNode&) const = default;
};

class ClusterMap;
using ClusterMapPtr = std::shared_ptr<const ClusterMap>;

// A snapshot of the cluster at one epoch. Each slot has the node that owns it
// and the node that the ring wants for it; where they differ, the slot is in
// hand-over from the one to the other. The ring wants what PlaceSlots says of
// the nodes that are not lost, so it is neither stored nor sent.
//
// Guarantees: each slot is owned by one node of the map that is not lost. A
// change gives the map of the next epoch, or an error and no map.
// Thread-safety: immutable.
// Errors: NOT_FOUND for an unknown node, ALREADY_EXISTS for an id or address
// that is taken, FAILED_PRECONDITION for what this map does not allow,
// INVALID_ARGUMENT for what no map would.
// Cost: 0.5 MiB a map. A change takes 0.3 ms; one that changes what the ring
// wants, or where it is decoded, costs a PlaceSlots.
class ClusterMap {
 public:
  // What a map is; the rest follows.
  struct Contents {
    ClusterId cluster{};
    Epoch epoch{0};                  // Never 0.
    std::vector<NodeId> keepers;     // Ascending; 1 to kKeepersMax nodes that are not lost.
    std::vector<ClusterNode> nodes;  // Ascending by id.
    SlotOwners owners;
    // What the slots had went with a node, and their owner has not taken them over
    // yet, empty.
    SlotSet vacant;
    uint8_t losses = 0;  // Nodes that were lost, ever.

    bool operator==(const Contents&) const = default;
  };

  // Checks all that the class guarantees. Shares what the ring wants with
  // `previous` if that is equal; null: computes it.
  static absl::StatusOr<ClusterMapPtr> Make(Contents contents, const ClusterMap* previous);

  // A cluster of one, epoch 1: `first` is up, owns all slots, and is the keeper.
  static absl::StatusOr<ClusterMapPtr> Found(const ClusterId& cluster, ClusterNode first);

  // The nodes are joining and own nothing; slots are in hand-over to them.
  absl::StatusOr<ClusterMapPtr> Join(absl::Span<const ClusterNode> joiners) const;
  // All of it in one epoch: a Join of `joiners` and an Update by each of
  // `changed`. One of the two may be empty.
  absl::StatusOr<ClusterMapPtr> Change(absl::Span<const ClusterNode> joiners,
                                       absl::Span<const ClusterNode> changed) const;
  // Replaces what is said of a node: up or down, restarted at other addresses,
  // another weight. Weight 0 begins its leaving: all its slots are in hand-over.
  // No node that ever was up is joining again; lost is for MarkLost.
  absl::StatusOr<ClusterMapPtr> Update(const ClusterNode& node) const;
  // `to` owns the slots, each of which `from` owned: a report that comes twice
  // or late is refused. Any node that is not gone may be `to`, for a change of
  // the ring does not undo what both ends have committed.
  absl::StatusOr<ClusterMapPtr> HandedOver(absl::Span<const Slot> slots, NodeId from,
                                           NodeId to) const;
  // `node` has taken over those of the slots that are vacant and its own.
  absl::StatusOr<ClusterMapPtr> Adopted(const SlotSet& slots, NodeId node) const;
  // The node is down, and going to be lost. It does not own the root's slot.
  absl::StatusOr<ClusterMapPtr> MarkRemoving(NodeId id) const;
  // Its slots go, without a hand-over, to the nodes that the ring wants now, and
  // are vacant; so do those that are not among `held`, which nobody else has.
  absl::StatusOr<ClusterMapPtr> MarkLost(NodeId id, const SlotSet& held = SlotSet().set()) const;
  // Removes a node that owns nothing and is no keeper.
  absl::StatusOr<ClusterMapPtr> Leave(NodeId id) const;

  const Contents& contents() const { return contents_; }
  const ClusterId& cluster() const { return contents_.cluster; }
  Epoch epoch() const { return contents_.epoch; }
  const std::vector<ClusterNode>& nodes() const { return contents_.nodes; }
  const std::vector<NodeId>& keepers() const { return contents_.keepers; }
  // Null if there is none.
  const ClusterNode* Find(NodeId id) const;
  bool IsKeeper(NodeId id) const;

  NodeId OwnerOf(Slot slot) const { return contents_.owners[Raw(slot)]; }
  NodeId WantedOf(Slot slot) const { return (*ring_.wanted)[Raw(slot)]; }
  bool InHandOver(Slot slot) const { return OwnerOf(slot) != WantedOf(slot); }
  bool IsVacant(Slot slot) const { return contents_.vacant[Raw(slot)]; }
  const SlotSet& vacant() const { return contents_.vacant; }
  uint8_t losses() const { return contents_.losses; }
  // Some node is going to be lost.
  bool IsRemoving() const;
  // Indexed by slot.
  const SlotOwners& owners() const { return contents_.owners; }
  const SlotOwners& wanted() const { return *ring_.wanted; }

  bool operator==(const ClusterMap& other) const { return contents_ == other.contents_; }

 private:
  struct Ring {
    std::vector<RingMember> members;
    std::shared_ptr<const SlotOwners> wanted;
  };

  ClusterMap(Contents contents, Ring ring);

  // That of `previous` if it has the same members; null: computes it.
  static absl::StatusOr<Ring> RingFor(const std::vector<ClusterNode>& nodes,
                                      const ClusterMap* previous);
  Contents NextEpoch() const;

  const Contents contents_;
  const Ring ring_;
};

}  // namespace cfs

#endif  // CFS_RING_CLUSTER_MAP_H_
