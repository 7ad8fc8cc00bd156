// One node's side of transactions: parts that it has prepared, and what becomes
// of them.
#ifndef CFS_META_TRANSACTION_PARTICIPANT_H_
#define CFS_META_TRANSACTION_PARTICIPANT_H_

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/shard.h"
#include "cfs/meta/transaction_format.h"

namespace cfs {

// Guarantees: between a Prepare that says yes and its End nobody
// reads what the part writes, nor writes what it has read: they get IsBusy. What
// was prepared and synced is so again after a restart.
// Thread-safe; takes the stripe locks it needs itself.
class TransactionParticipant {
 public:
  using Clock = SteadyClock;
  enum class Vote : uint8_t {
    kYes = 0,
    kChanged,   // What was read is not so any more.
    kBusy,      // Another transaction has it.
    kNotOwned,  // A slot is not this node's.
  };

  // None is owned.
  TransactionParticipant(Shard* shard, InodeUses* uses) : shard_(shard), uses_(uses) {}

  // Syncs the store, and takes up what was prepared.
  absl::Status Recover(Clock::time_point now);
  // Those that are not known to be on the device of all their participants.
  using Outcome = std::pair<TransactionId, std::vector<NodeId>>;
  absl::StatusOr<std::vector<Outcome>> Outcomes();

  // A record for a coordinator.
  absl::StatusOr<std::optional<std::string>> Read(const std::string& key);
  // Once more is fine; kChanged if the transaction was committed or aborted here
  // meanwhile, by this process, and not kTransactionsOverMax others since. Yes
  // counts when the WAL has been synced since. An error: the store's.
  absl::StatusOr<Vote> Prepare(const TransactionId& id, TransactionPart part,
                               Clock::time_point now);
  // It was committed or aborted. OK also if it is not prepared here (any more).
  absl::Status End(const TransactionId& id, bool committed);

  // The coordinator's own part, at once. With `id` and others: the transaction is
  // committed hereby. With `request`: its reply, naming `made`, is recorded with it.
  struct Decision {
    TransactionId id;
    std::vector<NodeId> others;
  };
  absl::StatusOr<Vote> Write(const TransactionPart& part, const Decision* decision,
                             const std::function<void(Records::Update*)>& add);
  // Whether it is known to be committed.
  absl::StatusOr<bool> IsCommitted(const TransactionId& id);
  // Whether it was committed here by this process, and not kTransactionsOverMax
  // others since.
  bool WasCommitted(const TransactionId& id);
  // All its participants have it on the device.
  absl::Status ForgetOutcomes(const std::vector<TransactionId>& ids);

  // What was prepared before `when` and is still undecided here.
  std::vector<TransactionId> PreparedBefore(Clock::time_point when);
  // Whether something is prepared in the slot. REQUIRES: nothing can be prepared
  // in it any more.
  bool HasPrepared(Slot slot);

 private:
  struct Prepared {
    TransactionPart part;
    Slot slot;  // Where it is kept.
    Clock::time_point since;
    std::vector<std::string> exclusive, shared;
  };

  static std::shared_ptr<Prepared> MakePrepared(TransactionPart part, Clock::time_point since);
  // REQUIRES: the stripe locks of what the part touches.
  absl::StatusOr<Vote> Check(const TransactionPart& part);
  absl::Status Collect(const TransactionPart& part, WriteSet* writes);
  void Tell(const TransactionPart& part);
  // It is committed or aborted here.
  void SetOver(const TransactionId& id, bool committed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Shard* const shard_;
  InodeUses* const uses_;
  Mutex mutex_;
  std::map<TransactionId, std::shared_ptr<Prepared>> prepared_ ABSL_GUARDED_BY(mutex_);
  // What a copy of its Prepare would do once more; true: it was committed.
  absl::flat_hash_map<TransactionId, bool> over_ ABSL_GUARDED_BY(mutex_);
  std::deque<TransactionId> over_order_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_META_TRANSACTION_PARTICIPANT_H_
