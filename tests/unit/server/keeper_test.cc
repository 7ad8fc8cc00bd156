// Goal: the map changes as the messages and the silence of the nodes say, in few
// epochs. Method: a Keeper with times that the test makes up.
#include "cfs/server/keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace cfs {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr NodeId kSelf{1};

ClusterNode Node(uint32_t id, uint32_t weight = 100) {
  return {
      NodeId{id}, NodeState::kJoining,        weight, "machine", {absl::StrCat("10.0.0.1:", id)},
      1000 + id,  /*incarnation=*/10'000 + id};
}

class KeeperTest : public ::testing::Test {
 protected:
  MemberRequest RequestOf(const ClusterNode& node, uint8_t flags = 0) const {
    return {flags, node.id, node.incarnation, keeper_.map()->epoch()};
  }
  std::optional<MemberAnswer> Join(const ClusterNode& node, uint8_t flags = MemberRequest::kFirst) {
    return keeper_.Join(RequestOf(node, flags), node, now_);
  }
  MemberAnswer Beat(const ClusterNode& node, uint8_t flags = MemberRequest::kServing) {
    return keeper_.Heartbeat(RequestOf(node, flags), now_);
  }
  // Lets time pass, in which nodes are heard of; returns how many epochs it took.
  int Pass(milliseconds time, const std::vector<ClusterNode>& alive = {},
           uint8_t flags = MemberRequest::kServing) {
    int epochs = 0;
    for (const auto end = now_ + time; now_ < end; now_ += milliseconds(10)) {
      for (const ClusterNode& node : alive) Beat(node, flags);
      const auto next = keeper_.NextMap(now_);
      EXPECT_TRUE(next.ok()) << next.status();
      if (!next.ok() || *next == nullptr) continue;
      EXPECT_GT((*next)->epoch(), keeper_.map()->epoch());
      keeper_.Adopt(*next, now_);
      ++epochs;
    }
    return epochs;
  }
  NodeState StateOf(uint32_t id) const { return keeper_.map()->Find(NodeId{id})->state; }

  Keeper::Instant now_ = std::chrono::steady_clock::now();
  Keeper keeper_{kSelf, *ClusterMap::Found({1}, Node(1)), Keeper::Options(), now_};
};

TEST_F(KeeperTest, JoinsOfAMomentShareAnEpoch) {
  EXPECT_EQ(Join(Node(2)), std::nullopt);
  EXPECT_EQ(Pass(milliseconds(300)), 0);
  EXPECT_EQ(Join(Node(3)), std::nullopt);
  EXPECT_EQ(Join(Node(4, 0)), std::nullopt);
  EXPECT_TRUE(keeper_.Waits(NodeId{4}));
  EXPECT_EQ(Pass(milliseconds(300)), 1);
  EXPECT_FALSE(keeper_.Waits(NodeId{4}));
  EXPECT_EQ(keeper_.map()->nodes().size(), 4u);
  EXPECT_EQ(StateOf(3), NodeState::kJoining);
  EXPECT_EQ(keeper_.map()->Find(NodeId{4})->weight, 0u);
  // Asked again, for the answer was lost.
  EXPECT_EQ(Join(Node(2))->code, MemberCode::kOk);
  EXPECT_EQ(Pass(milliseconds(1'000), {Node(2), Node(3), Node(4)}), 1);
  EXPECT_EQ(StateOf(2), NodeState::kUp);
}

TEST_F(KeeperTest, AJoinMayComeTwice) {
  EXPECT_EQ(Join(Node(2)), std::nullopt);
  EXPECT_EQ(Join(Node(2)), std::nullopt);
  EXPECT_EQ(Pass(milliseconds(600)), 1);
  EXPECT_EQ(keeper_.map()->nodes().size(), 2u);
}

TEST_F(KeeperTest, ATakenNumberOrAddressIsRefused) {
  ClusterNode other = Node(2);
  EXPECT_EQ(Join(Node(2)), std::nullopt);
  other.store = 5;
  EXPECT_EQ(Join(other)->code, MemberCode::kIdTaken);
  Pass(milliseconds(600));
  EXPECT_EQ(Join(other)->code, MemberCode::kIdTaken);
  other = Node(3);
  other.addresses = Node(2).addresses;
  const auto answer = Join(other);
  EXPECT_EQ(answer->code, MemberCode::kRefused);
  EXPECT_THAT(answer->text, HasSubstr("10.0.0.1:2"));
}

TEST_F(KeeperTest, ARestartIsAnEpoch) {
  Join(Node(2));
  Pass(milliseconds(1'000), {Node(2)});
  ClusterNode again = Node(2);
  again.incarnation = 77;
  again.addresses = {"10.0.0.2:9"};
  EXPECT_EQ(Join(again, 0), std::nullopt);
  // The old process, if it still runs, is told.
  EXPECT_EQ(Beat(Node(2)).code, MemberCode::kReplaced);
  EXPECT_EQ(Pass(milliseconds(600)), 1);
  EXPECT_EQ(Beat(Node(2)).code, MemberCode::kReplaced);
  EXPECT_EQ(keeper_.map()->Find(NodeId{2})->incarnation, 77u);
  EXPECT_EQ(keeper_.map()->Find(NodeId{2})->addresses, again.addresses);
  EXPECT_EQ(StateOf(2), NodeState::kDown);  // It does not serve yet.
  EXPECT_EQ(Pass(milliseconds(200), {again}), 1);
  EXPECT_EQ(StateOf(2), NodeState::kUp);
}

TEST_F(KeeperTest, ASilentNodeIsDownAndComesBack) {
  Join(Node(2));
  Join(Node(3));
  Pass(milliseconds(1'000), {Node(2), Node(3)});
  EXPECT_EQ(Pass(milliseconds(5'500), {Node(3)}), 0);
  EXPECT_EQ(Pass(milliseconds(1'000), {Node(3)}), 1);
  EXPECT_EQ(StateOf(2), NodeState::kDown);
  EXPECT_EQ(StateOf(3), NodeState::kUp);
  EXPECT_EQ(StateOf(1), NodeState::kUp);
  EXPECT_EQ(Pass(milliseconds(200), {Node(2), Node(3)}), 1);
  EXPECT_EQ(StateOf(2), NodeState::kUp);
}

TEST_F(KeeperTest, ANodeThatEndsIsDownAtOnce) {
  Join(Node(2));
  Pass(milliseconds(1'000), {Node(2)});
  EXPECT_EQ(Beat(Node(2), MemberRequest::kEnding).code, MemberCode::kOk);
  EXPECT_EQ(Pass(milliseconds(100)), 1);
  EXPECT_EQ(StateOf(2), NodeState::kDown);
  keeper_.SetServing(false, now_);
  EXPECT_EQ(Pass(milliseconds(100)), 1);
  EXPECT_EQ(StateOf(1), NodeState::kDown);
}

TEST_F(KeeperTest, StrangersAndTheLostAreRefused) {
  EXPECT_EQ(Beat(Node(2)).code, MemberCode::kUnknownNode);
  // A member of old that the map does not have was removed.
  EXPECT_EQ(Join(Node(2), 0)->code, MemberCode::kGone);
  Join(Node(2));
  Pass(milliseconds(600));
  Keeper keeper(kSelf, *keeper_.map()->MarkLost(NodeId{2}), Keeper::Options(), now_);
  EXPECT_EQ(keeper.Heartbeat(RequestOf(Node(2)), now_).code, MemberCode::kGone);
  EXPECT_EQ(keeper.Join(RequestOf(Node(2)), Node(2), now_)->code, MemberCode::kGone);
}

// Three nodes, of which the third has slots, has been up, and is down.
class RemovalTest : public KeeperTest {
 protected:
  RemovalTest() {
    Join(Node(2));
    Join(Node(3));
    Pass(milliseconds(1'000), {Node(2), Node(3)});
    SlotSet slots;
    for (size_t i = 100; i < 200; ++i) slots.set(i);
    keeper_.Claim(NodeId{3}, slots, keeper_.map()->epoch(), now_);
    Pass(milliseconds(100), {Node(2), Node(3)});
    Beat(Node(3), MemberRequest::kEnding);
    Pass(milliseconds(100), {Node(2)});
    EXPECT_EQ(StateOf(3), NodeState::kDown);
    EXPECT_EQ(keeper_.map()->OwnerOf(Slot{150}), NodeId{3});
  }
  std::string Refusal(std::vector<NodeId> nodes) {
    return std::string(keeper_.Remove(nodes, now_).message());
  }
  SlotSet OwnedBy(NodeId node) const {
    SlotSet slots;
    for (size_t i = 0; i < kSlotCount; ++i) slots[i] = keeper_.map()->owners()[i] == node;
    return slots;
  }
  // What the map says already.
  void SayOwned(NodeId node) {
    keeper_.Claim(node, OwnedBy(node), keeper_.map()->epoch(), now_);
  }
};

TEST_F(RemovalTest, ALostNodeIsRemovedWhenAllOthersHaveSaidWhatTheyHave) {
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  // From now on it is told so, whatever it says.
  EXPECT_EQ(Beat(Node(3)).code, MemberCode::kGone);
  EXPECT_EQ(Pass(milliseconds(200), {Node(2)}), 1);
  EXPECT_EQ(StateOf(3), NodeState::kRemoving);
  EXPECT_EQ(Beat(Node(3)).code, MemberCode::kGone);
  EXPECT_EQ(Join(Node(3), 0)->code, MemberCode::kGone);
  EXPECT_EQ(Refusal({NodeId{3}}), "");  // Once more.
  SayOwned(kSelf);
  EXPECT_EQ(Pass(milliseconds(200), {Node(2)}), 0);
  // What it has taken before is not lost; what was said by an old map does not count.
  SlotSet taken;
  taken.set(150);
  keeper_.Claim(NodeId{2}, taken, Epoch{Raw(keeper_.map()->epoch()) - 1}, now_);
  Pass(milliseconds(200), {Node(2)});
  EXPECT_EQ(StateOf(3), NodeState::kRemoving);
  SayOwned(NodeId{2});
  Pass(milliseconds(200), {Node(2)});
  EXPECT_EQ(StateOf(3), NodeState::kLost);
  EXPECT_EQ(keeper_.map()->OwnerOf(Slot{150}), NodeId{2});
  EXPECT_EQ(keeper_.map()->vacant().count(), 99u);
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  EXPECT_EQ(Pass(milliseconds(200), {Node(2)}), 0);
  // They take it over.
  keeper_.Claim(kSelf, keeper_.map()->vacant(), keeper_.map()->epoch(), now_);
  keeper_.Claim(NodeId{2}, keeper_.map()->vacant(), keeper_.map()->epoch(), now_);
  Pass(milliseconds(200), {Node(2)});
  EXPECT_EQ(keeper_.map()->vacant().count(), 0u);
}

TEST_F(RemovalTest, WhatNobodyHasWasTakenByTheLostNode) {
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  Pass(milliseconds(200), {Node(2)});
  SayOwned(NodeId{2});
  SlotSet rest = OwnedBy(kSelf);
  rest.reset(500);  // Given to the lost node, which had not claimed it.
  keeper_.Claim(kSelf, rest, keeper_.map()->epoch(), now_);
  Pass(milliseconds(200), {Node(2)});
  EXPECT_EQ(StateOf(3), NodeState::kLost);
  EXPECT_EQ(keeper_.map()->vacant().count(), 101u);
  EXPECT_TRUE(keeper_.map()->IsVacant(Slot{500}));
}

TEST_F(RemovalTest, WhoStartsAgainSaysOnceMoreWhatItHas) {
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  Pass(milliseconds(200), {Node(2)});
  SayOwned(NodeId{2});
  ClusterNode again = Node(2);
  again.incarnation = 77;
  Join(again, 0);
  Pass(milliseconds(600));
  SayOwned(kSelf);
  Pass(milliseconds(200), {again});
  EXPECT_EQ(StateOf(2), NodeState::kUp);
  EXPECT_EQ(StateOf(3), NodeState::kRemoving);
  SayOwned(NodeId{2});
  Pass(milliseconds(200), {again});
  EXPECT_EQ(StateOf(3), NodeState::kLost);
}

TEST_F(RemovalTest, AKeeperThatComesBackGoesOnWithIt) {
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  Pass(milliseconds(200), {Node(2)});
  Keeper again(kSelf, keeper_.map(), Keeper::Options(), now_);
  again.Claim(kSelf, OwnedBy(kSelf), again.map()->epoch(), now_);
  EXPECT_EQ(*again.NextMap(now_ + milliseconds(100)), nullptr);
  again.Claim(NodeId{2}, OwnedBy(NodeId{2}), again.map()->epoch(), now_);
  const ClusterMapPtr next = *again.NextMap(now_ + milliseconds(100));
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->Find(NodeId{3})->state, NodeState::kLost);
}

TEST_F(RemovalTest, AnotherNodeMayBeLostMeanwhile) {
  EXPECT_EQ(Refusal({NodeId{3}}), "");
  Pass(milliseconds(200), {Node(2)});
  SayOwned(kSelf);
  Beat(Node(2), MemberRequest::kEnding);
  Pass(milliseconds(200));
  EXPECT_EQ(StateOf(3), NodeState::kRemoving);  // The other may have something of it.
  EXPECT_EQ(Refusal({NodeId{2}}), "");
  Pass(milliseconds(200));
  EXPECT_EQ(StateOf(3), NodeState::kRemoving);
  SayOwned(kSelf);
  Pass(milliseconds(200));
  EXPECT_EQ(StateOf(2), NodeState::kLost);
  EXPECT_EQ(StateOf(3), NodeState::kLost);
  EXPECT_EQ(keeper_.map()->losses(), 2);
}

TEST_F(RemovalTest, WhatWouldLoseMoreIsRefused) {
  EXPECT_THAT(Refusal({NodeId{9}}), HasSubstr("no node 9"));
  EXPECT_THAT(Refusal({kSelf}), HasSubstr("keeps the cluster map"));
  EXPECT_THAT(Refusal({NodeId{2}}), HasSubstr("not down"));
  EXPECT_THAT(Refusal({NodeId{3}, NodeId{2}}), HasSubstr("not down"));
  SlotSet root;
  root.set(0);
  keeper_.Claim(NodeId{2}, root, keeper_.map()->epoch(), now_);
  Beat(Node(2), MemberRequest::kEnding);
  Pass(milliseconds(200));
  EXPECT_THAT(Refusal({NodeId{3}}), HasSubstr("while node 2 is down"));
  EXPECT_THAT(Refusal({NodeId{2}, NodeId{3}}), HasSubstr("root directory"));
  EXPECT_EQ(Pass(milliseconds(200)), 0);
}

TEST_F(KeeperTest, AKeeperThatComesBackBelievesTheMapForAWhile) {
  Join(Node(2));
  Join(Node(3));
  Pass(milliseconds(1'000), {Node(2), Node(3)});

  Keeper again(kSelf, keeper_.map(), Keeper::Options(), now_);
  EXPECT_EQ(*again.NextMap(now_), nullptr);
  for (int i = 0; i < 500; ++i) {
    now_ += milliseconds(10);
    EXPECT_EQ(*again.NextMap(now_), nullptr);
    again.Heartbeat(RequestOf(Node(2), MemberRequest::kServing), now_);
  }
  now_ += milliseconds(1'500);
  again.Heartbeat(RequestOf(Node(2), MemberRequest::kServing), now_);
  const ClusterMapPtr next = *again.NextMap(now_);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->Find(NodeId{2})->state, NodeState::kUp);
  EXPECT_EQ(next->Find(NodeId{3})->state, NodeState::kDown);
}

TEST_F(KeeperTest, ItsOwnPauseIsNobodysFault) {
  Join(Node(2));
  Pass(milliseconds(1'000), {Node(2)});
  now_ += milliseconds(60'000);
  keeper_.Forgive(milliseconds(60'000));
  EXPECT_EQ(Pass(milliseconds(2'000)), 0);
  EXPECT_EQ(StateOf(2), NodeState::kUp);
}

TEST_F(KeeperTest, WhatCannotBeStoredIsTriedAgain) {
  Join(Node(2));
  now_ += milliseconds(600);
  ASSERT_NE(*keeper_.NextMap(now_), nullptr);
  keeper_.Postpone(now_ + milliseconds(1'000));
  EXPECT_EQ(*keeper_.NextMap(now_ + milliseconds(900)), nullptr);
  EXPECT_TRUE(keeper_.Waits(NodeId{2}));
  ASSERT_NE(*keeper_.NextMap(now_ + milliseconds(1'000)), nullptr);
}

TEST_F(KeeperTest, AJoinerThatDoesNotFitHarmsNobodyElse) {
  Join(Node(2));
  Pass(milliseconds(1'000), {Node(2)});
  ClusterNode again = Node(2);
  again.incarnation = 77;
  ClusterNode nameless = Node(3);
  nameless.machine.clear();
  EXPECT_EQ(Join(again, 0), std::nullopt);
  EXPECT_EQ(Join(nameless), std::nullopt);
  now_ += milliseconds(600);
  EXPECT_FALSE(keeper_.NextMap(now_).ok());
  EXPECT_FALSE(keeper_.Waits(NodeId{3}));
  EXPECT_TRUE(keeper_.Waits(NodeId{2}));
  EXPECT_EQ(Pass(milliseconds(100)), 1);
  EXPECT_EQ(keeper_.map()->Find(NodeId{2})->incarnation, 77u);
}

TEST_F(KeeperTest, AMapFromTheFutureIsNoticed) {
  Join(Node(2));
  Pass(milliseconds(1'000), {Node(2)});
  MemberRequest request = RequestOf(Node(2));
  request.epoch = Epoch{1'000};
  EXPECT_EQ(keeper_.Heartbeat(request, now_).code, MemberCode::kNotNow);
}

}  // namespace
}  // namespace cfs
