#include "cfs/server/keeper.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"

namespace cfs {
namespace {

bool SharesAnAddress(const ClusterNode& a, const ClusterNode& b) {
  return std::ranges::any_of(a.addresses, [&b](const std::string& address) {
    return std::ranges::find(b.addresses, address) != b.addresses.end();
  });
}

}  // namespace

Keeper::Keeper(NodeId self, ClusterMapPtr map, const Options& options, Instant now)
    : self_(self),
      options_(options),
      map_(std::move(map)),
      removing_since_(map_->epoch()),
      next_look_(now + options_.down_after) {
  CFS_CHECK(map_->Find(self_) != nullptr);
  for (const ClusterNode& node : map_->nodes()) members_[node.id] = {now, std::nullopt};
}

NodeState Keeper::StateOf(const ClusterNode& node, Instant now) const {
  if (IsGone(node.state)) return node.state;
  const auto it = members_.find(node.id);
  CFS_CHECK(it != members_.end());
  const Member& member = it->second;
  const bool silent = node.id != self_ && now - member.heard >= options_.down_after;
  // What it said before this keeper was there still holds.
  if (!silent && !member.serving.has_value()) return node.state;
  if (!silent && *member.serving) return NodeState::kUp;
  return node.state == NodeState::kJoining && !silent ? node.state : NodeState::kDown;
}

void Keeper::WantState(const ClusterNode& node, Instant now) {
  if (StateOf(node, now) != node.state) {
    state_due_ = std::min(state_due_, now + options_.state_window);
  }
}

std::string Keeper::AddressTaken(const ClusterNode& node) const {
  const auto taken_by = [&](const ClusterNode& other) {
    return other.id != node.id && other.state != NodeState::kLost && SharesAnAddress(other, node);
  };
  for (const ClusterNode& other : map_->nodes()) {
    // One that moves away in the same epoch is in the way once more.
    if (taken_by(other)) {
      return absl::StrCat("address ", node.addresses.front(), " is that of node ", Raw(other.id),
                          other.state == NodeState::kUp ? "" : ", which is not up",
                          "; choose another with --listen");
    }
  }
  for (const auto& [id, other] : joins_) {
    if (taken_by(other)) {
      return absl::StrCat("address ", node.addresses.front(), " is that of node ", Raw(id),
                          ", which joins; choose another with --listen");
    }
  }
  return "";
}

std::optional<MemberAnswer> Keeper::Join(const MemberRequest& request, ClusterNode node,
                                         Instant now) {
  const auto answer = [this](MemberCode code, std::string text) {
    return MemberAnswer{code, map_->epoch(), std::move(text)};
  };
  const ClusterNode* const known = map_->Find(node.id);
  const auto waiting = joins_.find(node.id);
  const ClusterNode* const other = known != nullptr          ? known
                                   : waiting != joins_.end() ? &waiting->second
                                                             : nullptr;
  if (other != nullptr && other->store != node.store) {
    return answer(MemberCode::kIdTaken, absl::StrCat("number ", Raw(node.id), " is taken"));
  }
  if (known != nullptr && (IsGone(known->state) || IsGoing(known->id))) {
    return answer(MemberCode::kGone, "was given up as lost");
  }
  if (known == nullptr && (request.flags & MemberRequest::kFirst) == 0) {
    return answer(MemberCode::kGone, "was removed from the cluster");
  }
  if (std::string text = AddressTaken(node); !text.empty()) {
    return answer(MemberCode::kRefused, std::move(text));
  }
  if (waiting == joins_.end() && joins_.size() >= kClusterNodesMax) {
    return answer(MemberCode::kNotNow, "too many nodes join at once");
  }
  const bool serving = (request.flags & MemberRequest::kServing) != 0;
  node.incarnation = request.incarnation;
  node.state = known == nullptr || known->state == NodeState::kJoining ? NodeState::kJoining
               : serving                                               ? NodeState::kUp
                                                                       : NodeState::kDown;
  if (known != nullptr) members_[node.id] = {now, serving};
  if (known != nullptr && known->incarnation == node.incarnation) {
    // The same process: what it says of its state it says by heartbeats.
    node.state = known->state;
    if (*known == node) return answer(MemberCode::kOk, "");
  }
  held_.erase(node.id);
  joins_[node.id] = std::move(node);
  if (join_due_ == Instant::max()) join_due_ = now + options_.join_window;
  return std::nullopt;
}

MemberAnswer Keeper::Heartbeat(const MemberRequest& request, Instant now) {
  const auto answer = [this](MemberCode code, std::string text) {
    return MemberAnswer{code, map_->epoch(), std::move(text)};
  };
  const ClusterNode* const node = map_->Find(request.node);
  if (node == nullptr) return answer(MemberCode::kUnknownNode, "is not in the cluster");
  if (IsGone(node->state) || IsGoing(node->id))
    return answer(MemberCode::kGone, "was given up as lost");
  if (node->incarnation != request.incarnation) {
    return answer(MemberCode::kReplaced, "runs in another process");
  }
  if (const auto it = joins_.find(request.node);
      it != joins_.end() && it->second.incarnation != request.incarnation) {
    return answer(MemberCode::kReplaced, "was started again");
  }
  const bool serving = (request.flags & MemberRequest::kServing) != 0;
  const bool ending = (request.flags & MemberRequest::kEnding) != 0;
  Member& member = members_[request.node];
  member.heard = ending ? now - options_.down_after : now;
  member.serving = serving && !ending;
  WantState(*node, now);
  if (request.epoch > map_->epoch()) {
    return answer(MemberCode::kNotNow, "has a newer map than its keeper");
  }
  return answer(MemberCode::kOk, "");
}

void Keeper::Claim(NodeId node, const SlotSet& slots, Epoch epoch, Instant now) {
  const ClusterNode* const claimer = map_->Find(node);
  if (claimer == nullptr || IsGone(claimer->state)) return;
  claims_[node] |= slots;
  if (map_->IsRemoving() && epoch >= removing_since_) held_[node] = slots;
  state_due_ = std::min(state_due_, now + options_.state_window);
}

absl::StatusOr<ClusterMapPtr> Keeper::WithClaims(ClusterMapPtr map) const {
  for (const auto& [node, claimed] : claims_) {
    // Nobody takes from it any more; what it has taken stays with the giver.
    if (IsGoing(node)) continue;
    std::map<NodeId, std::vector<Slot>> from;
    for (size_t i = 0; i < kSlots; ++i) {
      const Slot slot{static_cast<uint16_t>(i)};
      // What the map has said so far is not new: another may have taken it since.
      if (claimed[i] && map_->OwnerOf(slot) != node) from[map->OwnerOf(slot)].push_back(slot);
    }
    for (const auto& [giver, slots] : from) {
      absl::StatusOr<ClusterMapPtr> next = map->HandedOver(slots, giver, node);
      if (!next.ok()) return next;
      map = *std::move(next);
    }
    if ((claimed & map->vacant()).none()) continue;
    absl::StatusOr<ClusterMapPtr> next = map->Adopted(claimed, node);
    if (!next.ok()) return next;
    map = *std::move(next);
  }
  return map;
}

bool Keeper::IsGoing(NodeId node) const {
  return std::ranges::find(removals_, node) != removals_.end();
}

absl::Status Keeper::MayRemove(NodeId id, const std::vector<NodeId>& nodes, Instant now) const {
  const auto refuse = [id](absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat("node ", Raw(id), " ", why));
  };
  const ClusterNode* const node = map_->Find(id);
  if (node == nullptr)
    return absl::NotFoundError(absl::StrCat("the cluster has no node ", Raw(id)));
  if (map_->IsKeeper(id)) return refuse("keeps the cluster map: without it nothing changes");
  if (node->state != NodeState::kDown || StateOf(*node, now) != NodeState::kDown ||
      joins_.contains(id)) {
    return refuse("is not down: only a node that is gone for ever can be lost");
  }
  if (map_->OwnerOf(Slot{0}) == id) {
    return refuse("owns the root directory: without it no file could be found");
  }
  for (const ClusterNode& other : map_->nodes()) {
    if (other.state != NodeState::kDown || IsGoing(other.id) ||
        std::ranges::find(nodes, other.id) != nodes.end()) {
      continue;
    }
    return refuse(absl::StrCat("can't be removed while node ", Raw(other.id),
                               " is down too, and can't say what it has: start that, or remove "
                               "both at once"));
  }
  return absl::OkStatus();
}

