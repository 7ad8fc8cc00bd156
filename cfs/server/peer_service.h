// Serves the file system of this node to the other nodes: the metadata of the
// slots it owns, and the files whose data it has.
#ifndef CFS_SERVER_PEER_SERVICE_H_
#define CFS_SERVER_PEER_SERVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cfs/base/mutex.h"
#include "cfs/net/transport.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/cluster_names.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_format.h"
#include "cfs/server/transactor.h"

namespace cfs {

class HandOver;

// A number for what one process of a cluster calls `number`: a lock owner, say.
uint64_t ClusterNumber(NodeId node, uint64_t incarnation, uint64_t number);

// Guarantees: a change that a peer asks for is made once, however often the
// request comes, also over a restart of this process (see RequestScope). What a
// process of another node has open or locked here ends with that process.
// Whatever bytes come, the answer is an error and nothing else happens.
//
// Thread-safe. Handlers run on the network threads; what may wait for a device
// goes to the file system's pool.
class PeerService {
 public:
  using MapFn = std::function<ClusterMapPtr()>;

  PeerService() = default;
  ~PeerService();

  // What a Transport has to serve; the service outlives it.
  absl::flat_hash_map<uint16_t, Method> Methods();

  // Until this, and after Stop, peers are told to ask again. All outlive Stop.
  absl::Status Serve(LocalFileSystem* fs, ClusterNames* names, Transactor* transactor,
                     HandOver* hand_over, NodeId self, MapFn map);
  // Ends what peers have open here; returns when no request is under way.
  void Stop();

  // Locks of inodes of the slots; those that no peer has are of the process given.
  std::vector<MovedLock> LocksOf(const std::vector<Slot>& slots, NodeId self,
                                 uint64_t incarnation);
  // What has come with slots: locks, and replies that peers may ask for again.
  void AdoptLocks(const std::vector<MovedLock>& locks, NodeId self);
  void AdoptReplies(const std::vector<Slot>& slots);

  // Processes that are not in the map any more are gone.
  void OnMap(const ClusterMap& now);

  nlohmann::json Status();

 private:
  class Session;
  class Exchange;
  struct OpenHandle;
  using SessionPtr = std::shared_ptr<Session>;
  using ExchangePtr = std::shared_ptr<Exchange>;

  void Handle(PeerOp op, Request request, Responder responder);
  // The node has said all that it had open and locked here before our start.
  void Reasserted(NodeId node);
  // Null when the map does not have the process.
  SessionPtr SessionOf(NodeId node, uint64_t incarnation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  CondVar idle_;
  LocalFileSystem* fs_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ClusterNames* names_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Transactor* transactor_ ABSL_GUARDED_BY(mutex_) = nullptr;
  HandOver* hand_over_ ABSL_GUARDED_BY(mutex_) = nullptr;
  MapFn map_ ABSL_GUARDED_BY(mutex_);
  size_t under_way_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<NodeId, SessionPtr> sessions_ ABSL_GUARDED_BY(mutex_);
  // Nodes of which that is waited for.
  absl::flat_hash_set<NodeId> silent_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_SERVER_PEER_SERVICE_H_
