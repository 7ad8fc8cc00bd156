#include "cfs/server/transactor.h"

#include <algorithm>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

// How often a transaction is tried again at once.
constexpr int kAtOnceMax = 3;
constexpr auto kResolveAfter = std::chrono::seconds(1);

// Uses of inodes as a coordinator sees them: who has an inode open, its owner
// finds out.
class UnknownUses final : public InodeUses {
 public:
  InodeUse UseOf(InodeId, const InodeRecord&) override { return {/*open=*/true, false}; }
  void OnRemoved(const Removed&) override {}
  bool MayLink(InodeId) override { return true; }
};

std::string VoteText(TransactionParticipant::Vote vote) {
  return Packer().Add(vote).Take();
}

}  // namespace

struct Transactor::Running {
  Slot slot;
  InodeId made;
  Body body;
  DoneStatus done;
  std::optional<RequestScope::Request> request;
  std::chrono::steady_clock::time_point give_up;
  int attempts = 0;

  Snapshot snapshot;
  Snapshot::Values refused_by;  // What the body had read when it failed last.
  TransactionId id;
  std::map<NodeId, TransactionPart> parts;

  Mutex mutex;
  size_t waits ABSL_GUARDED_BY(mutex) = 0;  // Answers to come.
  // The first that is not well.
  absl::Status failed ABSL_GUARDED_BY(mutex);
  Vote vote ABSL_GUARDED_BY(mutex) = Vote::kYes;
  std::set<NodeId> asked;
};

Transactor::Transactor(Shard* shard, InodeUses* uses, cfs::Clock* clock, TransactorWorld* world,
                       NodeId self, uint64_t incarnation, std::chrono::milliseconds patience)
    : shard_(shard),
      clock_(clock),
      world_(world),
      self_(self),
      incarnation_(incarnation),
      patience_(patience),
      participant_(shard, uses) {}

absl::Status Transactor::Recover() {
  CFS_RETURN_IF_ERROR(participant_.Recover(world_->Now()));
  CFS_ASSIGN_OR_RETURN(const auto outcomes, participant_.Outcomes());
  MutexLock lock(&mutex_);
  for (const auto& [id, nodes] : outcomes) {
    outcomes_[id] = {{nodes.begin(), nodes.end()}, {nodes.begin(), nodes.end()}};
  }
  return absl::OkStatus();
}

// ------------------------------------------------------------- the coordinator

void Transactor::Run(Slot slot, InodeId made, std::optional<RequestScope::Request> request,
                     Body body, DoneStatus done) {
  auto running = std::make_shared<Running>();
  running->slot = slot;
  running->made = made;
  running->body = std::move(body);
  running->done = std::move(done);
  running->request = std::move(request);
  running->give_up = world_->Now() + patience_;
  Step(std::move(running));
}

void Transactor::Finish(const RunningPtr& running, absl::Status status) {
  DoneStatus done = std::move(running->done);
  done(std::move(status));
}

// Runs the body over what has been read so far.
void Transactor::Step(RunningPtr running) {
  if (stopped_.load(std::memory_order_relaxed)) {
    return Finish(running, absl::UnavailableError("the node ends"));
  }
  UnknownUses uses;
  running->snapshot.Begin();
  Namespace names(&running->snapshot, clock_, &uses);
  absl::Status status = running->body(&names);
  if (!running->snapshot.missing().empty()) return Fetch(std::move(running));
  if (!status.ok()) return Refused(std::move(running), std::move(status));
  running->parts = running->snapshot.Parts([this](Slot slot) {
    return shard_->Owns(slot) ? self_ : world_->OwnerOf(slot);
  });
  if (!shard_->Owns(running->slot)) return Finish(running, NotOwned());
  Prepare(std::move(running));
}

// Records that were read one after the other may never have been so at one time.
// If all are found to be so once more, they were, between the two.
void Transactor::Refused(RunningPtr running, absl::Status status) {
  Snapshot::Values read = running->snapshot.Read();
  if (read.size() <= 1 || read == running->refused_by || Planted("errors-not-checked")) {
    return Finish(running, std::move(status));
  }
  const bool first = running->refused_by.empty();
  running->refused_by = std::move(read);
  if (!first) return Again(std::move(running), /*changed=*/true);
  running->snapshot.Clear();
  Step(std::move(running));
}

