// What a node is to its cluster: it serves its files to peers, and gets theirs.
#ifndef CFS_SERVER_CLUSTER_PART_H_
#define CFS_SERVER_CLUSTER_PART_H_

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"
#include "cfs/server/cluster_file_system.h"
#include "cfs/server/cluster_names.h"
#include "cfs/server/cluster_space.h"
#include "cfs/server/hand_over.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/membership.h"
#include "cfs/server/peer_client.h"
#include "cfs/server/peer_service.h"
#include "cfs/server/transactor.h"

namespace cfs {

// Life: Methods before the Membership starts; Begin when the local file system
// is open, Serve when it has started; End before the Membership ends, and this
// after it. Thread-compatible.
class ClusterPart {
 public:
  ClusterPart();
  ~ClusterPart();

  // What peers may call, before there is a file system.
  absl::flat_hash_map<uint16_t, Method> Methods() { return service_.Methods(); }

  // `local`, `clock` and `membership` outlive End.
  absl::Status Begin(LocalFileSystem* local, Clock* clock, Membership* membership,
                     absl::Duration io_timeout);
  // What a mount shows; it goes before this does.
  ClusterFileSystem* file_system() { return file_system_.get(); }
  // Peers are answered from now on.
  absl::Status Serve();
  // No operation begins any more. What waits to be asked again ends; the rest
  // does with the Membership.
  void End();

  // See Losses.
  nlohmann::json CountLosses(std::vector<NodeId> nodes);

  // What peers have open here, and what this node has asked of them.
  // REQUIRES: the Membership has not ended.
  nlohmann::json Status();

 private:
  class World;

  ClusterMapPtr map();
  void SetMap(ClusterMapPtr map);
  void RunUpkeep();

  LocalFileSystem* local_ = nullptr;
  Membership* membership_ = nullptr;
  PeerService service_;
  std::unique_ptr<PeerClient> peers_;
  std::unique_ptr<World> world_;
  std::unique_ptr<Transactor> transactor_;
  std::unique_ptr<ClusterNames> names_;
  std::unique_ptr<ClusterSpace> space_;
  std::unique_ptr<HandOver> hand_over_;
  std::unique_ptr<ClusterFileSystem> file_system_;
  Mutex map_mutex_;
  // Outlives the Membership, for callbacks that its end brings about.
  ClusterMapPtr map_ ABSL_GUARDED_BY(map_mutex_);

  Mutex upkeep_mutex_;
  CondVar upkeep_wake_;
  bool stopping_ ABSL_GUARDED_BY(upkeep_mutex_) = false;
  Thread upkeep_;
};

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_PART_H_
