// Goal: what is decoded is what was encoded, the bytes never change by
// accident, and no bytes do harm. Method: random histories of a cluster, every
// kind of damage, with and without a checksum that fits it.
#include "cfs/ring/cluster_map_format.h"

#include <algorithm>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "cfs/base/coding.h"
#include "cfs/base/limits.h"
#include "cfs/ring/hash.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

using absl::StatusCode;

constexpr size_t kChecksumBytes = 8;

ClusterNode Node(uint32_t id, uint32_t weight = 100) {
  return {NodeId{id},
          NodeState::kUp,
          weight,
          absl::StrCat("machine-", id % 3),
          {absl::StrCat("10.0.0.1:", id), absl::StrCat("[fe80::1]:", id)},
          /*store=*/0x1111'0000'0000ull + id,
          /*incarnation=*/0x2222'0000'0000ull + id};
}

ClusterMapPtr Good(absl::StatusOr<ClusterMapPtr> map) {
  EXPECT_TRUE(map.ok()) << map.status();
  return *std::move(map);
}

ClusterMapPtr Founded() { return Good(ClusterMap::Found({0xa1, 0xb2}, Node(1))); }

// All owners as the ring wants them, an epoch later.
ClusterMapPtr Settled(const ClusterMap& map) {
  ClusterMap::Contents contents = map.contents();
  contents.epoch = Epoch{Raw(contents.epoch) + 1};
  contents.owners = map.wanted();
  return Good(ClusterMap::Make(contents, &map));
}

// Nodes 1 to `count`, settled.
ClusterMapPtr Cluster(uint32_t count) {
  std::vector<ClusterNode> others;
  for (uint32_t id = 2; id <= count; ++id) others.push_back(Node(id));
  return Settled(*Good(Founded()->Join(others)));
}

// With a checksum that fits.
std::string Sealed(std::string body) {
  AppendLittle(&body, Hash64(body));
  return body;
}

std::string BodyOf(const std::string& bytes) {
  return bytes.substr(0, bytes.size() - kChecksumBytes);
}

class History {
 public:
  explicit History(uint32_t seed) : random_(seed) {}

  // Some change of `map`; null if the chosen one is refused.
  ClusterMapPtr Change(const ClusterMap& map) {
    const ClusterNode& node = map.nodes()[random_() % map.nodes().size()];
    const uint32_t kind = random_() % 8;
    absl::StatusOr<ClusterMapPtr> next;
    if (kind == 0 && map.nodes().size() < 8) {
      const uint32_t id = random_() | 2;
      next = map.Join({Node(id), Node(id ^ 1, id / 4 % 3)});
    } else if (kind == 1) {
      ClusterNode changed = node;
      changed.state = random_() % 4 == 0 ? NodeState::kUp : NodeState::kDown;
      changed.weight = random_() % 4 * 100;
      next = map.Update(changed);
    } else if (kind == 2) {
      next = map.MarkLost(node.id);
    } else if (kind == 3) {
      next = map.Leave(node.id);
    } else if (kind == 4) {
      next = map.Adopted(map.vacant(), node.id);
    } else if (kind == 5) {
      next = map.MarkRemoving(node.id);
    } else {
      const size_t first = random_() % kSlotCount;
      std::vector<Slot> slots;
      for (size_t slot = first; slot < kSlotCount && slots.size() < 5'000; ++slot) {
        if (map.owners()[slot] == map.owners()[first] &&
            map.wanted()[slot] == map.wanted()[first]) {
          slots.push_back(Slot(static_cast<uint16_t>(slot)));
        }
      }
      next = map.HandedOver(slots, map.owners()[first], map.wanted()[first]);
    }
    if (!next.ok()) return nullptr;
    kinds_.insert(kind);
    return *std::move(next);
  }

  size_t kinds() const { return kinds_.size(); }

 private:
  std::mt19937 random_;
  std::set<uint32_t> kinds_;
};