void Transactor::Fetch(RunningPtr running) {
  std::map<NodeId, std::vector<std::string>> away;
  for (const std::string& key : running->snapshot.missing()) {
    const Slot slot = SlotOfKey(key);
    if (!shard_->Owns(slot)) {
      away[world_->OwnerOf(slot)].push_back(key);
      continue;
    }
    auto value = participant_.Read(key);
    if (IsBusy(value.status()) || IsNotOwned(value.status())) {
      return Again(std::move(running), /*changed=*/false);
    }
    if (!value.ok()) return Finish(running, value.status());
    running->snapshot.Add(key, *std::move(value));
  }
  if (away.empty()) return Step(std::move(running));
  // The map does not know yet who has it.
  if (away.contains(self_)) return Again(std::move(running), /*changed=*/false);
  {
    MutexLock lock(&running->mutex);
    running->waits = away.size();
    running->failed = absl::OkStatus();
  }
  for (const auto& [node, keys] : away) {
    Ask(node, PeerOp::kReadRecords, Packer().Add(keys).Take(),
                [this, running](absl::StatusOr<std::string> answer) {
                  if (!answer.ok()) return Fetched(running, answer.status());
                  Vote vote;
                  std::vector<std::string> read, values;
                  Unpacker in(*answer);
                  if (!in.Take(&vote, &read, &values) || read.size() != values.size()) {
                    return Fetched(running, PosixError(EIO, "malformed answer"));
                  }
                  if (vote != Vote::kYes) return Fetched(running, Busy());
                  {
                    MutexLock lock(&running->mutex);
                    for (size_t i = 0; i < read.size(); ++i) {
                      // No record is without bytes.
                      if (values[i].empty()) {
                        running->snapshot.Add(read[i], std::nullopt);
                      } else {
                        running->snapshot.Add(read[i], std::move(values[i]));
                      }
                    }
                  }
                  Fetched(running, absl::OkStatus());
                });
  }
}

void Transactor::Fetched(RunningPtr running, absl::Status status) {
  absl::Status failed;
  {
    MutexLock lock(&running->mutex);
    if (running->failed.ok() || IsBusy(running->failed)) {
      if (!status.ok()) running->failed = std::move(status);
    }
    if (--running->waits > 0) return;
    failed = running->failed;
  }
  if (IsBusy(failed)) return Again(std::move(running), /*changed=*/false);
  if (!failed.ok()) return Finish(running, std::move(failed));
  Step(std::move(running));
}

void Transactor::Again(RunningPtr running, bool changed) {
  {
    MutexLock lock(&mutex_);
    ++stats_.conflicts;
  }
  running->snapshot.Clear();
  if (world_->Now() >= running->give_up) {
    return Finish(running, absl::UnavailableError("others are at it all the time"));
  }
  if (changed && ++running->attempts <= kAtOnceMax) return Step(std::move(running));
  world_->Later(running->give_up - patience_, [this, running](bool stopped) {
    if (stopped) return Finish(running, absl::UnavailableError("the node ends"));
    Step(running);
  });
}

void Transactor::Prepare(RunningPtr running) {
  if (running->parts.size() > 1) {
    MutexLock lock(&mutex_);
    running->id = {running->slot, self_, incarnation_, next_sequence_++};
    undecided_.insert(running->id);
  }
  running->asked.clear();
  for (const auto& [node, part] : running->parts) {
    if (node != self_) running->asked.insert(node);
  }
  if (running->asked.empty()) return Decide(std::move(running));
  {
    MutexLock lock(&running->mutex);
    running->waits = running->asked.size();
    running->failed = absl::OkStatus();
    running->vote = Vote::kYes;
  }
  // A copy: answers may come while this goes on.
  const std::set<NodeId> asked = running->asked;
  for (const NodeId node : asked) {
    Ask(node, PeerOp::kPrepare, Encode(running->id) + Encode(running->parts.at(node)),
                [this, running, node](absl::StatusOr<std::string> answer) {
                  Prepared(running, node, std::move(answer));
                });
  }
}

void Transactor::Prepared(RunningPtr running, NodeId, absl::StatusOr<std::string> answer) {
  absl::Status failed;
  Vote vote = Vote::kYes;
  if (answer.ok() && !Unpacker(*answer).Take(&vote)) {
    answer = PosixError(EIO, "malformed answer");
  }
  {
    MutexLock lock(&running->mutex);
    if (!answer.ok() && running->failed.ok()) running->failed = answer.status();
    // Changed is what reading again helps against.
    if (vote != Vote::kYes && running->vote != Vote::kChanged) running->vote = vote;
    if (--running->waits > 0) return;
    failed = running->failed;
    vote = running->vote;
  }
  const bool heard = failed.ok() || Planted("silence-is-yes");
  if (heard && vote == Vote::kYes) {
    FaultPoint("all-prepared");
    return Decide(std::move(running));
  }
  Abort(running);
  if (!failed.ok()) return Finish(running, std::move(failed));
  Again(std::move(running), vote == Vote::kChanged);
}

