#include "cfs/ring/cluster_map.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

std::string Name(NodeId id) { return absl::StrCat("cluster map: node ", Raw(id)); }

absl::Status Unknown(NodeId id) {
  return absl::NotFoundError(absl::StrCat(Name(id), " is not in the cluster"));
}

absl::Status Lost(NodeId id) {
  return absl::FailedPreconditionError(absl::StrCat(Name(id), " is lost"));
}

absl::Status KeepsTheMap(NodeId id) {
  return absl::FailedPreconditionError(absl::StrCat(Name(id), " keeps the map"));
}

bool GoodText(absl::string_view text) { return !text.empty() && text.size() <= kNodeTextBytesMax; }

absl::Status Check(const ClusterNode& node) {
  if (node.id == NodeId{0} || node.incarnation == 0) {
    return absl::InvalidArgumentError("cluster map: node or incarnation 0");
  }
  if (node.state < NodeState::kJoining || node.state > NodeState::kRemoving ||
      (node.state == NodeState::kRemoving && node.weight > 0) || !GoodText(node.machine) ||
      node.addresses.empty() || node.addresses.size() > kNodeAddressesMax ||
      !std::ranges::all_of(node.addresses, GoodText)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Name(node.id), " has a bad state, machine or address"));
  }
  return absl::OkStatus();
}

absl::Status Check(const ClusterMap::Contents& map) {
  if (map.epoch == Epoch{0}) return absl::InvalidArgumentError("cluster map: epoch 0");
  if (map.nodes.size() > kClusterNodesMax) {
    return absl::FailedPreconditionError(
        absl::StrCat("cluster map: more than ", kClusterNodesMax, " nodes"));
  }
  absl::flat_hash_set<absl::string_view> addresses;
  absl::flat_hash_set<NodeId> may_own, may_keep;
  NodeId previous{0};
  for (const ClusterNode& node : map.nodes) {
    CFS_RETURN_IF_ERROR(Check(node));
    if (node.id == previous) {
      return absl::AlreadyExistsError(absl::StrCat(Name(node.id), " is in the cluster already"));
    }
    if (node.id < previous) return absl::InvalidArgumentError("cluster map: nodes not ascending");
    previous = node.id;
    if (node.state == NodeState::kLost) continue;
    may_own.insert(node.id);
    if (!IsGone(node.state)) may_keep.insert(node.id);
    for (const std::string& address : node.addresses) {
      if (!addresses.insert(address).second) {
        return absl::AlreadyExistsError(
            absl::StrCat(Name(node.id), ": address ", address, " is taken"));
      }
    }
  }
  if (map.keepers.empty() || map.keepers.size() > kKeepersMax ||
      std::ranges::adjacent_find(map.keepers, std::ranges::greater_equal()) != map.keepers.end() ||
      !std::ranges::all_of(map.keepers, [&](NodeId keeper) { return may_keep.contains(keeper); })) {
    return absl::InvalidArgumentError("cluster map: no keeper, or one that is no node");
  }
  NodeId last{0};  // That may own; slots with the same owner come in runs.
  if (map.owners.size() != kSlotCount || !std::ranges::all_of(map.owners, [&](NodeId owner) {
        if ((owner != last || owner == NodeId{0}) && !may_own.contains(owner)) return false;
        last = owner;
        return true;
      })) {
    return absl::InvalidArgumentError("cluster map: a slot without an owner");
  }
  return absl::OkStatus();
}

std::vector<RingMember> RingOf(const std::vector<ClusterNode>& nodes) {
  std::vector<RingMember> ring;
  for (const ClusterNode& node : nodes) {
    if (node.state != NodeState::kLost && node.weight > 0) ring.push_back({node.id, node.weight});
  }
  return ring;
}

template <typename Nodes>
auto* FindIn(Nodes& nodes, NodeId id) {
  const auto it = std::ranges::lower_bound(nodes, id, {}, &ClusterNode::id);
  return it == nodes.end() || it->id != id ? nullptr : &*it;
}

}  // namespace

ClusterMap::ClusterMap(Contents contents, Ring ring)
    : contents_(std::move(contents)), ring_(std::move(ring)) {}

