// Goal: nodes join, restart, end and fail, and all of them come to the same map.
// Method: several Memberships in this process over real UCX on loopback, with
// stores in a directory each and times shorter than the usual.
#include "cfs/server/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace cfs {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

// How long a change may take to be known everywhere.
constexpr absl::Duration kPatience = absl::Seconds(20);

// A node: what its store has, and its process while it runs.
class Node {
 public:
  Node(const fs::path& root, uint32_t id, const Token& token, bool founder) {
    options_.store_path = (root / absl::StrCat("s", id, "-", next_store_++)).string();
    fs::create_directory(options_.store_path);
    options_.identity = {HexOf(token.cluster), NodeId{id}, "machine", 1'000'000ull + next_store_};
    options_.memory.token = token;
    options_.memory.founder = founder;
    options_.memory.listen = "127.0.0.1:0";
    options_.transports = "tcp";
    options_.heartbeat_interval = milliseconds(100);
    options_.keeper.join_window = milliseconds(200);
    options_.keeper.down_after = milliseconds(2'000);
    options_.join_patience = milliseconds(3'000);
    options_.rejoin_patience = milliseconds(300);
  }

  absl::Status Start() {
    auto started = Membership::Start(options_, {});
    if (!started.ok()) return started.status();
    membership_ = *std::move(started);
    membership_->SetServing();
    return absl::OkStatus();
  }
  // As a process does that comes back: with what the store remembers.
  absl::Status Restart() {
    Kill();
    auto memory = ReadClusterMemory(options_.store_path);
    if (!memory.ok()) return memory.status();
    EXPECT_TRUE(memory->has_value());
    options_.memory = **memory;
    return Start();
  }
  // Says nothing to anybody.
  void Kill() { membership_.reset(); }
  void End() {
    membership_->EndServing();
    membership_.reset();
  }

  Membership* operator->() { return membership_.get(); }
  MembershipOptions& options() { return options_; }
  NodeId id() const { return options_.identity.node_id; }
  bool runs() const { return membership_ != nullptr; }

 private:
  static inline int next_store_ = 0;
  MembershipOptions options_;
  std::unique_ptr<Membership> membership_;
};

class MembershipTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "membership_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
    token_ = *MakeToken({"127.0.0.1:1"});
  }
  void TearDown() override {
    nodes_.clear();
    fs::remove_all(root_);
  }

  Node& Add(uint32_t id) {
    const bool founder = nodes_.empty();
    nodes_.push_back(std::make_unique<Node>(root_, id, founder ? token_ : TokenNow(), founder));
    return *nodes_.back();
  }
  Token TokenNow() { return *ParseToken((*nodes_.front())->TokenText()); }
  Node& node(size_t index) { return *nodes_[index]; }