void Transactor::Abort(RunningPtr running) {
  {
    MutexLock lock(&mutex_);
    undecided_.erase(running->id);
    ++stats_.aborted;
  }
  // Who does not hear of it asks.
  for (const NodeId node : running->asked) {
    Ask(node, PeerOp::kAbort, Encode(running->id), [](absl::StatusOr<std::string>) {});
  }
}

void Transactor::Decide(RunningPtr running) {
  const bool alone = running->asked.empty();
  TransactionParticipant::Decision decision{running->id,
                                            {running->asked.begin(), running->asked.end()}};
  const auto add = [&](Records::Update* update) {
    if (running->request) RequestScope::AddReply(*running->request, running->made, update);
  };
  if (!alone) {
    // From here on who asks is told that it is committed, as soon as it is.
    MutexLock lock(&mutex_);
    outcomes_[running->id] = {running->asked, running->asked};
  }
  const auto vote = participant_.Write(running->parts[self_], alone ? nullptr : &decision, add);
  if (!vote.ok() || *vote != Vote::kYes) {
    if (!alone) {
      {
        MutexLock lock(&mutex_);
        outcomes_.erase(running->id);
      }
      Abort(running);
    }
    if (!vote.ok()) return Finish(running, vote.status());
    if (*vote == Vote::kNotOwned) return Finish(running, NotOwned());
    return Again(std::move(running), *vote == Vote::kChanged);
  }
  if (running->request) running->request->recorded();
  {
    MutexLock lock(&mutex_);
    ++stats_.committed;
  }
  if (alone) return Finish(running, absl::OkStatus());
  FaultPoint("decided");
  auto synced_outcome = [this, running](absl::Status synced) {
    // Whether it has happened is for the next process to say, by what it finds.
    if (!synced.ok()) return Finish(running, std::move(synced));
    {
      MutexLock lock(&mutex_);
      undecided_.erase(running->id);
    }
    FaultPoint("decided-synced");
    Tell(running);
  };
  if (Planted("outcome-not-synced")) return synced_outcome(absl::OkStatus());
  world_->Sync(std::move(synced_outcome));
}

void Transactor::Tell(RunningPtr running) {
  {
    MutexLock lock(&running->mutex);
    running->waits = running->asked.size();
  }
  const std::set<NodeId> asked = running->asked;
  for (const NodeId node : asked) {
    TellCommitted(running->id, node, [this, running] {
      {
        MutexLock lock(&running->mutex);
        if (--running->waits > 0) return;
      }
      FaultPoint("told");
      Finish(running, absl::OkStatus());
    });
  }
}

void Transactor::Ask(NodeId node, PeerOp op, std::string arguments,
                     TransactorWorld::Answer done) {
  // A slot's outcome may have come to one of its participants.
  if (node == self_) return Handle(op, arguments, std::move(done));
  world_->Ask(node, op, std::move(arguments), std::move(done));
}

void Transactor::DropOutcomes(const std::vector<Slot>& slots) {
  MutexLock lock(&mutex_);
  std::erase_if(outcomes_, [&](const auto& entry) {
    return std::find(slots.begin(), slots.end(), entry.first.slot) != slots.end();
  });
}

void Transactor::AdoptOutcomes(const std::vector<Slot>& slots) {
  const auto outcomes = participant_.Outcomes();
  if (!outcomes.ok()) {
    return LogWarn("transactions stay unfinished error=", outcomes.status().ToString());
  }
  MutexLock lock(&mutex_);
  for (const auto& [id, nodes] : *outcomes) {
    if (std::find(slots.begin(), slots.end(), id.slot) == slots.end()) continue;
    outcomes_[id] = {{nodes.begin(), nodes.end()}, {nodes.begin(), nodes.end()}};
  }
}

void Transactor::TellCommitted(const TransactionId& id, NodeId node,
                               absl::AnyInvocable<void()> done) {
  Ask(node, PeerOp::kCommit, Encode(id),
              [this, id, node, done = std::move(done)](absl::StatusOr<std::string> answer) mutable {
                if (answer.ok()) {
                  MutexLock lock(&mutex_);
                  const auto it = outcomes_.find(id);
                  if (it != outcomes_.end()) it->second.untold.erase(node);
                }
                // Who does not answer is told later; it has happened all the same.
                done();
              });
}