absl::Status Keeper::Remove(const std::vector<NodeId>& nodes, Instant now) {
  std::vector<NodeId> wanted;
  for (const NodeId id : nodes) {
    const ClusterNode* const node = map_->Find(id);
    if (IsGoing(id) || (node != nullptr && IsGone(node->state))) continue;
    wanted.push_back(id);
  }
  if (wanted.empty()) return absl::OkStatus();
  const auto going = static_cast<size_t>(
      std::ranges::count(map_->nodes(), NodeState::kRemoving, &ClusterNode::state));
  if (map_->losses() + going + removals_.size() + wanted.size() > kLossesMax) {
    return absl::FailedPreconditionError("too many nodes of this cluster were lost");
  }
  for (const NodeId id : wanted) {
    const absl::Status may = MayRemove(id, wanted, now);
    if (!may.ok()) return may;
  }
  // Also while others are being removed: those may wait for what these would say.
  removals_.insert(removals_.end(), wanted.begin(), wanted.end());
  state_due_ = std::min(state_due_, now);
  return absl::OkStatus();
}

absl::StatusOr<ClusterMapPtr> Keeper::WithRemovals(ClusterMapPtr map) const {
  absl::StatusOr<ClusterMapPtr> next = std::move(map);
  for (const NodeId id : removals_) {
    if (next.ok()) next = (*next)->MarkRemoving(id);
  }
  SlotSet held;
  bool all_heard = true;
  for (const ClusterNode& node : map_->nodes()) {
    // One that has never served has taken nothing.
    if (IsGone(node.state) || node.state == NodeState::kJoining) continue;
    const auto of_node = held_.find(node.id);
    all_heard = all_heard && node.state == NodeState::kUp && of_node != held_.end();
    if (of_node != held_.end()) held |= of_node->second;
  }
  // Without the root directory there is nothing to go on with.
  if (!all_heard || !held[0]) return next;
  for (const ClusterNode& node : map_->nodes()) {
    if (next.ok() && node.state == NodeState::kRemoving) next = (*next)->MarkLost(node.id, held);
  }
  return next;
}

