// The cluster map as it is sent and stored. Stable(map-v2): a change needs a
// version step, golden values in tests/unit/ring, and an ADR; so does a change
// of PlaceSlots, for what the ring wants is computed by whoever reads the map.
//
// A map is what changed since a base, and a whole map what changed since
// nothing. Integers are little-endian; text is length(1) bytes.
//
//   version(1) base epoch(8) epoch(8) cluster(16)
//   count(1) {id(4)}                                    keepers
//   count(2) {id(4)}                                    nodes that are gone
//   count(2) {id(4) state(1) weight(4) store(8)         nodes that are new or
//             incarnation(8) machine text               changed
//             count(1) {address text}}
//   {owner(2) slots - 1 (1)}                            runs, over all slots:
//                                                       0: the base's owner,
//                                                       else 1 + index of node
//   losses(1) is(1) [a bit a slot(8192)]                nodes lost so far; vacant
//                                                       slots, if `is` is 1
//   XXH3 of all before(8)                               last in every version
//
// A whole map has base epoch 0. Version 1 had no losses.
#ifndef CFS_RING_CLUSTER_MAP_FORMAT_H_
#define CFS_RING_CLUSTER_MAP_FORMAT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/ring/cluster_map.h"

namespace cfs {

inline constexpr uint8_t kMapVersion = 2;

// At most 3 bytes a slot, and what describes the nodes: 260 KiB at 1,024 nodes.
std::string EncodeMap(const ClusterMap& map);
// A join of one is about 1 KiB; a hand-over adds 6 bytes a slot at most.
// REQUIRES: both of one cluster, `to` of a later epoch.
std::string EncodeDelta(const ClusterMap& from, const ClusterMap& to);

// Errors: DATA_LOSS for anything that was not encoded so; UNIMPLEMENTED for a
// newer version; FAILED_PRECONDITION for a delta to another epoch or cluster
// than that of `from`, or to any where a whole map is needed.
// Cost: bounded whatever the bytes: memory by the limits of a map, time by one
// PlaceSlots, which is spared where the delta changes nothing for the ring.
absl::StatusOr<ClusterMapPtr> DecodeMap(absl::string_view bytes);
absl::StatusOr<ClusterMapPtr> ApplyDelta(const ClusterMap& from, absl::string_view bytes);

}  // namespace cfs

#endif  // CFS_RING_CLUSTER_MAP_FORMAT_H_