// ------------------------------------------------------------ the participants

void Transactor::Handle(PeerOp op, absl::string_view arguments, Reply reply) {
  const absl::Status malformed = PosixError(EPROTO);
  if (op == PeerOp::kReadRecords) {
    std::vector<std::string> keys, values;
    if (!Unpacker(arguments).Take(&keys)) return reply(malformed);
    // By index, for it grows.
    for (size_t i = 0; i < keys.size(); ++i) {
      const std::string key = keys[i];
      if (InodeOfKey(key) == kNoInode) return reply(malformed);
      const auto value = participant_.Read(key);
      if (IsBusy(value.status()) || IsNotOwned(value.status())) {
        return reply(Packer()
                         .Add(IsBusy(value.status()) ? Vote::kBusy : Vote::kNotOwned,
                              std::vector<std::string>(), std::vector<std::string>())
                         .Take());
      }
      if (!value.ok()) return reply(value.status());
      values.push_back(value->value_or(""));
      if (!IsInodeKey(key) || !value->has_value()) continue;
      // Who asks for a directory mostly wants to know next whether it is empty.
      const auto record = DecodeInode(**value);
      const std::string bucket = BucketKey(InodeOfKey(key), 0);
      if (record.ok() && record->IsDirectory() &&
          std::find(keys.begin(), keys.end(), bucket) == keys.end()) {
        keys.push_back(bucket);
      }
    }
    return reply(Packer().Add(Vote::kYes, keys, values).Take());
  }
  TransactionId id;
  if (op == PeerOp::kSyncAll) {
    // What power loss has taken of them since is made again first.
    while (!arguments.empty() && !Planted("lost-commits-not-repeated")) {
      if (!ConsumeTransactionId(&arguments, &id)) return reply(malformed);
      const absl::Status status = participant_.End(id, /*committed=*/true);
      if (!status.ok()) return reply(status);
    }
    if (Planted("commits-not-synced")) return reply("");
    return world_->Sync([reply = std::move(reply)](absl::Status synced) mutable {
      if (!synced.ok()) return reply(std::move(synced));
      reply("");
    });
  }
  if (!ConsumeTransactionId(&arguments, &id)) return reply(malformed);
  switch (op) {
    case PeerOp::kPrepare: {
      auto part = DecodeTransactionPart(arguments);
      if (!part.ok()) return reply(malformed);
      const auto vote = participant_.Prepare(id, *std::move(part), world_->Now());
      if (!vote.ok()) return reply(vote.status());
      if (*vote != Vote::kYes) return reply(VoteText(*vote));
      if (Planted("prepare-not-synced")) return reply(VoteText(Vote::kYes));
      return world_->Sync([reply = std::move(reply)](absl::Status synced) mutable {
        if (!synced.ok()) return reply(std::move(synced));
        FaultPoint("prepared");
        reply(VoteText(Vote::kYes));
      });
    }
    case PeerOp::kCommit:
    case PeerOp::kAbort: {
      const absl::Status status = participant_.End(id, /*committed=*/op == PeerOp::kCommit);
      if (!status.ok()) return reply(status);
      if (op == PeerOp::kCommit) FaultPoint("committed");
      return reply("");
    }
    case PeerOp::kOutcome: {
      if (!shard_->Owns(id.slot)) return reply(VoteText(Vote::kNotOwned));
      {
        MutexLock lock(&mutex_);
        if (undecided_.contains(id) && !Planted("undecided-is-aborted")) {
          return reply(VoteText(Vote::kBusy));
        }
      }
      const auto committed = participant_.IsCommitted(id);
      if (!committed.ok()) return reply(committed.status());
      return reply(VoteText(*committed ? Vote::kYes : Vote::kChanged));
    }
    case PeerOp::kWasCommitted: {
      {
        MutexLock lock(&mutex_);
        if (undecided_.contains(id)) return reply(VoteText(Vote::kBusy));
      }
      return reply(VoteText(participant_.WasCommitted(id) ? Vote::kYes : Vote::kChanged));
    }
    default:
      return reply(malformed);
  }
}

// -------------------------------------------------------------------- upkeep

void Transactor::Resolve(const TransactionId& id, bool committed) {
  const absl::Status status = participant_.End(id, committed);
  if (!status.ok()) LogWarn("a prepared transaction stays error=", status.ToString());
}