TEST(ClusterMapFormatTest, HistoriesSurviveEncoding) {
  History history(/*seed=*/1);
  for (int run = 0; run < 2; ++run) {
    ClusterMapPtr map = Founded(), old = map;
    for (int step = 0; step < 50; ++step) {
      const ClusterMapPtr next = history.Change(*map);
      if (next == nullptr) continue;
      EXPECT_EQ(Raw(next->epoch()), Raw(map->epoch()) + 1);
      EXPECT_TRUE(*Good(ApplyDelta(*map, EncodeDelta(*map, *next))) == *next);
      const ClusterMapPtr whole = Good(DecodeMap(EncodeMap(*next)));
      EXPECT_TRUE(*whole == *next);
      EXPECT_TRUE(whole->wanted() == next->wanted());
      map = next;
      if (step % 10 != 9) continue;
      // Also over several epochs.
      EXPECT_TRUE(*Good(ApplyDelta(*old, EncodeDelta(*old, *map))) == *map);
      old = map;
    }
  }
  EXPECT_EQ(history.kinds(), 8u);
}

TEST(ClusterMapFormatTest, ADeltaFitsOneEpochOfOneCluster) {
  const ClusterMapPtr a = Founded(), b = Good(a->Join({Node(2)})), c = Good(b->Join({Node(3)}));
  const std::string delta = EncodeDelta(*a, *b);
  EXPECT_EQ(ApplyDelta(*b, delta).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ApplyDelta(*a, EncodeDelta(*b, *c)).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(DecodeMap(delta).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ApplyDelta(*a, EncodeMap(*b)).status().code(), StatusCode::kFailedPrecondition);
  const ClusterMapPtr other = Good(ClusterMap::Found({0xc3}, Node(1)));
  EXPECT_EQ(ApplyDelta(*other, delta).status().code(), StatusCode::kFailedPrecondition);
}

TEST(ClusterMapFormatTest, IsSmall) {
  EXPECT_LT(EncodeMap(*Founded()).size(), 1u << 10);
  const ClusterMapPtr sixteen = Cluster(16), joined = Good(sixteen->Join({Node(17)}));
  EXPECT_LT(EncodeMap(*sixteen).size(), 200u << 10);
  EXPECT_LT(EncodeDelta(*sixteen, *joined).size(), 1u << 10);
  EXPECT_LT(EncodeDelta(*joined, *Settled(*joined)).size(), 25u << 10);
  EXPECT_LT(EncodeMap(*Cluster(1'024)).size(), 300u << 10);
}

TEST(ClusterMapFormatTest, EveryTruncationIsNoticed) {
  const ClusterMapPtr map = Cluster(3), next = Good(map->Join({Node(4)}));
  const std::string delta = EncodeDelta(*map, *next), whole = EncodeMap(*Founded());
  for (size_t size = 0; size < delta.size(); ++size) {
    EXPECT_EQ(ApplyDelta(*map, delta.substr(0, size)).status().code(), StatusCode::kDataLoss);
  }
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(DecodeMap(whole.substr(0, size)).status().code(), StatusCode::kDataLoss);
  }
  // With a checksum that fits; what is left out are runs like those before.
  for (size_t size = 0; size < BodyOf(delta).size(); size += size < 150 ? 1 : 20) {
    const std::string cut = Sealed(delta.substr(0, size));
    EXPECT_EQ(ApplyDelta(*map, cut).status().code(), StatusCode::kDataLoss) << size;
  }
  for (size_t size = 0; size < BodyOf(whole).size(); size += size < 150 ? 1 : 20) {
    const std::string cut = Sealed(whole.substr(0, size));
    EXPECT_EQ(DecodeMap(cut).status().code(), StatusCode::kDataLoss) << size;
  }
  EXPECT_EQ(DecodeMap(Sealed(BodyOf(whole) + '\0')).status().code(), StatusCode::kDataLoss);
}

TEST(ClusterMapFormatTest, EveryFlippedByteIsNoticed) {
  const ClusterMapPtr map = Cluster(3), next = Good(map->Join({Node(4)}));
  const std::string good = EncodeDelta(*map, *next);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << i % 8));
    EXPECT_EQ(ApplyDelta(*map, bad).status().code(), StatusCode::kDataLoss) << i;
  }
}