absl::StatusOr<ClusterMap::Ring> ClusterMap::RingFor(const std::vector<ClusterNode>& nodes,
                                                     const ClusterMap* previous) {
  std::vector<RingMember> members = RingOf(nodes);
  if (previous != nullptr && members == previous->ring_.members) return previous->ring_;
  CFS_ASSIGN_OR_RETURN(SlotOwners wanted, PlaceSlots(members));
  return Ring{std::move(members), std::make_shared<const SlotOwners>(std::move(wanted))};
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Make(Contents contents, const ClusterMap* previous) {
  CFS_RETURN_IF_ERROR(Check(contents));
  CFS_ASSIGN_OR_RETURN(Ring ring, RingFor(contents.nodes, previous));
  return ClusterMapPtr(new ClusterMap(std::move(contents), std::move(ring)));
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Found(const ClusterId& cluster, ClusterNode first) {
  first.state = NodeState::kUp;
  SlotOwners owners(kSlotCount, first.id);
  const NodeId keeper = first.id;
  return Make({cluster, Epoch{1}, {keeper}, {std::move(first)}, std::move(owners)}, nullptr);
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Join(absl::Span<const ClusterNode> joiners) const {
  if (joiners.empty()) return absl::InvalidArgumentError("cluster map: a join of no nodes");
  return Change(joiners, {});
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Update(const ClusterNode& node) const {
  return Change({}, {node});
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Change(absl::Span<const ClusterNode> joiners,
                                                 absl::Span<const ClusterNode> changed) const {
  Contents next = NextEpoch();
  for (const ClusterNode& node : changed) {
    ClusterNode* const mine = FindIn(next.nodes, node.id);
    if (mine == nullptr) return Unknown(node.id);
    if (IsGone(mine->state)) return Lost(node.id);
    if (IsGone(node.state) ||
        (node.state == NodeState::kJoining && mine->state != NodeState::kJoining)) {
      return absl::FailedPreconditionError(absl::StrCat(Name(node.id), " can't become that"));
    }
    *mine = node;
  }
  for (const ClusterNode& joiner : joiners) {
    next.nodes.push_back(joiner);
    next.nodes.back().state = NodeState::kJoining;
  }
  std::ranges::sort(next.nodes, {}, &ClusterNode::id);
  return Make(std::move(next), this);
}

absl::StatusOr<ClusterMapPtr> ClusterMap::HandedOver(absl::Span<const Slot> slots, NodeId from,
                                                     NodeId to) const {
  if (slots.empty()) return absl::InvalidArgumentError("cluster map: a hand-over of no slots");
  const ClusterNode* const receiver = Find(to);
  if (receiver == nullptr) return Unknown(to);
  if (IsGone(receiver->state)) return Lost(to);
  if (from == to) return absl::InvalidArgumentError(absl::StrCat(Name(to), " gives to itself"));
  Contents next = NextEpoch();
  for (Slot slot : slots) {
    NodeId& owner = next.owners[Raw(slot)];
    // Also refuses a slot that is listed twice.
    if (owner != from) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(from), " does not own slot ", Raw(slot)));
    }
    owner = to;
    next.vacant.reset(Raw(slot));
  }
  return Make(std::move(next), this);
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Adopted(const SlotSet& slots, NodeId node) const {
  Contents next = NextEpoch();
  for (size_t slot = 0; slot < kSlotCount; ++slot) {
    if (slots[slot] && next.owners[slot] == node) next.vacant.reset(slot);
  }
  return Make(std::move(next), this);
}

absl::StatusOr<ClusterMapPtr> ClusterMap::MarkRemoving(NodeId id) const {
  Contents next = NextEpoch();
  ClusterNode* const node = FindIn(next.nodes, id);
  if (node == nullptr) return Unknown(id);
  if (IsGone(node->state)) return Lost(id);
  if (IsKeeper(id)) return KeepsTheMap(id);
  if (node->state != NodeState::kDown) {
    return absl::FailedPreconditionError(absl::StrCat(Name(id), " is not down"));
  }
  if (next.owners[0] == id) {
    return absl::FailedPreconditionError(absl::StrCat(Name(id), " owns the root directory"));
  }
  node->state = NodeState::kRemoving;
  node->weight = 0;
  return Make(std::move(next), this);
}

absl::StatusOr<ClusterMapPtr> ClusterMap::MarkLost(NodeId id, const SlotSet& held) const {
  Contents next = NextEpoch();
  ClusterNode* const node = FindIn(next.nodes, id);
  if (node == nullptr) return Unknown(id);
  if (node->state == NodeState::kLost) return Lost(id);
  if (IsKeeper(id)) return KeepsTheMap(id);
  if (next.losses == UINT8_MAX) {
    return absl::FailedPreconditionError("cluster map: too many nodes were lost");
  }
  node->state = NodeState::kLost;
  ++next.losses;
  CFS_ASSIGN_OR_RETURN(Ring ring, RingFor(next.nodes, this));
  for (size_t slot = 0; slot < kSlotCount; ++slot) {
    if (next.owners[slot] != id && held[slot]) continue;
    next.owners[slot] = (*ring.wanted)[slot];
    next.vacant.set(slot);
  }
  CFS_RETURN_IF_ERROR(Check(next));
  return ClusterMapPtr(new ClusterMap(std::move(next), std::move(ring)));
}

absl::StatusOr<ClusterMapPtr> ClusterMap::Leave(NodeId id) const {
  if (Find(id) == nullptr) return Unknown(id);
  if (IsKeeper(id)) return KeepsTheMap(id);
  if (const auto owned = std::ranges::count(owners(), id); owned > 0) {
    return absl::FailedPreconditionError(absl::StrCat(Name(id), " still owns ", owned, " slots"));
  }
  Contents next = NextEpoch();
  std::erase_if(next.nodes, [id](const ClusterNode& node) { return node.id == id; });
  return Make(std::move(next), this);
}

const ClusterNode* ClusterMap::Find(NodeId id) const { return FindIn(contents_.nodes, id); }

bool ClusterMap::IsRemoving() const {
  return std::ranges::find(nodes(), NodeState::kRemoving, &ClusterNode::state) != nodes().end();
}

bool ClusterMap::IsKeeper(NodeId id) const {
  return std::ranges::binary_search(contents_.keepers, id);
}

ClusterMap::Contents ClusterMap::NextEpoch() const {
  Contents next = contents_;
  next.epoch = Epoch{Raw(next.epoch) + 1};
  return next;
}

}  // namespace cfs