  void Founded() { ASSERT_TRUE(Add(1).Start().ok()); }
  // Node 1 and `count` - 1 others, all up.
  void Cluster(uint32_t count) {
    Founded();
    std::vector<std::thread> threads;
    for (uint32_t id = 2; id <= count; ++id) {
      Node* const joiner = &Add(id);
      threads.emplace_back([joiner] {
        const absl::Status status = joiner->Start();
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(Settles(count));
  }

  // All that run come to one map, in which `up` nodes are up.
  bool Settles(long up) {
    return Settles(up, [](const ClusterMap&) { return true; });
  }
  bool Settles(long up, const std::function<bool(const ClusterMap&)>& good) {
    for (const absl::Time end = absl::Now() + kPatience; absl::Now() < end;) {
      ClusterMapPtr first;
      bool same = true;
      for (const auto& node : nodes_) {
        if (!node->runs()) continue;
        const ClusterMapPtr map = (*node)->map();
        if (first == nullptr) first = map;
        same = same && *map == *first;
      }
      if (same && good(*first) &&
          std::ranges::count(first->nodes(), NodeState::kUp, &ClusterNode::state) == up) {
        return true;
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
    for (const auto& node : nodes_) {
      if (node->runs()) ADD_FAILURE() << (*node)->Status().dump();
    }
    return false;
  }

  fs::path root_;
  Token token_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

TEST_F(MembershipTest, AClusterOfOne) {
  Founded();
  const ClusterMapPtr map = node(0)->map();
  EXPECT_EQ(map->nodes().size(), 1u);
  EXPECT_EQ(map->keepers(), std::vector<NodeId>{NodeId{1}});
  EXPECT_EQ(map->Find(NodeId{1})->incarnation, node(0)->incarnation());
  EXPECT_TRUE(Settles(1));
  const nlohmann::json status = node(0)->Status();
  EXPECT_EQ(status["keeper"], 1);
  EXPECT_EQ(status["nodes"][0]["slots_owned"], kSlotCount);
  EXPECT_EQ(TokenNow().seeds, map->nodes()[0].addresses);
}

TEST_F(MembershipTest, NodesJoinAndThoseAtOnceShareAnEpoch) {
  // Long enough for all to be there, on a machine that is busy.
  Add(1).options().keeper.join_window = milliseconds(1'000);
  ASSERT_TRUE(node(0).Start().ok());
  std::atomic<int> changes{0};
  std::atomic<bool> in_order{true};
  std::atomic<uint64_t> last{0};
  node(0)->OnChange([&](const ClusterMapPtr& before, const ClusterMapPtr& now) {
    if (last != 0 && Raw(before->epoch()) != last) in_order = false;
    last = Raw(now->epoch());
    ++changes;
  });
  ASSERT_TRUE(Add(2).Start().ok());
  ASSERT_TRUE(Settles(2));
  EXPECT_EQ(Raw(node(0)->map()->epoch()), 3u);  // It joins, and it is up.
  EXPECT_EQ(node(1)->map()->OwnerOf(Slot(9)), NodeId{1});

  std::vector<std::thread> threads;
  for (uint32_t id = 3; id <= 6; ++id) {
    Node* const joiner = &Add(id);
    joiner->options().memory.weight = id == 6 ? 0 : 100;
    threads.emplace_back([joiner] { EXPECT_TRUE(joiner->Start().ok()); });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(Settles(6));
  // One or two for the joins, some more for who serves when.
  EXPECT_LE(Raw(node(0)->map()->epoch()), 3u + 2 + 4);
  EXPECT_TRUE(in_order);
  EXPECT_GE(changes, 4);
  const nlohmann::json status = node(3)->Status();
  EXPECT_EQ(status["self"], 4);
  EXPECT_EQ(status["nodes"].size(), 6u);
  EXPECT_GT(status["nodes"][2]["slots_coming"], 10'000);
  EXPECT_EQ(status["nodes"][5]["slots_coming"], 0);  // Of weight 0.
}

TEST_F(MembershipTest, AMemberRestarts) {
  Cluster(3);
  const uint64_t before = node(1)->incarnation();
  const Epoch epoch = node(0)->map()->epoch();
  node(1).options().memory.weight = 5;
  ASSERT_TRUE(node(1).Restart().ok());
  const uint64_t after = node(1)->incarnation();
  EXPECT_NE(after, before);
  EXPECT_TRUE(
      Settles(3, [&](const ClusterMap& map) { return map.Find(NodeId{2})->incarnation == after; }));
  EXPECT_GT(node(0)->map()->epoch(), epoch);
  EXPECT_EQ(node(2)->map()->nodes().size(), 3u);
}

TEST_F(MembershipTest, AMemberMoves) {
  Cluster(2);
  node(1).Kill();
  node(1).options().memory = **ReadClusterMemory(node(1).options().store_path);
  node(1).options().memory.address.clear();
  node(1).options().memory.weight = 7;
  ASSERT_TRUE(node(1).Start().ok());
  const std::string address = node(1)->transport()->address();
  EXPECT_TRUE(Settles(2, [&](const ClusterMap& map) {
    const ClusterNode& moved = *map.Find(NodeId{2});
    return moved.addresses.front() == address && moved.weight == 7;
  }));
}

TEST_F(MembershipTest, TheKeeperRestarts) {
  Cluster(3);
  const std::string address = node(0)->transport()->address();
  node(0).Kill();
  // The others have the map, and go on.
  EXPECT_EQ(node(1)->map()->nodes().size(), 3u);
  ASSERT_TRUE(node(0).Restart().ok());
  EXPECT_EQ(node(0)->transport()->address(), address);
  const uint64_t after = node(0)->incarnation();
  const auto knows = [&](const ClusterMap& map) {
    return map.Find(NodeId{1})->incarnation == after;
  };
  ASSERT_TRUE(Settles(3, knows));
  // Also at another address, which nobody could guess.
  node(0).Kill();
  node(0).options().memory = **ReadClusterMemory(node(0).options().store_path);
  node(0).options().memory.address.clear();
  ASSERT_TRUE(node(0).Start().ok());
  ASSERT_NE(node(0)->transport()->address(), address);
  ASSERT_TRUE(Settles(3, [&](const ClusterMap& map) {
    return map.Find(NodeId{1})->addresses.front() == node(0)->transport()->address();
  }));
  // And they are heard there: nobody goes down.
  absl::SleepFor(absl::Seconds(3));
  EXPECT_TRUE(Settles(3));
  ASSERT_TRUE(Add(4).Start().ok());
  EXPECT_TRUE(Settles(4));
}

TEST_F(MembershipTest, AMemberStartsWithoutTheKeeper) {
  Cluster(2);
  node(0).Kill();
  ASSERT_TRUE(node(1).Restart().ok());
  EXPECT_EQ(node(1)->Status()["keeper_answers"], false);
  EXPECT_EQ(node(1)->map()->nodes().size(), 2u);
  ASSERT_TRUE(node(0).Restart().ok());
  const uint64_t incarnation = node(1)->incarnation();
  EXPECT_TRUE(Settles(
      2, [&](const ClusterMap& map) { return map.Find(NodeId{2})->incarnation == incarnation; }));
}

TEST_F(MembershipTest, AnyMemberShowsTheWayToTheKeeper) {
  Cluster(2);
  Node& third = Add(3);
  third.options().memory.token.seeds = {"127.0.0.1:1", node(1)->transport()->address()};
  ASSERT_TRUE(third.Start().ok());
  EXPECT_TRUE(Settles(3));
}

TEST_F(MembershipTest, ASilentNodeIsDownUntilItIsBack) {
  Cluster(3);
  node(2).Kill();
  EXPECT_TRUE(Settles(
      2, [](const ClusterMap& map) { return map.Find(NodeId{3})->state == NodeState::kDown; }));
  ASSERT_TRUE(node(2).Restart().ok());
  EXPECT_TRUE(Settles(3));
}

TEST_F(MembershipTest, ANodeThatEndsIsDownAtOnce) {
  Cluster(3);
  const absl::Time start = absl::Now();
  node(2).End();
  EXPECT_TRUE(Settles(2));
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(1'500));  // Silence would take 2 s.
  node(0).End();
  EXPECT_TRUE(Settles(
      1, [](const ClusterMap& map) { return map.Find(NodeId{1})->state == NodeState::kDown; }));
}

TEST_F(MembershipTest, AnotherSecretOrClusterIsRefusedAtOnce) {
  Founded();
  const absl::Time start = absl::Now();
  Node& stranger = Add(2);
  stranger.options().memory.token.secret = MakeToken({"127.0.0.1:1"})->secret;
  absl::Status status = stranger.Start();
  EXPECT_EQ(status.code(), StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(status.message(), HasSubstr("secret"));
  EXPECT_FALSE(ReadClusterMemory(stranger.options().store_path)->has_value());

  Node& other = Add(3);
  other.options().memory.token.cluster = {1, 2, 3};
  status = other.Start();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("another cluster"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  EXPECT_EQ(node(0)->map()->nodes().size(), 1u);
}

TEST_F(MembershipTest, ASeedThatDoesNotAnswerIsGivenUp) {
  Founded();
  Node& joiner = Add(2);
  joiner.options().memory.token.seeds = {"127.0.0.1:1"};
  const absl::Status status = joiner.Start();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("127.0.0.1:1"));
  EXPECT_FALSE(ReadClusterMemory(joiner.options().store_path)->has_value());
}

TEST_F(MembershipTest, AJoinerWaitsForItsKeeper) {
  Founded();
  Node& joiner = Add(2);
  node(0).Kill();
  std::thread thread([&] { EXPECT_TRUE(joiner.Start().ok()); });
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_TRUE(node(0).Restart().ok());
  thread.join();
  EXPECT_TRUE(Settles(2));
}

TEST_F(MembershipTest, ATakenNumberIsRefused) {
  Cluster(2);
  Node& twin = Add(2);
  EXPECT_EQ(twin.Start().code(), StatusCode::kAlreadyExists);
  EXPECT_FALSE(ReadClusterMemory(twin.options().store_path)->has_value());
  EXPECT_TRUE(Settles(2));
}

TEST_F(MembershipTest, ACopyOfARunningNodeExpelsIt) {
  Cluster(2);
  std::atomic<bool> expelled{false};
  node(1)->OnExpelled([&](const absl::Status& status) {
    EXPECT_FALSE(status.ok());
    expelled = true;
  });
  Node& copy = Add(2);
  copy.options().identity = node(1).options().identity;
  ASSERT_TRUE(copy.Start().ok());
  for (const absl::Time end = absl::Now() + kPatience; !expelled && absl::Now() < end;) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_TRUE(expelled);
  node(1).Kill();
  EXPECT_TRUE(Settles(2));
}

TEST_F(MembershipTest, AddressesThatCannotBeAreRefused) {
  Founded();
  Node& joiner = Add(2);
  joiner.options().memory.listen = node(0)->transport()->address();
  EXPECT_EQ(joiner.Start().code(), StatusCode::kUnavailable);
  joiner.options().memory.listen = "192.0.2.1:0";
  EXPECT_EQ(joiner.Start().code(), StatusCode::kInvalidArgument);
  joiner.options().memory.listen = "0.0.0.0:0";
  EXPECT_EQ(joiner.Start().code(), StatusCode::kInvalidArgument);
  joiner.options().memory.listen = "";  // That which reaches the seed.
  ASSERT_TRUE(joiner.Start().ok());
  EXPECT_THAT(joiner->transport()->address(), HasSubstr("127.0.0.1:"));
}

TEST_F(MembershipTest, AKeeperWithoutItsMapDoesNotStart) {
  Cluster(2);
  node(0).Kill();
  fs::remove(node(0).options().store_path + "/cluster.map");
  EXPECT_EQ(node(0).Restart().code(), StatusCode::kDataLoss);
  // Another node gets its copy from the keeper.
  fs::remove(node(1).options().store_path + "/cluster.map");
  EXPECT_EQ(node(1).Restart().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(ReadClusterMemory(node(1).options().store_path)->has_value());
}

TEST_F(MembershipTest, StartingCanBeCancelled) {
  Founded();
  Node& joiner = Add(2);
  joiner.options().memory.token.seeds = {"127.0.0.1:1"};
  joiner.options().cancelled = [] { return true; };
  EXPECT_EQ(joiner.Start().code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace cfs
