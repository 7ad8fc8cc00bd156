// Moves slots of metadata to the nodes that the ring wants them at.
#ifndef CFS_SERVER_HAND_OVER_H_
#define CFS_SERVER_HAND_OVER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/losses.h"
#include "cfs/server/peer_client.h"
#include "cfs/server/peer_service.h"
#include "cfs/server/transactor.h"

namespace cfs {

// One node's part in hand-overs: it gives slots away, some at a time, and takes
// them. The giver copies what the slots have while it goes on serving them; then
// it serves them no more, copies what has changed meanwhile, writes down that they
// may be the taker's, and says so. The taker owns them from the moment that it has
// written that down; then it claims them for the map. When a node is lost, the map
// says who takes its slots over: empty.
//
// Guarantees: each slot has at most one owner, and one as soon as both nodes run,
// whoever is killed or loses power when. Locks, replies, outcomes of transactions
// and inode counters go with the slots. What needs a slot that is on its way is
// asked again.
// Thread-safe.
class HandOver {
 public:
  using MapFn = std::function<ClusterMapPtr()>;
  // Tells the keeper of slots that this node owns and the map of the epoch does not
  // say so; see Keeper::Claim.
  using ClaimFn = std::function<void(const SlotSet&, Epoch)>;

  // None is owned.
  HandOver(LocalFileSystem* local, Transactor* transactor, PeerService* service, PeerClient* peers,
           NodeId self, uint64_t incarnation, MapFn map, ClaimFn claim);
  ~HandOver();

  // Begins to give, and takes up what a process of before has not ended.
  absl::Status Start();
  void Stop();
  void OnMap();

  // What a giver asks of this node, or who counts losses. Waits for the device.
  absl::StatusOr<std::string> Handle(NodeId giver, PeerOp op, absl::string_view arguments);

  struct Stats {
    uint64_t given = 0, taken = 0;  // Slots.
    uint64_t longest_freeze_us = 0;
    uint64_t under_way = 0;         // Slots that are nobody's until the taker answers.
  };
  Stats stats();
  Losses* losses() { return &losses_; }

 private:
  using SlotList = LocalFileSystem::SlotList;
  using Giving = LocalFileSystem::Giving;

  void Run();
  // Gives some; false when there is nothing to give for now.
  bool GiveSome();
  absl::Status Give(NodeId taker, SlotList slots);
  // Asks until it is known whether the slots were taken.
  void Resolve(const ClusterMap& map);
  void End(const Giving& giving, bool given);
  // Whether the map is one that came after this process had joined.
  bool KnowsThisProcess(const ClusterMap& map) const;
  // Takes nothing more from nodes that are gone, nor from any while one is removed:
  // then each says what it owns, and that has to stay so.
  void EndTakings(const ClusterMap& map);
  // Takes over the vacant slots that the map gives to this node.
  void Adopt(const ClusterMap& map);
  void Claim(const ClusterMap& map);
  absl::StatusOr<std::string> Ask(NodeId node, PeerOp op, std::string arguments);
  absl::Status SendPiece(NodeId taker, uint64_t number, const WriteSet& piece);

  LocalFileSystem* const local_;
  Transactor* const transactor_;
  PeerService* const service_;
  PeerClient* const peers_;
  const NodeId self_;
  const uint64_t incarnation_;
  const MapFn map_;
  const ClaimFn claim_;
  Losses losses_;
  std::vector<Giving> unresolved_;  // The thread's.

  Mutex mutex_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool look_ ABSL_GUARDED_BY(mutex_) = false;
  Stats stats_ ABSL_GUARDED_BY(mutex_);

  // What is being taken, by giver.
  struct Taking {
    uint64_t number = 0;
    SlotSet slots;
  };
  Mutex taking_mutex_;
  std::map<NodeId, Taking> taking_ ABSL_GUARDED_BY(taking_mutex_);

  Thread thread_;
};

}  // namespace cfs

#endif  // CFS_SERVER_HAND_OVER_H_
