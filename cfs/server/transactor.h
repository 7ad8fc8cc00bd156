// Operations on names whose records are at several nodes, as transactions.
#ifndef CFS_SERVER_TRANSACTOR_H_
#define CFS_SERVER_TRANSACTOR_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/request_scope.h"
#include "cfs/meta/snapshot.h"
#include "cfs/meta/transaction_participant.h"
#include "cfs/server/peer_format.h"

namespace cfs {

// What a Transactor needs of the world around it; a test gives it another one.
// Callbacks may run before the call returns.
class TransactorWorld {
 public:
  using Answer = absl::AnyInvocable<void(absl::StatusOr<std::string>)>;

  virtual ~TransactorWorld() = default;
  virtual std::chrono::steady_clock::time_point Now() = 0;
  // By the cluster map. May be this node where it does not own the slot yet, or
  // not any more.
  virtual NodeId OwnerOf(Slot slot) = 0;
  // Asks a node; once more is fine for all that is asked, also late, but not of a
  // process that began after the answer. UNAVAILABLE: it did not answer in time.
  virtual void Ask(NodeId node, PeerOp op, std::string arguments, Answer done) = 0;
  // What has been applied to the store is on the device.
  virtual void Sync(absl::AnyInvocable<void(absl::Status)> done) = 0;
  // Nobody will ever hear of the node again.
  virtual bool IsGone(NodeId) { return false; }
  // Where some node was lost, and what it had decided with it: all others that are
  // not. Else nobody.
  virtual std::vector<NodeId> Witnesses() { return {}; }
  // In a moment, of random length, which is the longer the longer it is since `since`.
  virtual void Later(std::chrono::steady_clock::time_point since,
                     absl::AnyInvocable<void(bool stopped)> task) = 0;
};

// Coordinates transactions of this node, and answers other coordinators. Two
// phases where several nodes take part: each prepares its part, and has it on the
// device before it says yes; then the coordinator writes its own part together
// with the outcome, has that on the device, and tells the others. Who does not
// hear of an outcome asks for it: what the coordinator does not know was never
// committed. (Presumed abort, as in R*: Mohan, Lindsay, Obermarck, TODS 1986.)
//
// Guarantees: a transaction happens at all its nodes or at none, whoever is
// killed or loses power when; when `done` says OK it is on the device of all, but
// for one that this node does alone: that is as durable as what it does without us.
// It is serializable: what it has read is as it was when it happens, or when it is
// refused.
// Thread-safe.
class Transactor {
 public:
  // Runs over records that may be incomplete, hence any number of times: it has no
  // effect but its last Update, and what it leaves for itself of its last run.
  using Body = std::function<absl::Status(Namespace*)>;

  // None is owned. `self` is the node, `incarnation` its process.
  Transactor(Shard* shard, InodeUses* uses, cfs::Clock* clock, TransactorWorld* world, NodeId self,
             uint64_t incarnation, std::chrono::milliseconds patience);

  // Takes up what a process of before has left.
  absl::Status Recover();

  // Runs `body` as one transaction of the slot, which this node owns. The reply to
  // `request`, if there is one, naming `made`, is recorded with it.
  // Errors: those of `body`; UNAVAILABLE when a node does not answer: then it has
  // not happened, or happens when that node is back.
  // IsNotOwned when the slot is another node's by now.
  void Run(Slot slot, InodeId made, std::optional<RequestScope::Request> request, Body body,
           DoneStatus done);

  // What a coordinator asks of this node. A malformed request is EPROTO.
  using Reply = absl::AnyInvocable<void(absl::StatusOr<std::string>)>;
  void Handle(PeerOp op, absl::string_view arguments, Reply reply);

  // Sees to what is unfinished. To be called about once a second.
  void Tick();
  // Whether nothing is prepared in the slot.
  bool IsIdle(Slot slot) { return !participant_.HasPrepared(slot); }
  // Outcomes go with their slots.
  void DropOutcomes(const std::vector<Slot>& slots);
  void AdoptOutcomes(const std::vector<Slot>& slots);
  // Nothing is begun from now on.
  void Stop() { stopped_.store(true, std::memory_order_relaxed); }

  struct Stats {
    uint64_t committed = 0, conflicts = 0, aborted = 0, unfinished = 0;
  };
  Stats stats();

 private:
  struct Running;
  using RunningPtr = std::shared_ptr<Running>;
  // A committed transaction that not all of its participants know of.
  struct Outcome {
    std::set<NodeId> untold, unsynced;
  };
  using Vote = TransactionParticipant::Vote;

  void Step(RunningPtr running);
  void Refused(RunningPtr running, absl::Status status);
  void Fetch(RunningPtr running);
  void Fetched(RunningPtr running, absl::Status status);
  void Prepare(RunningPtr running);
  void Prepared(RunningPtr running, NodeId node, absl::StatusOr<std::string> answer);
  void Decide(RunningPtr running);
  void Tell(RunningPtr running);
  void Abort(RunningPtr running);
  void Again(RunningPtr running, bool changed);
  void Finish(const RunningPtr& running, absl::Status status);
  void Ask(NodeId node, PeerOp op, std::string arguments, TransactorWorld::Answer done);
  // The owner of its slot does not know that it is committed: aborts it here, unless
  // some witness knows better.
  void AbortUnlessCommitted(const TransactionId& id);
  void Resolve(const TransactionId& id, bool committed);
  // Tells a participant of an outcome; `done` when it knows.
  void TellCommitted(const TransactionId& id, NodeId node, absl::AnyInvocable<void()> done);

  Shard* const shard_;
  cfs::Clock* const clock_;
  TransactorWorld* const world_;
  const NodeId self_;
  const uint64_t incarnation_;
  const std::chrono::milliseconds patience_;
  TransactionParticipant participant_;
  std::atomic<bool> stopped_{false};

  Mutex mutex_;
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 1;
  // Neither committed nor aborted yet.
  std::set<TransactionId> undecided_ ABSL_GUARDED_BY(mutex_);
  std::map<TransactionId, Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  bool syncing_ ABSL_GUARDED_BY(mutex_) = false;
  Stats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_SERVER_TRANSACTOR_H_
