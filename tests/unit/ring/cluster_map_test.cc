// Goal: a map changes only as it may, one epoch at a time, and each slot always
// has one owner.
#include "cfs/ring/cluster_map.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

using absl::StatusCode;

constexpr ClusterId kCluster = {1, 2, 3};

ClusterNode Node(uint32_t id, uint32_t weight = 100) {
  return {NodeId{id},   NodeState::kUp,        weight, "machine", {absl::StrCat("10.0.0.1:", id)},
          /*store=*/id, /*incarnation=*/id + 1};
}

ClusterMapPtr Good(absl::StatusOr<ClusterMapPtr> map) {
  EXPECT_TRUE(map.ok()) << map.status();
  return *std::move(map);
}

StatusCode CodeOf(const absl::StatusOr<ClusterMapPtr>& map) { return map.status().code(); }

std::vector<Slot> Owned(const ClusterMap& map, NodeId node) {
  std::vector<Slot> slots;
  for (size_t i = 0; i < kSlotCount; ++i) {
    if (map.owners()[i] == node) slots.push_back(Slot(static_cast<uint16_t>(i)));
  }
  return slots;
}

// All hand-overs that the ring wants, each pair of nodes in an epoch.
ClusterMapPtr Settle(ClusterMapPtr map) {
  const ClusterMapPtr first = map;
  for (const ClusterNode& from : first->nodes()) {
    for (const ClusterNode& to : first->nodes()) {
      std::vector<Slot> slots = Owned(*map, from.id);
      std::erase_if(
          slots, [&](Slot slot) { return !map->InHandOver(slot) || map->WantedOf(slot) != to.id; });
      if (!slots.empty()) map = Good(map->HandedOver(slots, from.id, to.id));
    }
  }
  EXPECT_TRUE(map->owners() == map->wanted());
  return map;
}

// Nodes 1 to `count`, settled.
ClusterMapPtr Cluster(uint32_t count) {
  ClusterMapPtr map = Good(ClusterMap::Found(kCluster, Node(1)));
  std::vector<ClusterNode> others;
  for (uint32_t id = 2; id <= count; ++id) others.push_back(Node(id));
  return others.empty() ? map : Settle(Good(map->Join(others)));
}