// Damage that the checksum fits, as of a peer with a bug: refused, or a map that
// keeps the rules (Make checks them), never a crash.
TEST(ClusterMapFormatTest, ForgedBytesDoNoHarm) {
  const ClusterMapPtr map = Cluster(3);
  const ClusterMapPtr next = Good(Good(map->Join({Node(4), Node(5)}))->MarkLost(NodeId{2}));
  const std::string delta = BodyOf(EncodeDelta(*map, *next)), whole = BodyOf(EncodeMap(*next));
  std::mt19937 random(7);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 120; ++i) {
    const bool use_delta = i % 4 != 0;
    std::string body = use_delta ? delta : whole;
    // Most of the damage in what describes the nodes.
    for (uint32_t flips = 1 + random() % 3; flips > 0; --flips) {
      const size_t at = random() % (random() % 4 == 0 ? body.size() : 250);
      body[at] = static_cast<char>(random());
    }
    if (random() % 8 == 0) body.insert(random() % body.size(), 1 + random() % 40, '\xff');
    const std::string bytes = Sealed(body);
    const absl::StatusOr<ClusterMapPtr> made =
        use_delta ? ApplyDelta(*map, bytes) : DecodeMap(bytes);
    if (!made.ok()) {
      const StatusCode code = made.status().code();
      EXPECT_TRUE(code == StatusCode::kDataLoss || code == StatusCode::kUnimplemented ||
                  code == StatusCode::kFailedPrecondition)
          << made.status();
      ++refused;
      continue;
    }
    EXPECT_TRUE(*Good(DecodeMap(EncodeMap(**made))) == **made);
    ++accepted;
  }
  EXPECT_GT(accepted, 5);
  EXPECT_GT(refused, 40);
}

TEST(ClusterMapFormatTest, CountsAreBounded) {
  // A whole map of as many nodes as its count can say, each as small as can be.
  std::string body(1, static_cast<char>(kMapVersion));
  AppendLittle(&body, uint64_t{0});
  AppendLittle(&body, uint64_t{1});
  body.append(16, 'c');
  body.append("\1\1\0\0\0", 5);
  AppendLittle(&body, uint16_t{0});
  AppendLittle(&body, uint16_t{UINT16_MAX});
  for (uint32_t id = 1; id <= UINT16_MAX; ++id) {
    AppendLittle(&body, id);
    body.append("\2\1\0\0\0", 5);
    body.append(16, '\1');
    body.append("\1m\1\1a", 5);
  }
  EXPECT_EQ(DecodeMap(Sealed(body)).status().message(), "cluster map: too many nodes");
}

TEST(ClusterMapFormatTest, ANewerVersionIsNotDamage) {
  std::string body = BodyOf(EncodeMap(*Founded()));
  body[0] = kMapVersion + 1;
  EXPECT_EQ(DecodeMap(Sealed(body)).status().code(), StatusCode::kUnimplemented);
  body[0] = 0;
  EXPECT_EQ(DecodeMap(Sealed(body)).status().code(), StatusCode::kDataLoss);
}

TEST(ClusterMapFormatTest, AnOlderVersionHadNoLosses) {
  std::string body = BodyOf(EncodeMap(*Founded()));
  body[0] = 1;
  body.resize(body.size() - 2);
  EXPECT_TRUE(*Good(DecodeMap(Sealed(body))) == *Founded());
}

TEST(ClusterMapFormatTest, AnEpochRises) {
  const ClusterMapPtr a = Founded(), b = Good(a->Join({Node(2)}));
  std::string body = BodyOf(EncodeDelta(*a, *b));
  body[9] = 1;  // The epoch of `a`.
  EXPECT_EQ(ApplyDelta(*a, Sealed(body)).status().code(), StatusCode::kDataLoss);
}

// Golden bytes: a change here is a new version, and needs an ADR.
TEST(ClusterMapFormatTest, BytesAreFrozen) {
  const ClusterMapPtr a = Cluster(3), b = Good(Good(a->Join({Node(9)}))->MarkLost(NodeId{2}));
  EXPECT_EQ(Hash64(EncodeMap(*Founded())), 0xd5128b4d7400a65u);
  EXPECT_EQ(Hash64(EncodeMap(*a)), 0x2c9f365d5c2f30eau);
  EXPECT_EQ(Hash64(EncodeDelta(*a, *b)), 0x6456ee5caff40bf6u);
}

}  // namespace
}  // namespace cfs