void Keeper::SetServing(bool serving, Instant now) {
  members_[self_] = {now, serving};
  WantState(*map_->Find(self_), now);
}

Keeper::Instant Keeper::due() const {
  return std::max(postponed_, std::min({join_due_, state_due_, next_look_}));
}

absl::StatusOr<ClusterMapPtr> Keeper::NextMap(Instant now) {
  if (now < due()) return ClusterMapPtr();
  std::vector<ClusterNode> joiners, changed;
  const bool take_joins = join_due_ <= now;
  next_look_ = Instant::max();
  for (const ClusterNode& node : map_->nodes()) {
    ClusterNode next = node;
    const auto it = joins_.find(node.id);
    if (it != joins_.end() && !take_joins) continue;
    if (it != joins_.end()) next = it->second;
    if (it == joins_.end() || next.incarnation == node.incarnation) {
      next.state = StateOf(node, now);
    }
    if (next != node) changed.push_back(std::move(next));
    if (node.id != self_ && node.state != NodeState::kDown && !IsGone(node.state)) {
      const Instant silent = members_.at(node.id).heard + options_.down_after;
      if (silent > now) next_look_ = std::min(next_look_, silent);
    }
  }
  if (take_joins) {
    for (const auto& [id, node] : joins_) {
      if (map_->Find(id) == nullptr) joiners.push_back(node);
    }
  }
  if (joiners.empty() && changed.empty()) {
    state_due_ = Instant::max();
    if (take_joins) {
      joins_.clear();
      join_due_ = Instant::max();
    }
  }
  absl::StatusOr<ClusterMapPtr> next = map_;
  if (!joiners.empty() || !changed.empty()) next = map_->Change(joiners, changed);
  if (next.ok()) next = WithClaims(*std::move(next));
  if (next.ok()) next = WithRemovals(*std::move(next));
  if (next.ok() && *next == map_) return ClusterMapPtr();
  if (!next.ok()) removals_.clear();
  if (!next.ok() && take_joins) {
    // A node that starts again is not to suffer for a joiner.
    const bool all = joiners.empty();
    absl::erase_if(joins_,
                   [&](const auto& entry) { return all || map_->Find(entry.first) == nullptr; });
    if (joins_.empty()) join_due_ = Instant::max();
  }
  return next;
}

void Keeper::Adopt(ClusterMapPtr map, Instant now) {
  for (const ClusterNode& node : map->nodes()) {
    members_.try_emplace(node.id, Member{now, false});
    // Its join is done, if it was in time for this map.
    const auto it = joins_.find(node.id);
    if (it != joins_.end() && it->second.incarnation == node.incarnation &&
        it->second.addresses == node.addresses && it->second.weight == node.weight) {
      joins_.erase(it);
    }
  }
  if (joins_.empty()) join_due_ = Instant::max();
  // A claim that came since is made again.
  claims_.clear();
  if (!removals_.empty()) removing_since_ = map->epoch();
  if (!removals_.empty() || !map->IsRemoving()) held_.clear();
  removals_.clear();
  map_ = std::move(map);
  // Looks at all states again, for some may have changed since.
  state_due_ = Instant::max();
  for (const ClusterNode& node : map_->nodes()) {
    if (IsGone(node.state)) continue;
    const Member& member = members_.at(node.id);
    if (member.serving.has_value()) WantState(node, now);
  }
  next_look_ = now;
}

void Keeper::Forgive(Instant::duration pause) {
  for (auto& [id, member] : members_) member.heard += pause;
}

}  // namespace cfs
