// Cluster maps (selector 0) and changes of one (1), with a checksum that fits.
// What is taken can be encoded and decoded again.
#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/ring/cluster_map_format.h"
#include "cfs/ring/hash.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {
namespace {

constexpr size_t kChecksumBytes = 8;

ClusterNode Node(uint32_t id) {
  return {NodeId{id}, NodeState::kJoining, 100, "machine", {std::string(1, 'a' + id % 26)},
          /*store=*/id, /*incarnation=*/id};
}

ClusterMapPtr Founded() {
  ClusterNode first = Node(1);
  first.state = NodeState::kUp;
  return *ClusterMap::Found({0xa1, 0xb2}, first);
}

ClusterMapPtr Joined() { return *Founded()->Join({Node(2), Node(3)}); }

std::string BodyOf(const std::string& bytes) {
  return bytes.substr(0, bytes.size() - kChecksumBytes);
}

}  // namespace

bool FuzzOne(absl::string_view input) {
  static const auto* const base = new ClusterMapPtr(Joined());
  const bool delta = TakeSelector(&input) % 2 == 1;
  std::string bytes(input);
  AppendLittle(&bytes, Hash64(bytes));
  const auto map = delta ? ApplyDelta(**base, bytes) : DecodeMap(bytes);
  if (!map.ok()) return false;
  const auto again =
      delta ? ApplyDelta(**base, EncodeDelta(**base, **map)) : DecodeMap(EncodeMap(**map));
  CFS_CHECK(again.ok());
  CFS_CHECK(**again == **map);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  const ClusterMapPtr founded = Founded(), joined = Joined();
  std::vector<std::string> seeds = {
      std::string(1, '\0') + BodyOf(EncodeMap(*founded)),
      std::string(1, '\0') + BodyOf(EncodeMap(*joined)),
  };
  ClusterNode up = Node(2);
  up.state = NodeState::kUp;
  for (const auto& next :
       {joined->Join({Node(4)}), joined->Update(up), joined->Leave(NodeId{3}),
        joined->HandedOver({Slot{7}}, NodeId{1}, NodeId{2}),
        (*joined->HandedOver({Slot{7}}, NodeId{1}, NodeId{2}))->MarkLost(NodeId{2})}) {
    CFS_CHECK(next.ok());
    seeds.push_back(std::string(1, '\1') + BodyOf(EncodeDelta(*joined, **next)));
  }
  return seeds;
}

}  // namespace cfs