void Transactor::AbortUnlessCommitted(const TransactionId& id) {
  if (Planted("presumed-commit")) return Resolve(id, /*committed=*/true);
  const std::vector<NodeId> witnesses = world_->Witnesses();
  if (witnesses.empty()) return Resolve(id, /*committed=*/false);
  struct Hearing {
    Mutex mutex;
    size_t waits ABSL_GUARDED_BY(mutex) = 0;
    bool all ABSL_GUARDED_BY(mutex) = true;
  };
  const auto hearing = std::make_shared<Hearing>();
  {
    MutexLock lock(&hearing->mutex);
    hearing->waits = witnesses.size();
  }
  for (const NodeId node : witnesses) {
    Ask(node, PeerOp::kWasCommitted, Encode(id),
        [this, id, hearing](absl::StatusOr<std::string> answer) {
          Vote vote = Vote::kBusy;
          const bool heard = answer.ok() && Unpacker(*answer).Take(&vote);
          if (heard && vote == Vote::kYes) Resolve(id, /*committed=*/true);
          {
            MutexLock lock(&hearing->mutex);
            hearing->all = hearing->all && heard && vote == Vote::kChanged;
            if (--hearing->waits > 0 || !hearing->all) return;
          }
          // Else the next Tick asks again.
          Resolve(id, /*committed=*/false);
        });
  }
}

void Transactor::Tick() {
  if (stopped_.load(std::memory_order_relaxed)) return;
  for (const TransactionId& id : participant_.PreparedBefore(world_->Now() - kResolveAfter)) {
    auto resolve = [this, id](absl::StatusOr<std::string> answer) {
      Vote vote;
      if (!answer.ok() || !Unpacker(*answer).Take(&vote)) return;
      if (vote == Vote::kYes) Resolve(id, /*committed=*/true);
      if (vote == Vote::kChanged) AbortUnlessCommitted(id);
    };
    if (shard_->Owns(id.slot)) {
      Handle(PeerOp::kOutcome, Encode(id), std::move(resolve));
    } else if (const NodeId owner = world_->OwnerOf(id.slot); owner != self_) {
      Ask(owner, PeerOp::kOutcome, Encode(id), std::move(resolve));
    }
  }

  // Nobody waits for those who are gone.
  const auto gone = [this](NodeId node) { return world_->IsGone(node); };
  std::vector<std::pair<TransactionId, NodeId>> untold;
  std::map<NodeId, std::vector<TransactionId>> unsynced;
  std::vector<TransactionId> finished;
  {
    MutexLock lock(&mutex_);
    for (auto& [id, outcome] : outcomes_) {
      if (undecided_.contains(id)) continue;
      std::erase_if(outcome.untold, gone);
      std::erase_if(outcome.unsynced, gone);
      for (const NodeId node : outcome.untold) untold.emplace_back(id, node);
      if (!outcome.untold.empty()) continue;
      if (Planted("outcome-forgotten-early")) finished.push_back(id);
      for (const NodeId node : outcome.unsynced) unsynced[node].push_back(id);
      if (outcome.unsynced.empty()) finished.push_back(id);
    }
    for (const TransactionId& id : finished) outcomes_.erase(id);
    stats_.unfinished = outcomes_.size();
    // One round after the other.
    if (syncing_) unsynced.clear();
    if (!unsynced.empty()) syncing_ = true;
  }
  const absl::Status forgotten = participant_.ForgetOutcomes(finished);
  if (!forgotten.ok()) LogWarn("outcomes of transactions stay error=", forgotten.ToString());
  for (const auto& [id, node] : untold) TellCommitted(id, node, [] {});
  if (unsynced.empty()) return;
  // Its last copy is gone when all have answered.
  const std::shared_ptr<void> all(nullptr, [this](void*) {
    MutexLock lock(&mutex_);
    syncing_ = false;
  });
  for (const auto& entry : unsynced) {
    const NodeId node = entry.first;
    const std::vector<TransactionId>& ids = entry.second;
    std::string arguments;
    for (const TransactionId& id : ids) arguments += Encode(id);
    Ask(node, PeerOp::kSyncAll, std::move(arguments),
        [this, node, ids, all](absl::StatusOr<std::string> answer) {
          if (!answer.ok()) return;
          MutexLock lock(&mutex_);
          for (const TransactionId& id : ids) {
            const auto it = outcomes_.find(id);
            if (it != outcomes_.end()) it->second.unsynced.erase(node);
          }
        });
  }
}

Transactor::Stats Transactor::stats() {
  MutexLock lock(&mutex_);
  return stats_;
}

}  // namespace cfs
