// Goal: what was prepared for a coordinator that is lost, with its outcomes, becomes
// the same at all who are left. Method: Transactors over disks in memory; the test says
// what the coordinator has still sent. The rest is the simulator's.
#include "cfs/server/transactor.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>

#include "cfs/base/clock.h"
#include "tests/simulator/disk.h"

namespace cfs {
namespace {

constexpr NodeId kLost{1};
constexpr Slot kLostSlot{0};

// Slot n is node n + 1's, until the first node is lost: then its slot is the second's.
class World final : public TransactorWorld, public InodeUses {
 public:
  struct Node {
    explicit Node(World* world, NodeId id)
        : shard(&disk, nullptr),
          transactor(&shard, world, &world->clock_, world, id, Raw(id), std::chrono::seconds(1)) {
      for (uint16_t i = 0; i < 3; ++i) shard.SetOwned(Slot(i), NodeId(i + 1) == id);
    }
    SimulatedDisk disk;
    Shard shard;
    Transactor transactor;
  };

  World() {
    for (uint32_t id = 1; id <= 3; ++id) {
      nodes_[NodeId(id)] = std::make_unique<Node>(this, NodeId(id));
    }
  }
  Node& node(uint32_t id) { return *nodes_.at(NodeId(id)); }
  void Lose() {
    nodes_.erase(kLost);
    node(2).shard.SetOwned(kLostSlot, true);
  }
  void SetSilent(std::set<NodeId> nodes) { silent_ = std::move(nodes); }
  void Tick() {
    now_ += std::chrono::seconds(5);
    for (const auto& [id, node] : nodes_) node->transactor.Tick();
  }

  std::chrono::steady_clock::time_point Now() override { return now_; }
  NodeId OwnerOf(Slot slot) override {
    return slot == kLostSlot && IsGone(kLost) ? NodeId{2} : NodeId(Raw(slot) + 1u);
  }
  void Ask(NodeId node, PeerOp op, std::string arguments, Answer done) override {
    if (!nodes_.contains(node) || silent_.contains(node)) {
      return done(absl::UnavailableError("no answer"));
    }
    nodes_.at(node)->transactor.Handle(op, arguments, std::move(done));
  }
  void Sync(absl::AnyInvocable<void(absl::Status)> done) override { done(absl::OkStatus()); }
  bool IsGone(NodeId node) override { return !nodes_.contains(node); }
  std::vector<NodeId> Witnesses() override {
    if (nodes_.contains(kLost)) return {};
    return {NodeId{2}, NodeId{3}};
  }
  void Later(std::chrono::steady_clock::time_point, absl::AnyInvocable<void(bool)> task) override { task(/*stopped=*/true); }

  InodeUse UseOf(InodeId, const InodeRecord&) override { return {}; }
  void OnRemoved(const Removed&) override {}
  bool MayLink(InodeId) override { return true; }

 private:
  RealClock clock_;
  std::chrono::steady_clock::time_point now_;
  std::map<NodeId, std::unique_ptr<Node>> nodes_;
  std::set<NodeId> silent_;
};

class TransactorTest : public ::testing::Test {
 protected:
  // The coordinator has asked the others to prepare one inode each, and they have.
  TransactorTest() {
    for (uint32_t id : {2u, 3u}) {
      TransactionPart part;
      part.compares.push_back({InodeKey(InodeAt(id)), std::nullopt});
      part.writes.Put(Family::kRecords, InodeKey(InodeAt(id)), Encode(InodeRecord()));
      EXPECT_EQ(Send(id, PeerOp::kPrepare, Encode(id_) + Encode(part)), Packer().Add(0).Take());
    }
  }
  static Slot SlotAt(uint32_t node) { return Slot(static_cast<uint16_t>(node - 1)); }
  static InodeId InodeAt(uint32_t node) { return MakeInode(SlotAt(node), 7); }
  std::string Send(uint32_t node, PeerOp op, std::string arguments) {
    std::string result;
    world_.Ask(NodeId(node), op, std::move(arguments), [&](absl::StatusOr<std::string> answer) {
      EXPECT_TRUE(answer.ok()) << answer.status();
      if (answer.ok()) result = *std::move(answer);
    });
    return result;
  }
  bool IsPrepared(uint32_t node) { return !world_.node(node).transactor.IsIdle(SlotAt(node)); }
  bool HasWritten(uint32_t node) {
    std::string value;
    return world_.node(node).disk.Get(Family::kRecords, InodeKey(InodeAt(node)), &value).ok();
  }

  World world_;
  const TransactionId id_{kLostSlot, kLost, 1, 1};
};

TEST_F(TransactorTest, WhatOneHasCommittedAllCommit) {
  Send(2, PeerOp::kCommit, Encode(id_));
  world_.Lose();
  world_.Tick();
  EXPECT_FALSE(IsPrepared(3));
  EXPECT_TRUE(HasWritten(2));
  EXPECT_TRUE(HasWritten(3));
}

TEST_F(TransactorTest, WhatNobodyHasCommittedIsAborted) {
  world_.Lose();
  world_.Tick();
  for (uint32_t id : {2u, 3u}) {
    EXPECT_FALSE(IsPrepared(id));
    EXPECT_FALSE(HasWritten(id));
  }
}

TEST_F(TransactorTest, AWitnessThatIsAwayIsWaitedFor) {
  Send(2, PeerOp::kCommit, Encode(id_));
  world_.Lose();
  // It answers as the owner of the slot, but may have been given that by another.
  world_.node(2).shard.SetOwned(kLostSlot, false);
  world_.node(3).shard.SetOwned(kLostSlot, true);
  world_.SetSilent({NodeId{2}});
  world_.Tick();
  EXPECT_TRUE(IsPrepared(3));
  world_.SetSilent({});
  world_.Tick();
  EXPECT_FALSE(IsPrepared(3));
  EXPECT_TRUE(HasWritten(3));
}

}  // namespace
}  // namespace cfs
