#include "cfs/ring/cluster_map_format.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

constexpr size_t kRunMax = 256;
static_assert(kClusterNodesMax < UINT16_MAX && kNodeTextBytesMax <= UINT8_MAX &&
              kNodeAddressesMax <= UINT8_MAX && kKeepersMax <= UINT8_MAX);

absl::Status Corrupt(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("cluster map: ", what));
}

void AppendNode(std::string* out, const ClusterNode& node) {
  AppendLittle(out, Raw(node.id));
  AppendLittle(out, static_cast<uint8_t>(node.state));
  AppendLittle(out, node.weight);
  AppendLittle(out, node.store);
  AppendLittle(out, node.incarnation);
  AppendSized<uint8_t>(out, node.machine);
  AppendLittle(out, static_cast<uint8_t>(node.addresses.size()));
  for (const std::string& address : node.addresses) AppendSized<uint8_t>(out, address);
}

bool ConsumeNode(absl::string_view* in, ClusterNode* node) {
  uint32_t id;
  uint8_t state, addresses;
  if (!ConsumeLittle(in, &id) || !ConsumeLittle(in, &state) || !ConsumeLittle(in, &node->weight) ||
      !ConsumeLittle(in, &node->store) || !ConsumeLittle(in, &node->incarnation) ||
      !ConsumeSized<uint8_t>(in, &node->machine) || !ConsumeLittle(in, &addresses)) {
    return false;
  }
  node->id = NodeId{id};
  node->state = static_cast<NodeState>(state);
  for (; addresses > 0; --addresses) {
    if (!ConsumeSized<uint8_t>(in, &node->addresses.emplace_back())) return false;
  }
  return true;
}

absl::Status ConsumeKeepers(absl::string_view* in, std::vector<NodeId>* keepers) {
  uint8_t count;
  if (!ConsumeLittle(in, &count)) return Corrupt("too short");
  for (; count > 0; --count) {
    uint32_t id;
    if (!ConsumeLittle(in, &id)) return Corrupt("too short");
    keepers->push_back(NodeId{id});
  }
  return absl::OkStatus();
}

// Makes `nodes`, which are those of the base, those of the map.
absl::Status ConsumeNodes(absl::string_view* in, std::vector<ClusterNode>* nodes) {
  const auto position = [nodes](NodeId id) {
    return std::ranges::lower_bound(*nodes, id, {}, &ClusterNode::id);
  };
  uint16_t count;
  if (!ConsumeLittle(in, &count)) return Corrupt("too short");
  for (; count > 0; --count) {
    uint32_t id;
    if (!ConsumeLittle(in, &id)) return Corrupt("too short");
    const auto it = position(NodeId{id});
    if (it == nodes->end() || it->id != NodeId{id}) return Corrupt("an unknown node is gone");
    nodes->erase(it);
  }
  if (!ConsumeLittle(in, &count)) return Corrupt("too short");
  for (; count > 0; --count) {
    ClusterNode node;
    if (!ConsumeNode(in, &node)) return Corrupt("too short");
    const auto it = position(node.id);
    if (it != nodes->end() && it->id == node.id) {
      *it = std::move(node);
    } else if (nodes->size() < kClusterNodesMax) {
      nodes->insert(it, std::move(node));
    } else {
      return Corrupt("too many nodes");
    }
  }
  return absl::OkStatus();
}

// Nodes that `map` describes otherwise than `base`, which may be null.
void AppendNodes(std::string* out, const ClusterMap* base, const ClusterMap& map) {
  std::vector<NodeId> gone;
  if (base != nullptr) {
    for (const ClusterNode& node : base->nodes()) {
      if (map.Find(node.id) == nullptr) gone.push_back(node.id);
    }
  }
  AppendLittle(out, static_cast<uint16_t>(gone.size()));
  for (NodeId id : gone) AppendLittle(out, Raw(id));

  std::vector<const ClusterNode*> changed;
  for (const ClusterNode& node : map.nodes()) {
    const ClusterNode* const before = base == nullptr ? nullptr : base->Find(node.id);
    if (before == nullptr || *before != node) changed.push_back(&node);
  }
  AppendLittle(out, static_cast<uint16_t>(changed.size()));
  for (const ClusterNode* node : changed) AppendNode(out, *node);
}

void AppendOwners(std::string* out, const ClusterMap* base, const ClusterMap& map) {
  const ClusterNode* last = map.nodes().data();
  const auto code = [&](size_t slot) -> uint16_t {
    const NodeId owner = map.owners()[slot];
    if (base != nullptr && base->owners()[slot] == owner) return 0;
    if (last->id != owner) last = map.Find(owner);
    return static_cast<uint16_t>(1 + (last - map.nodes().data()));
  };
  uint16_t run_code = code(0);
  for (size_t begin = 0, end = 1; begin < kSlotCount; ++end) {
    const uint16_t next = end < kSlotCount ? code(end) : 0;
    if (end < kSlotCount && next == run_code && end - begin < kRunMax) continue;
    AppendLittle(out, run_code);
    AppendLittle(out, static_cast<uint8_t>(end - begin - 1));
    begin = end;
    run_code = next;
  }
}

