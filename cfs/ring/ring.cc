#include "cfs/ring/ring.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <string>

#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/base/limits.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

using Uint128 = unsigned __int128;

// What a node would hold at most if it were alone, in slots: 1.10 to 1.15 times
// all of them. Each node has its own value, so that a change of the cluster's
// size moves the whole-number bounds of a few nodes and not of all at once.
constexpr uint64_t kSlackLow = kSlotCount * 110 / 100;
constexpr uint64_t kSlackHigh = kSlotCount * 115 / 100;
// A bound is rounded down by less than 1, so that there is always a free node.
static_assert(kSlackLow - kClusterNodesMax > kSlotCount);

// log2(1 + i / 256) in units of 2^-32, by repeated squaring.
constexpr std::array<uint64_t, 257> kLog2 = [] {
  std::array<uint64_t, 257> table{};
  for (size_t i = 0; i < 256; ++i) {
    uint64_t x = (uint64_t{256} + i) << 23;  // In [1, 2), in units of 2^-31.
    for (int bit = 31; bit >= 0; --bit) {
      x = x * x >> 31;
      if (x >> 32 == 0) continue;
      x >>= 1;
      table[i] |= uint64_t{1} << bit;
    }
  }
  table[256] = uint64_t{1} << 32;
  return table;
}();

// -log2(hash / 2^64) in units of 2^-32, by linear interpolation. Over uniform
// hashes it is exponentially distributed.
constexpr uint64_t NegativeLog2(uint64_t hash) {
  const int zeros = std::countl_zero(hash | 1);
  const uint64_t mantissa = hash << zeros;
  const size_t i = mantissa >> 55 & 0xff;
  const uint64_t part = mantissa >> 31 & 0xffffff;  // Of the way from i to i + 1.
  const uint64_t fraction = kLog2[i] + ((kLog2[i + 1] - kLog2[i]) * part >> 24);
  return (uint64_t(zeros + 1) << 32) - fraction;
}

// A bijection that spreads each bit over all (the finalizer of SplitMix64).
constexpr uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

template <std::unsigned_integral T>
uint64_t HashOf(T value) {
  std::string key;
  AppendLittle(&key, value);
  return Hash64(key);
}

struct Candidate {
  NodeId node;
  uint64_t hash;
  uint64_t inverse_weight;  // 2^64 / weight.
  uint64_t room;            // Slots that it may still get.
};

}  // namespace

absl::StatusOr<SlotOwners> PlaceSlots(absl::Span<const RingMember> members) {
  if (members.size() > kClusterNodesMax ||
      !std::ranges::is_sorted(members, std::ranges::less_equal(), &RingMember::node)) {
    return absl::InvalidArgumentError("ring: members not ascending or too many");
  }
  uint64_t total = 0;
  for (const RingMember& member : members) total += member.weight;
  if (total == 0) return absl::FailedPreconditionError("ring: no node has a weight");

  std::vector<Candidate> candidates;
  for (const RingMember& member : members) {
    if (member.weight == 0) continue;
    const uint64_t hash = HashOf(Raw(member.node));
    const uint64_t slack = kSlackLow + hash % (kSlackHigh - kSlackLow + 1);
    candidates.push_back(
        {member.node, hash, UINT64_MAX / member.weight, member.weight * slack / total});
  }

  SlotOwners owners(kSlotCount);
  for (size_t slot = 0; slot < kSlotCount; ++slot) {
    const uint64_t slot_hash = HashOf(static_cast<uint16_t>(slot));
    // Weighted rendezvous: the first of exponential waits at rates `weight`.
    Candidate* best = nullptr;
    Uint128 best_wait = ~Uint128{0};
    for (Candidate& candidate : candidates) {
      if (candidate.room == 0) continue;
      const uint64_t hash = Mix(slot_hash ^ candidate.hash);
      // -log2(u) >= 1 - u: most lose without the table.
      if (Uint128{~hash >> 32} * candidate.inverse_weight >= best_wait) continue;
      const Uint128 wait = Uint128{NegativeLog2(hash)} * candidate.inverse_weight;
      if (wait >= best_wait) continue;
      best = &candidate;
      best_wait = wait;
    }
    CFS_CHECK(best != nullptr);
    --best->room;
    owners[slot] = best->node;
  }
  return owners;
}

}  // namespace cfs