TEST(ClusterMapTest, TheFounderOwnsAll) {
  const ClusterMapPtr map = Good(ClusterMap::Found(kCluster, Node(7)));
  EXPECT_EQ(map->cluster(), kCluster);
  EXPECT_EQ(map->epoch(), Epoch{1});
  ASSERT_EQ(map->nodes().size(), 1u);
  EXPECT_EQ(map->nodes()[0].state, NodeState::kUp);
  EXPECT_EQ(map->keepers(), std::vector<NodeId>{NodeId{7}});
  EXPECT_EQ(Owned(*map, NodeId{7}).size(), kSlotCount);
  EXPECT_TRUE(map->owners() == map->wanted());
  EXPECT_EQ(CodeOf(ClusterMap::Found(kCluster, Node(7, 0))), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, JoinersShareAnEpochAndGetTheirSlotsByHandOver) {
  const ClusterMapPtr one = Cluster(1);
  const ClusterMapPtr joined = Good(one->Join({Node(9), Node(3), Node(5, 0)}));
  EXPECT_EQ(joined->epoch(), Epoch{2});
  EXPECT_EQ(joined->nodes().size(), 4u);
  EXPECT_EQ(joined->Find(NodeId{3})->state, NodeState::kJoining);
  EXPECT_EQ(joined->Find(NodeId{4}), nullptr);
  EXPECT_TRUE(joined->owners() == one->owners());
  EXPECT_EQ(one->nodes().size(), 1u);

  const ClusterMapPtr settled = Settle(joined);
  EXPECT_EQ(settled->epoch(), Epoch{4});
  EXPECT_EQ(Owned(*settled, NodeId{5}).size(), 0u);
  EXPECT_NEAR(Owned(*settled, NodeId{9}).size(), kSlotCount / 3, 1'000);
  // Nothing changed for the ring.
  EXPECT_EQ(&settled->wanted(), &joined->wanted());
}

TEST(ClusterMapTest, AJoinIsRefusedWhole) {
  const ClusterMapPtr map = Cluster(2);
  EXPECT_EQ(CodeOf(map->Join({})), StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(map->Join({Node(3), Node(2)})), StatusCode::kAlreadyExists);
  EXPECT_EQ(CodeOf(map->Join({Node(3), Node(3)})), StatusCode::kAlreadyExists);
  EXPECT_EQ(CodeOf(map->Join({Node(0)})), StatusCode::kInvalidArgument);

  ClusterNode node = Node(3);
  node.addresses.push_back(map->nodes()[0].addresses[0]);
  EXPECT_EQ(CodeOf(map->Join({node})), StatusCode::kAlreadyExists);
  for (auto spoil :
       {+[](ClusterNode* n) { n->addresses.clear(); },
        +[](ClusterNode* n) { n->addresses.push_back(""); },
        +[](ClusterNode* n) { n->addresses[0].resize(kNodeTextBytesMax + 1); },
        +[](ClusterNode* n) { n->incarnation = 0; }, +[](ClusterNode* n) { n->machine.clear(); },
        +[](ClusterNode* n) { n->machine.resize(kNodeTextBytesMax + 1); },
        +[](ClusterNode* n) {
          for (size_t i = 0; i < kNodeAddressesMax; ++i) {
            n->addresses.push_back(absl::StrCat("a", i));
          }
        }}) {
    node = Node(3);
    spoil(&node);
    EXPECT_EQ(CodeOf(map->Join({node})), StatusCode::kInvalidArgument);
  }

  std::vector<ClusterNode> many;
  for (uint32_t id = 3; id <= kClusterNodesMax + 1; ++id) many.push_back(Node(id));
  EXPECT_EQ(CodeOf(map->Join(many)), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, AHandOverIsRecordedOnce) {
  const ClusterMapPtr map = Good(Cluster(1)->Join({Node(2), Node(3)}));
  const NodeId a{1}, b{2}, c{3};
  const std::vector<Slot> slots = {Slot(5), Slot(65'535)};
  const ClusterMapPtr next = Good(map->HandedOver(slots, a, b));
  EXPECT_EQ(next->epoch(), Epoch{3});
  EXPECT_EQ(Owned(*next, b), slots);

  EXPECT_EQ(CodeOf(next->HandedOver(slots, a, b)), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(next->HandedOver(slots, a, c)), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(next->HandedOver({Slot(1), Slot(1)}, a, b)), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(next->HandedOver(slots, b, b)), StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(next->HandedOver({}, a, b)), StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(next->HandedOver({Slot(1)}, a, NodeId{4})), StatusCode::kNotFound);
  const ClusterMapPtr lost = Good(next->MarkLost(c));
  EXPECT_EQ(CodeOf(lost->HandedOver({Slot(5)}, b, c)), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, ANodeChangesItsStateAddressAndWeight) {
  ClusterMapPtr map = Good(Cluster(1)->Join({Node(2)}));
  ClusterNode node = *map->Find(NodeId{2});
  node.weight = 300;
  map = Good(map->Update(node));
  EXPECT_NEAR(std::ranges::count(map->wanted(), node.id), kSlotCount * 3 / 4, 1'000);
  node.addresses = {"elsewhere:1", "elsewhere:2"};
  const ClusterMapPtr before = map;
  for (NodeState state : {NodeState::kUp, NodeState::kDown, NodeState::kUp}) {
    node.state = state;
    map = Good(map->Update(node));
    EXPECT_EQ(*map->Find(node.id), node);
    EXPECT_EQ(&map->wanted(), &before->wanted());
  }
  EXPECT_EQ(map->epoch(), Epoch{6});

  for (NodeState state : {NodeState::kJoining, NodeState::kLost}) {
    node.state = state;
    EXPECT_EQ(CodeOf(map->Update(node)), StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(CodeOf(map->Update(Node(3))), StatusCode::kNotFound);
  node = *map->Find(NodeId{2});
  node.addresses = map->Find(NodeId{1})->addresses;
  EXPECT_EQ(CodeOf(map->Update(node)), StatusCode::kAlreadyExists);
}

TEST(ClusterMapTest, ANodeLeavesWhenItHasGivenAllAway) {
  ClusterMapPtr map = Cluster(3);
  EXPECT_EQ(CodeOf(map->Leave(NodeId{2})), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->Leave(NodeId{4})), StatusCode::kNotFound);
  map = Good(map->Update(Node(2, 0)));
  EXPECT_EQ(std::ranges::count(map->wanted(), NodeId{2}), 0);
  for (size_t i = 0; i < kSlotCount; ++i) {
    const Slot slot = Slot(static_cast<uint16_t>(i));
    EXPECT_EQ(map->InHandOver(slot), map->OwnerOf(slot) == NodeId{2});
  }
  map = Settle(map);
  const ClusterMapPtr left = Good(map->Leave(NodeId{2}));
  EXPECT_EQ(left->Find(NodeId{2}), nullptr);
  EXPECT_EQ(&left->wanted(), &map->wanted());
}

TEST(ClusterMapTest, JoinsAndChangesShareAnEpoch) {
  const ClusterMapPtr map = Cluster(2);
  ClusterNode restarted = Node(2);
  restarted.incarnation = 99;
  const ClusterMapPtr next = Good(map->Change({Node(3)}, {restarted}));
  EXPECT_EQ(Raw(next->epoch()), Raw(map->epoch()) + 1);
  EXPECT_EQ(next->Find(NodeId{2})->incarnation, 99u);
  EXPECT_EQ(next->Find(NodeId{3})->state, NodeState::kJoining);
  EXPECT_EQ(CodeOf(map->Change({Node(3)}, {Node(4)})), StatusCode::kNotFound);
}

TEST(ClusterMapTest, AKeeperStays) {
  ClusterMapPtr map = Cluster(2);
  EXPECT_EQ(CodeOf(map->MarkLost(NodeId{1})), StatusCode::kFailedPrecondition);
  map = Settle(Good(map->Update(Node(1, 0))));
  EXPECT_EQ(std::ranges::count(map->owners(), NodeId{1}), 0);
  EXPECT_EQ(CodeOf(map->Leave(NodeId{1})), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, TheLastOwnerStays) {
  const ClusterMapPtr map = Good(Cluster(1)->Join({Node(2, 0)}));
  EXPECT_EQ(CodeOf(map->Leave(NodeId{1})), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->MarkLost(NodeId{1})), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->Update(Node(1, 0))), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, TheSlotsOfALostNodeGoWhereTheRingWantsThem) {
  const ClusterMapPtr before = Cluster(4);
  const ClusterMapPtr map = Good(before->MarkLost(NodeId{3}));
  EXPECT_EQ(map->epoch(), Epoch{Raw(before->epoch()) + 1});
  EXPECT_EQ(map->Find(NodeId{3})->state, NodeState::kLost);
  int moved = 0;
  for (size_t i = 0; i < kSlotCount; ++i) {
    const Slot slot = Slot(static_cast<uint16_t>(i));
    if (before->OwnerOf(slot) == NodeId{3}) {
      ++moved;
      EXPECT_NE(map->OwnerOf(slot), NodeId{3});
      EXPECT_FALSE(map->InHandOver(slot));
      EXPECT_TRUE(map->IsVacant(slot));
    } else {
      EXPECT_FALSE(map->IsVacant(slot));
      EXPECT_EQ(map->OwnerOf(slot), before->OwnerOf(slot));
    }
  }
  EXPECT_GT(moved, 10'000);
  EXPECT_EQ(map->losses(), 1);

  EXPECT_EQ(CodeOf(map->MarkLost(NodeId{3})), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->Update(Node(3))), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->MarkLost(NodeId{5})), StatusCode::kNotFound);
  // Its machine may come back as another node, with its address.
  ClusterNode again = Node(5);
  again.addresses = before->Find(NodeId{3})->addresses;
  EXPECT_EQ(Good(map->Join({again}))->nodes().size(), 5u);
  EXPECT_EQ(Good(map->Leave(NodeId{3}))->nodes().size(), 3u);
}

TEST(ClusterMapTest, ANodeThatIsRemovedKeepsItsSlotsUntilItIsLost) {
  const ClusterMapPtr before = Cluster(4);
  EXPECT_EQ(CodeOf(before->MarkRemoving(NodeId{3})), StatusCode::kFailedPrecondition);  // It is up.
  ClusterNode down = *before->Find(NodeId{3});
  down.state = NodeState::kDown;
  const ClusterMapPtr map = Good(Good(before->Update(down))->MarkRemoving(NodeId{3}));
  EXPECT_TRUE(map->IsRemoving());
  EXPECT_TRUE(map->owners() == before->owners());
  EXPECT_EQ(map->Find(NodeId{3})->weight, 0u);
  const Slot slot = Owned(*map, NodeId{3}).front();
  EXPECT_TRUE(map->InHandOver(slot));
  // What others have taken from it is theirs, and what it has taken is not its.
  EXPECT_EQ(Good(map->HandedOver({slot}, NodeId{3}, NodeId{1}))->OwnerOf(slot), NodeId{1});
  EXPECT_EQ(CodeOf(map->HandedOver({Owned(*map, NodeId{1}).front()}, NodeId{1}, NodeId{3})),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->Update(down)), StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(map->MarkRemoving(NodeId{3})), StatusCode::kFailedPrecondition);
  EXPECT_FALSE(Good(map->MarkLost(NodeId{3}))->IsRemoving());
}

TEST(ClusterMapTest, VacantSlotsAreTakenOverByTheirOwners) {
  const ClusterMapPtr lost = Good(Cluster(3)->MarkLost(NodeId{3}));
  const size_t vacant = lost->vacant().count();
  const ClusterMapPtr one = Good(lost->Adopted(lost->vacant(), NodeId{1}));
  EXPECT_GT(one->vacant().count(), 0u);
  EXPECT_LT(one->vacant().count(), vacant);
  EXPECT_TRUE(one->owners() == lost->owners());
  EXPECT_EQ(Good(one->Adopted(lost->vacant(), NodeId{2}))->vacant().count(), 0u);
}

TEST(ClusterMapTest, TheNodeOfTheRootIsNotRemoved) {
  ClusterMap::Contents contents = Cluster(3)->contents();
  contents.nodes[1].state = NodeState::kDown;
  contents.owners[0] = NodeId{2};
  EXPECT_EQ(CodeOf(Good(ClusterMap::Make(contents, nullptr))->MarkRemoving(NodeId{2})),
            StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, LossesEnd) {
  ClusterMap::Contents last = Cluster(2)->contents();
  last.losses = UINT8_MAX;
  EXPECT_EQ(CodeOf(Good(ClusterMap::Make(last, nullptr))->MarkLost(NodeId{2})),
            StatusCode::kFailedPrecondition);
}

TEST(ClusterMapTest, MakeRefusesWhatNoChangeCouldGive) {
  const ClusterMap::Contents good = Cluster(3)->contents();
  EXPECT_TRUE(ClusterMap::Make(good, nullptr).ok());
  for (auto spoil : {+[](ClusterMap::Contents* c) { c->epoch = Epoch{0}; },
                     +[](ClusterMap::Contents* c) { c->owners.pop_back(); },
                     +[](ClusterMap::Contents* c) { c->owners[9] = NodeId{4}; },
                     +[](ClusterMap::Contents* c) { c->keepers.clear(); },
                     +[](ClusterMap::Contents* c) { c->keepers = {NodeId{4}}; },
                     +[](ClusterMap::Contents* c) {
                       c->keepers = {NodeId{2}, NodeId{1}};
                     },
                     +[](ClusterMap::Contents* c) {
                       c->keepers = {NodeId{1}, NodeId{1}};
                     },
                     +[](ClusterMap::Contents* c) { std::swap(c->nodes[0], c->nodes[1]); },
                     +[](ClusterMap::Contents* c) { c->nodes[0].state = NodeState::kLost; },
                     +[](ClusterMap::Contents* c) { c->nodes[0].state = NodeState{6}; },
                     // The keeper; and one that still has a weight.
                     +[](ClusterMap::Contents* c) {
                       c->nodes[0].state = NodeState::kRemoving;
                       c->nodes[0].weight = 0;
                     },
                     +[](ClusterMap::Contents* c) { c->nodes[1].state = NodeState::kRemoving; },
                     +[](ClusterMap::Contents* c) { c->nodes[0].state = NodeState{0}; }}) {
    ClusterMap::Contents bad = good;
    spoil(&bad);
    EXPECT_EQ(CodeOf(ClusterMap::Make(bad, nullptr)), StatusCode::kInvalidArgument);
  }
}

TEST(ClusterMapTest, EpochsEnd) {
  ClusterMap::Contents last = Cluster(2)->contents();
  last.epoch = Epoch{UINT64_MAX};
  const ClusterMapPtr map = Good(ClusterMap::Make(last, nullptr));
  EXPECT_FALSE(map->Join({Node(3)}).ok());
  EXPECT_FALSE(map->MarkLost(NodeId{2}).ok());
}

}  // namespace
}  // namespace cfs