absl::Status ConsumeOwners(absl::string_view* in, const std::vector<ClusterNode>& nodes,
                           SlotOwners* owners) {
  for (size_t begin = 0; begin < kSlotCount;) {
    uint16_t code;
    uint8_t more;
    if (!ConsumeLittle(in, &code) || !ConsumeLittle(in, &more)) return Corrupt("too short");
    const size_t end = begin + more + 1;
    if (end > kSlotCount || code > nodes.size()) return Corrupt("no such slot or owner");
    if (code > 0) std::fill(owners->begin() + begin, owners->begin() + end, nodes[code - 1].id);
    begin = end;
  }
  return absl::OkStatus();
}

void AppendLosses(std::string* out, const ClusterMap& map) {
  AppendLittle(out, map.losses());
  AppendLittle(out, static_cast<uint8_t>(map.vacant().any()));
  if (map.vacant().none()) return;
  for (size_t i = 0; i < kSlotCount; i += 8) {
    uint8_t bits = 0;
    for (size_t bit = 0; bit < 8; ++bit) bits |= map.vacant()[i + bit] << bit;
    AppendLittle(out, bits);
  }
}

absl::Status ConsumeLosses(absl::string_view* in, ClusterMap::Contents* map) {
  uint8_t any;
  if (!ConsumeLittle(in, &map->losses) || !ConsumeLittle(in, &any)) return Corrupt("too short");
  if (any > 1) return Corrupt("neither vacant nor not");
  for (size_t i = 0; any == 1 && i < kSlotCount; i += 8) {
    uint8_t bits;
    if (!ConsumeLittle(in, &bits)) return Corrupt("too short");
    for (size_t bit = 0; bit < 8; ++bit) map->vacant[i + bit] = bits >> bit & 1;
  }
  return absl::OkStatus();
}

std::string Encode(const ClusterMap* base, const ClusterMap& map) {
  std::string out;
  AppendLittle(&out, kMapVersion);
  AppendLittle(&out, base == nullptr ? 0 : Raw(base->epoch()));
  AppendLittle(&out, Raw(map.epoch()));
  out.append(map.cluster().begin(), map.cluster().end());
  AppendLittle(&out, static_cast<uint8_t>(map.keepers().size()));
  for (NodeId keeper : map.keepers()) AppendLittle(&out, Raw(keeper));
  AppendNodes(&out, base, map);
  AppendOwners(&out, base, map);
  AppendLosses(&out, map);
  AppendLittle(&out, Hash64(out));
  return out;
}

absl::StatusOr<ClusterMapPtr> Decode(const ClusterMap* base, absl::string_view in) {
  if (in.size() < sizeof(uint64_t)) return Corrupt("too short");
  absl::string_view tail = in.substr(in.size() - sizeof(uint64_t));
  in.remove_suffix(tail.size());
  uint64_t hash, base_epoch, epoch;
  uint8_t version;
  if (!ConsumeLittle(&tail, &hash) || hash != Hash64(in)) return Corrupt("wrong checksum");
  if (!ConsumeLittle(&in, &version) || version == 0) return Corrupt("no version");
  if (version > kMapVersion) {
    return absl::UnimplementedError(
        absl::StrCat("cluster map: version ", version, " is newer than this program"));
  }
  ClusterMap::Contents map;
  if (!ConsumeLittle(&in, &base_epoch) || !ConsumeLittle(&in, &epoch) ||
      in.size() < map.cluster.size()) {
    return Corrupt("too short");
  }
  std::copy_n(in.begin(), map.cluster.size(), map.cluster.begin());
  in.remove_prefix(map.cluster.size());
  map.epoch = Epoch{epoch};

  const uint64_t mine = base == nullptr ? 0 : Raw(base->epoch());
  if (base_epoch != mine) {
    return absl::FailedPreconditionError(
        absl::StrCat("cluster map: this changes epoch ", base_epoch, " and not ", mine));
  }
  if (base != nullptr && base->cluster() != map.cluster) {
    return absl::FailedPreconditionError("cluster map: this is of another cluster");
  }
  if (epoch <= mine) return Corrupt("an epoch that does not rise");

  if (base != nullptr) {
    map.nodes = base->nodes();
    map.owners = base->owners();
  } else {
    map.owners.resize(kSlotCount);
  }
  CFS_RETURN_IF_ERROR(ConsumeKeepers(&in, &map.keepers));
  CFS_RETURN_IF_ERROR(ConsumeNodes(&in, &map.nodes));
  CFS_RETURN_IF_ERROR(ConsumeOwners(&in, map.nodes, &map.owners));
  if (version > 1) CFS_RETURN_IF_ERROR(ConsumeLosses(&in, &map));
  if (!in.empty()) return Corrupt("too long");
  absl::StatusOr<ClusterMapPtr> made = ClusterMap::Make(std::move(map), base);
  if (!made.ok()) return absl::DataLossError(made.status().message());
  return made;
}

}  // namespace

std::string EncodeMap(const ClusterMap& map) { return Encode(nullptr, map); }

std::string EncodeDelta(const ClusterMap& from, const ClusterMap& to) {
  CFS_CHECK(from.cluster() == to.cluster());
  CFS_CHECK(from.epoch() < to.epoch());
  return Encode(&from, to);
}

absl::StatusOr<ClusterMapPtr> DecodeMap(absl::string_view bytes) { return Decode(nullptr, bytes); }

absl::StatusOr<ClusterMapPtr> ApplyDelta(const ClusterMap& from, absl::string_view bytes) {
  return Decode(&from, bytes);
}

}  // namespace cfs
