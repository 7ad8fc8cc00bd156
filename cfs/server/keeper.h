// Decides how the cluster map changes: who may join, who is up and who is down.
// What it decides is told to nobody before the caller has stored it.
//
// Pure: messages and the time in, maps out. Thread-compatible.
#ifndef CFS_SERVER_KEEPER_H_
#define CFS_SERVER_KEEPER_H_

#include <chrono>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/slot_set.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/membership_format.h"

namespace cfs {

class Keeper {
 public:
  using Instant = std::chrono::steady_clock::time_point;
  struct Options {
    // Joins and restarts that come within this share an epoch.
    std::chrono::milliseconds join_window{500};
    // The same for nodes that serve now, or end.
    std::chrono::milliseconds state_window{50};
    // A node is down that was not heard of for this long.
    std::chrono::milliseconds down_after{6000};
  };

  // `map` counts, and is stored. All its nodes have just been heard of.
  // REQUIRES: `self` is in it.
  Keeper(NodeId self, ClusterMapPtr map, const Options& options, Instant now);

  const ClusterMapPtr& map() const { return map_; }

  // What to answer. Nothing: that is decided with the next map, in which the
  // node has the incarnation of `request` if it got in.
  std::optional<MemberAnswer> Join(const MemberRequest& request, ClusterNode node, Instant now);
  MemberAnswer Heartbeat(const MemberRequest& request, Instant now);
  // The node owns the slots: it has taken them from whom the map says, or over
  // where that calls them vacant. If a node is being removed by the map of `epoch`,
  // these are all that it owns, and it gives and takes none by that map.
  void Claim(NodeId node, const SlotSet& slots, Epoch epoch, Instant now);
  // The nodes are gone for ever. When all others have said what they have taken
  // from them, they are lost. Once more is fine. Errors: a sentence why not.
  absl::Status Remove(const std::vector<NodeId>& nodes, Instant now);
  // Of this node itself.
  void SetServing(bool serving, Instant now);

  // A join or restart of the node waits for the next map.
  bool Waits(NodeId node) const { return joins_.contains(node); }

  // When NextMap is to be called, if nothing else happens.
  Instant due() const;
  // The map that comes after map(); null: it stays. An error: joins that do
  // not wait any more (Waits) are refused, for the reason that it gives.
  absl::StatusOr<ClusterMapPtr> NextMap(Instant now);
  // `map` came from NextMap, and is stored.
  void Adopt(ClusterMapPtr map, Instant now);
  // It could not be stored: NextMap will give it again, not before `again`.
  void Postpone(Instant again) { postponed_ = again; }
  // This process did not run for `pause`: nobody is to be blamed for it.
  void Forgive(Instant::duration pause);

 private:
  struct Member {
    Instant heard;
    // What it said last; nothing: it has said nothing to this keeper yet.
    std::optional<bool> serving;
  };

  absl::StatusOr<ClusterMapPtr> WithClaims(ClusterMapPtr map) const;
  absl::StatusOr<ClusterMapPtr> WithRemovals(ClusterMapPtr map) const;
  // A removal of it has been asked for.
  bool IsGoing(NodeId node) const;
  absl::Status MayRemove(NodeId id, const std::vector<NodeId>& nodes, Instant now) const;
  // What the map should say of it.
  NodeState StateOf(const ClusterNode& node, Instant now) const;
  // A sentence; empty when nobody else has an address of `node`.
  std::string AddressTaken(const ClusterNode& node) const;
  void WantState(const ClusterNode& node, Instant now);

  const NodeId self_;
  const Options options_;
  ClusterMapPtr map_;
  absl::flat_hash_map<NodeId, Member> members_;
  // Joins and restarts that wait for the next epoch.
  absl::flat_hash_map<NodeId, ClusterNode> joins_;
  absl::flat_hash_map<NodeId, SlotSet> claims_;
  std::vector<NodeId> removals_;  // That wait for the next epoch.
  // Since when nodes are being removed, and what others own since then.
  Epoch removing_since_;
  absl::flat_hash_map<NodeId, SlotSet> held_;
  Instant join_due_ = Instant::max(), state_due_ = Instant::max(), next_look_;
  Instant postponed_ = Instant::min();
};

}  // namespace cfs

#endif  // CFS_SERVER_KEEPER_H_
