// Asks other nodes, again where that helps: the one place that knows when.
#ifndef CFS_SERVER_PEER_CLIENT_H_
#define CFS_SERVER_PEER_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/base/types.h"
#include "cfs/net/transport.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/peer_format.h"

namespace cfs {

// What a peer has answered.
struct PeerAnswer {
  std::string result;
  size_t payload_bytes = 0;  // In PeerRequest::answer, behind no result.
};

struct PeerRequest {
  PeerOp op{};
  // Who: the owner of a slot, whoever that is by then, or a node.
  std::optional<Slot> slot;
  NodeId node{0};
  std::string arguments;
  // Data of a write. REQUIRES: `arguments` are short then.
  std::shared_ptr<char[]> payload;
  size_t payload_bytes = 0;
  // Room for the data of a read.
  char* answer = nullptr;
  size_t answer_bytes = 0;
  // The longest result that does not fit a header, 0 if it always does.
  size_t result_bytes_max = 0;
  // The peer may take as long as it likes, if only it is there.
  bool waits = false;
  // Asked until it is answered, or the peer has forgotten us anyway.
  bool persistent = false;
  // On a network thread or the client's own.
  absl::AnyInvocable<void(absl::StatusOr<PeerAnswer>)> done;
};

// Guarantees: a request is executed at most once, however often it has to be
// sent, and `done` runs once. Errors carry the errno that the peer answered;
// IsNotOwned: this node owns the slot by now, see SetHere; kUnavailable (EIO): nobody
// answered within the time-out, and whether it was executed is not known;
// kFailedPrecondition: the peer does not know the handle.
//
// Policy: a request that cannot be delivered, or whose peer is lost or does not
// serve, is sent again, at growing intervals up to half a second, until the peer
// has not answered anybody for the time-out; so the first request to a node that
// is gone waits for all of it, and one that comes later only until it was tried.
// Nobody else waits meanwhile.
//
// Thread-safe.
class PeerClient {
 public:
  using MapFn = std::function<ClusterMapPtr()>;
  // The node has forgotten what this one has open and locked there.
  using ForgottenFn = std::function<void(NodeId node)>;

  // `transport` outlives the client's last request.
  PeerClient(Transport* transport, MapFn map, NodeId self, uint64_t incarnation,
             std::chrono::milliseconds time_out);
  // Ends what waits. REQUIRES: no request is made any more.
  ~PeerClient();

  // REQUIRES: before the first request. `forgotten` is called on a network thread.
  void SetForgotten(ForgottenFn forgotten) { forgotten_ = std::move(forgotten); }

  // Whether this node owns the slot, however the request came to be made: then
  // what a former owner has recorded of the request that this process made, or
  // IsNotOwned: it was not executed, and is to be done here.
  using HereFn = std::function<std::optional<absl::StatusOr<PeerAnswer>>(
      PeerOp op, Slot slot, uint64_t sequence, bool again)>;
  void SetHere(HereFn here) { here_ = std::move(here); }

  void Ask(PeerRequest request);
  // Requests from now on, and those that wait to be sent again, end at once. The
  // transport is not used any more when this returns.
  void Stop();

  // Another value than before: the node has lost what it had not synced. 0: it has
  // not answered yet.
  uint64_t StorageOf(NodeId node);

  // For Later: what is waited for takes seconds.
  static constexpr std::chrono::steady_clock::time_point kLongAgo{};
  // Runs `task` on the client's thread in a moment, which is the longer the longer it
  // is since `since`: 1 to 20 ms; or now, if the client has stopped.
  void Later(std::chrono::steady_clock::time_point since,
             absl::AnyInvocable<void(bool stopped)> task);

  std::chrono::milliseconds time_out() const { return time_out_; }
  uint64_t retries() const { return retries_.load(std::memory_order_relaxed); }

 private:
  using Clock = SteadyClock;
  using Task = absl::AnyInvocable<void(bool stopped)>;
  struct Pending;

  void Send(std::shared_ptr<Pending> pending);
  void OnResult(std::shared_ptr<Pending> pending, const CallResult& result);
  void Retry(std::shared_ptr<Pending> pending);
  void RunAt(Clock::time_point when, Task task);
  void Finish(const std::shared_ptr<Pending>& pending, absl::StatusOr<PeerAnswer> answer);
  bool MayGiveUp(const Pending& pending, Clock::time_point now);
  // When to give up a request that is sent to the node from `began` on.
  Clock::time_point GiveUp(NodeId node, Clock::time_point began);
  void RunTimer();

  Transport* const transport_;
  const MapFn map_;
  const NodeId self_;
  const uint64_t incarnation_;
  const std::chrono::milliseconds time_out_;
  std::atomic<uint64_t> retries_{0};  // Relaxed: a statistic.

  Mutex sequence_mutex_;
  uint64_t next_sequence_ ABSL_GUARDED_BY(sequence_mutex_) = 1;
  absl::btree_set<uint64_t> outstanding_ ABSL_GUARDED_BY(sequence_mutex_);

  ForgottenFn forgotten_;
  HereFn here_;
  // Since when nodes have not answered.
  Mutex silent_mutex_;
  absl::flat_hash_map<NodeId, Clock::time_point> silent_since_ ABSL_GUARDED_BY(silent_mutex_);
  // What nodes said last of themselves; `previous` is what a late answer may say.
  struct Peer {
    uint64_t session = 0;
    uint64_t previous = 0;
    uint64_t storage = 0;
  };
  absl::flat_hash_map<NodeId, Peer> peers_ ABSL_GUARDED_BY(silent_mutex_);

  struct Timed {
    Clock::time_point when;
    std::shared_ptr<Task> task;
    bool operator<(const Timed& other) const { return when > other.when; }
  };
  Mutex timer_mutex_;
  CondVar timer_wake_;
  std::priority_queue<Timed> timed_ ABSL_GUARDED_BY(timer_mutex_);
  bool stopping_ ABSL_GUARDED_BY(timer_mutex_) = false;
  int sending_ ABSL_GUARDED_BY(timer_mutex_) = 0;
  CondVar sent_;
  Thread timer_;
};

}  // namespace cfs

#endif  // CFS_SERVER_PEER_CLIENT_H_
