// From what the user says and what the store remembers to a Membership.
#ifndef CFS_SERVER_CLUSTER_START_H_
#define CFS_SERVER_CLUSTER_START_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "cfs/net/transport.h"
#include "cfs/server/membership.h"
#include "cfs/server/node_config.h"
#include "cfs/server/store_dir.h"

namespace cfs {

// Founds, joins or comes back to a cluster; null: the node is alone. A store
// that joins may get another identity, as long as it is empty. A join that is
// refused leaves it as empty as it was.
// Errors: those of Membership::Start; FAILED_PRECONDITION for a store of
// another cluster or with data of its own; INVALID_ARGUMENT for options that
// make no sense together; ABORTED when `cancelled` says so.
absl::StatusOr<std::unique_ptr<Membership>> StartMembership(
    const ClusterConfig& config, StoreDir* store, absl::flat_hash_map<uint16_t, Method> methods,
    std::function<bool()> cancelled);

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_START_H_
