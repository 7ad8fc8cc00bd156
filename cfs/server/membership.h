// This node's part in a cluster: it joins, learns of each new cluster map, says
// that it is alive, and keeps the map for all others if it is the keeper.
//
// One node keeps the map, the one that made the cluster. It decides (keeper.h),
// stores a map before it tells anybody, and sends it to all nodes. Each node
// says every second that it is there, and learns then what it has missed. When
// the keeper is gone, the map stays as it is until it comes back.
#ifndef CFS_SERVER_MEMBERSHIP_H_
#define CFS_SERVER_MEMBERSHIP_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"
#include "cfs/net/transport.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/cluster_store.h"
#include "cfs/server/keeper.h"
#include "cfs/server/membership_format.h"
#include "cfs/server/store_dir.h"

namespace cfs {

struct MembershipOptions {
  StoreIdentity identity;
  std::string store_path;
  // `memory.address`, if any, is tried first where `memory.listen` leaves the
  // port to the system.
  ClusterMemory memory;
  std::string transports = TransportOptions().transports;
  uint64_t incarnation = 0;  // 0: a random one.
  Keeper::Options keeper;
  std::chrono::milliseconds heartbeat_interval{1000};
  // A joiner whose keeper does not answer gives up after this.
  std::chrono::milliseconds join_patience{30'000};
  // One that has been a member starts with the map that it remembers.
  std::chrono::milliseconds rejoin_patience{3'000};
  // Start gives up, as ABORTED, when this says so.
  std::function<bool()> cancelled;
};

// Thread-safe. Nothing here waits for the network but Start and EndServing.
class Membership {
 public:
  // What is told of each change: `before` is null for the first map.
  using Watcher = std::function<void(ClusterMapPtr before, ClusterMapPtr now)>;

  // Returns when this node is in the map; one that has been a member may be so
  // with an old map. `methods` are those of other services: 0x0100-0x01ff are
  // taken. Their handlers may run before this returns.
  //
  // Errors, each a sentence for the user: INVALID_ARGUMENT for an address that
  // is none of ours, UNAVAILABLE for a port that is taken or a cluster that does
  // not answer, PERMISSION_DENIED for a token with another secret,
  // FAILED_PRECONDITION for another cluster's or when the keeper refuses,
  // ALREADY_EXISTS when another store has this node's number: a store that is
  // empty takes another one then.
  static absl::StatusOr<std::unique_ptr<Membership>> Start(
      MembershipOptions options, absl::flat_hash_map<uint16_t, Method> methods);
  // Ends all calls, and waits for handlers and watchers.
  ~Membership();

  // The latest that this node knows. Never null.
  ClusterMapPtr map() const;
  NodeId self() const { return self_; }
  uint64_t incarnation() const { return options_.incarnation; }
  Transport* transport() { return transport_.get(); }

  // This node answers the file system's calls from now on: it becomes kUp.
  void SetServing();
  // It does not any more, and ends: it becomes kDown at once. Waits for the
  // keeper to know, a second at most. Nothing follows but the destructor.
  void EndServing();

  // This node owns the slots, and the map of `epoch` says otherwise. To be said again
  // until it does not. See Keeper::Claim.
  void Claim(const SlotSet& slots, Epoch epoch);
  // Asks the keeper to give nodes up as lost: OK when it has begun to. Waits for its
  // answer, some seconds at most. Errors: its sentence why not.
  absl::Status Remove(const std::vector<NodeId>& nodes);

  // Called for each change from now on, in order, on a thread of its own, with
  // no lock held; a watcher that is far behind gets several epochs as one change.
  // Look at map() afterwards for what was before. Never removed: what it uses
  // outlives this.
  void OnChange(Watcher watcher);
  // Called once, on the same thread, when the cluster has this node no more (it
  // was lost, or removed, or runs in another process): it is to end.
  void OnExpelled(std::function<void(absl::Status)> watcher);

  // Epoch, keeper, nodes: what `cfs nodes` shows.
  nlohmann::json Status() const;
  // What others join with: the keeper's address first, then this node's and
  // some that are up. It has the secret.
  std::string TokenText() const;

 private:
  using Instant = Keeper::Instant;
  class Asker;
  enum class Phase { kJoining, kMember, kFailed };
  using Handler = void (Membership::*)(NodeId peer, const std::string& header,
                                       absl::string_view payload, std::shared_ptr<Asker> asker);
  // One that waits for the next map.
  struct Joiner {
    uint64_t incarnation;
    Epoch known;
    std::shared_ptr<Asker> asker;
  };
  // How far a node is with the maps that the keeper pushes.
  struct Follower {
    Epoch known{0};
    bool pushing = false;
  };

  Membership(MembershipOptions options);

  absl::Status Prepare(absl::flat_hash_map<uint16_t, Method> methods);
  absl::Status Listen(const absl::flat_hash_map<uint16_t, Method>& methods);
  absl::Status BeKeeper(ClusterMapPtr stored);
  ClusterNode Description() const;
  absl::Status Remember(bool member);

  // False, with the event dropped, when there are too many.
  bool Enqueue(std::function<void()> event, bool may_drop = false);
  Method MethodFor(Handler handler, size_t payload_bytes_max);
  void Run();
  void Watch();

  // All below is called on the membership's thread only, or before it runs.
  void Publish(ClusterMapPtr map);
  // False when there was a log line a moment ago about what others do.
  bool MayComplain();
  void Expel(absl::Status status);
  void Fail(absl::Status status);
  void EnterMap();

  // As the keeper.
  void OnJoin(NodeId peer, const std::string& header, absl::string_view payload,
              std::shared_ptr<Asker> asker);
  void OnHeartbeat(NodeId peer, const std::string& header, absl::string_view payload,
                   std::shared_ptr<Asker> asker);
  void OnClaim(NodeId peer, const std::string& header, absl::string_view payload,
               std::shared_ptr<Asker> asker);
  void OnRemove(NodeId peer, const std::string& header, absl::string_view payload,
                std::shared_ptr<Asker> asker);
  void KeeperTick(Instant now);
  // All that wait for it, of the map that counts from now on.
  void Tell(ClusterMapPtr map, Instant now);
  void Push();
  void PushTo(const ClusterNode& node);
  void OnPushed(NodeId node, Epoch base, std::optional<Epoch> known);
  void CheckPushed();
  // What takes a node from `known` to the map; empty when it has it.
  std::shared_ptr<const std::string> BytesFrom(Epoch known);
  MemberAnswer NotKeeper() const;
  void AnswerJoins();

  // As one that has a keeper.
  void OnMap(NodeId peer, const std::string& header, absl::string_view payload,
             std::shared_ptr<Asker> asker);
  void Talk(Instant now);
  void OnTalked(const std::string& target, uint8_t flags, const absl::Status& status,
                const std::string& header, size_t bytes);
  void Missed(absl::Status status, bool refused);
  void NextTarget();
  std::vector<std::string> Targets() const;
  absl::Status Take(absl::string_view bytes);
  uint8_t Flags() const;

  MembershipOptions options_;
  const NodeId self_;
  std::unique_ptr<Transport> transport_;

  mutable Mutex mutex_;
  CondVar wake_;     // The thread.
  CondVar changed_;  // Whoever waits for phase_ or ended_.
  std::deque<std::function<void()>> events_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  ClusterMapPtr map_ ABSL_GUARDED_BY(mutex_);
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kJoining;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool keeper_answers_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;

  // Of the watchers' thread.
  mutable Mutex watch_mutex_;
  CondVar watch_;
  std::vector<Watcher> watchers_ ABSL_GUARDED_BY(watch_mutex_);
  std::function<void(absl::Status)> expelled_watcher_ ABSL_GUARDED_BY(watch_mutex_);
  std::optional<absl::Status> expelled_ ABSL_GUARDED_BY(watch_mutex_);
  std::deque<std::pair<ClusterMapPtr, ClusterMapPtr>> changes_ ABSL_GUARDED_BY(watch_mutex_);
  bool watch_ends_ ABSL_GUARDED_BY(watch_mutex_) = false;

  // All below belongs to the membership's thread.
  bool serving_ = false, ending_ = false, gone_ = false;
  bool map_unstored_ = false;
  Instant next_complaint_ = Instant::min();

  std::unique_ptr<Keeper> keeper_;
  std::deque<ClusterMapPtr> old_maps_;
  absl::flat_hash_map<Epoch, std::shared_ptr<const std::string>> bytes_from_;
  absl::flat_hash_map<NodeId, Follower> followers_;
  absl::flat_hash_map<NodeId, std::vector<Joiner>> joiners_;
  bool told_all_ = false;

  // A join was sent, and what became of it is not known.
  bool maybe_joined_ = false;
  // In the map with this process's incarnation, as the keeper has said.
  bool registered_ = false;
  bool talking_ = false;
  std::unique_ptr<char[]> answer_;
  std::vector<std::string> targets_;
  size_t target_ = 0;
  std::string redirect_;
  int redirects_ = 0;
  // Of the round through all targets.
  bool all_refused_ = true;
  absl::Status last_miss_;
  Instant next_talk_ = Instant::min(), started_;
  std::chrono::milliseconds pause_;  // After the next round in vain.

  Thread thread_, watch_thread_;
};

}  // namespace cfs

#endif  // CFS_SERVER_MEMBERSHIP_H_
