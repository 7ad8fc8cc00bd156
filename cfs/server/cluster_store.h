// What a store remembers of its cluster.
//
//   STORE/cluster.json  {format, token, founder, member, listen, address, weight};
//                       0600, for it has the secret. A store without it is alone.
//   STORE/cluster.map   the last cluster map (ring/cluster_map_format.h); at a
//                       keeper, the one that counts
#ifndef CFS_SERVER_CLUSTER_STORE_H_
#define CFS_SERVER_CLUSTER_STORE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/limits.h"
#include "cfs/net/token.h"
#include "cfs/ring/cluster_map.h"

namespace cfs {

struct ClusterMemory {
  Token token;
  // It made the cluster: where it has no map, it makes the first one.
  bool founder = false;
  // It has been in a map. Until then it may become a node of another cluster.
  bool member = false;
  std::string listen;   // As the user gave it; "" for the default.
  std::string address;  // Where it listened last.
  uint32_t weight = kNodeWeightDefault;
};

// Nothing where the file is missing. DATA_LOSS for a damaged one,
// FAILED_PRECONDITION for that of a newer cfs.
absl::StatusOr<std::optional<ClusterMemory>> ReadClusterMemory(const std::string& store);
// Durable when it returns.
absl::Status WriteClusterMemory(const std::string& store, const ClusterMemory& memory);
// Makes the store alone again. REQUIRES: it was no member.
absl::Status RemoveClusterMemory(const std::string& store);

// Null where the file is missing. DATA_LOSS as above, or for that of another
// cluster.
absl::StatusOr<ClusterMapPtr> ReadStoredMap(const std::string& store, const ClusterId& cluster);
// Durable when it returns.
absl::Status WriteStoredMap(const std::string& store, const ClusterMap& map);

// cluster.json as text and back.
std::string EncodeClusterMemory(const ClusterMemory& memory);
absl::StatusOr<ClusterMemory> DecodeClusterMemory(absl::string_view text);

// 32 hexadecimal digits, as node.json has it, and back.
std::string HexOf(const ClusterId& cluster);
ClusterId ClusterIdOf(absl::string_view hex);

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_STORE_H_
