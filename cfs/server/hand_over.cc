#include "cfs/server/hand_over.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "cfs/base/awaited.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/random.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/transaction_format.h"

namespace cfs {
namespace {

// Given at once: what a freeze has to send grows with it, and so do the syncs of
// a join with the number of times.
constexpr size_t kSlotsAtOnce = 1024;
constexpr auto kLookInterval = std::chrono::seconds(1);
// More than any node ever makes: what a lost node has made has lower counters than
// what is made in its slots afterwards.
constexpr int kInodesALossLog2 = 40;

bool IsGone(const ClusterMap& map, NodeId node) {
  const ClusterNode* const found = map.Find(node);
  return found == nullptr || IsGone(found->state);
}

// An inode counter that no node had come to when the nodes were there that are not.
uint64_t InodesAfterLosses(const ClusterMap& map) {
  const auto going = static_cast<uint64_t>(
      std::ranges::count(map.nodes(), NodeState::kRemoving, &ClusterNode::state));
  return (map.losses() + going) << kInodesALossLog2;
}

}  // namespace

HandOver::HandOver(LocalFileSystem* local, Transactor* transactor, PeerService* service,
                   PeerClient* peers, NodeId self, uint64_t incarnation, MapFn map, ClaimFn claim)
    : local_(local),
      transactor_(transactor),
      service_(service),
      peers_(peers),
      self_(self),
      incarnation_(incarnation),
      map_(std::move(map)),
      claim_(std::move(claim)),
      losses_(local, peers, self, map_) {}

HandOver::~HandOver() { Stop(); }

absl::Status HandOver::Start() {
  CFS_ASSIGN_OR_RETURN(unresolved_, local_->Givings());
  thread_ = Thread([this] { Run(); });
  return absl::OkStatus();
}

void HandOver::Stop() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.Signal();
  }
  thread_.join();
}

void HandOver::OnMap() {
  MutexLock lock(&mutex_);
  look_ = true;
  wake_.Signal();
}

HandOver::Stats HandOver::stats() {
  MutexLock lock(&mutex_);
  return stats_;
}

// ------------------------------------------------------------------ the giver

void HandOver::Run() {
  NameThread("cfs-hand-over");
  for (bool more = true;;) {
    {
      MutexLock lock(&mutex_);
      if (!stopping_ && !look_ && !more) wake_.WaitFor(&mutex_, kLookInterval);
      if (stopping_) return;
      look_ = false;
    }
    const ClusterMapPtr map = map_();
    EndTakings(*map);
    Resolve(*map);
    Adopt(*map);
    Claim(*map);
    more = GiveSome();
  }
}

absl::StatusOr<std::string> HandOver::Ask(NodeId node, PeerOp op, std::string arguments) {
  Awaited<absl::StatusOr<std::string>> result;
  PeerRequest request;
  request.op = op;
  request.node = node;
  request.arguments = std::move(arguments);
  request.done = [&result](absl::StatusOr<PeerAnswer> answer) {
    if (!answer.ok()) return result.Set(answer.status());
    result.Set(std::move(answer->result));
  };
  peers_->Ask(std::move(request));
  return result.Get();
}

bool HandOver::GiveSome() {
  const ClusterMapPtr map = map_();
  if (map->IsRemoving()) return false;
  NodeId taker{0};
  SlotList slots;
  for (size_t i = 0; i < kSlots && slots.size() < kSlotsAtOnce; ++i) {
    const Slot slot{static_cast<uint16_t>(i)};
    const NodeId wanted = map->WantedOf(slot);
    if (wanted == self_ || map->OwnerOf(slot) != self_ || !local_->Owns(slot)) continue;
    // The keeper has not heard yet that it was taken over: once is enough.
    if (map->IsVacant(slot)) continue;
    if (slots.empty()) {
      const ClusterNode* const node = map->Find(wanted);
      if (node == nullptr || node->state != NodeState::kUp) continue;
      taker = wanted;
    }
    if (wanted == taker) slots.push_back(slot);
  }
  if (slots.empty()) return false;
  const absl::Status given = Give(taker, std::move(slots));
  if (!given.ok()) LogWarn("a hand-over has to wait node=", Raw(taker), " error=", given.ToString());
  return given.ok();
}

absl::Status HandOver::SendPiece(NodeId taker, uint64_t number, const WriteSet& piece) {
  TransactionPart part;
  part.writes = piece;
  return Ask(taker, PeerOp::kTakePiece, Packer().Add(number).Take() + Encode(part)).status();
}

absl::Status HandOver::Give(NodeId taker, SlotList slots) {
  const Giving all{RandomNumber(), taker, slots};
  CFS_RETURN_IF_ERROR(
      Ask(taker, PeerOp::kTakeBegin, Packer().Add(all.number, slots).Take()).status());
  const auto send = [&](const WriteSet& piece) { return SendPiece(taker, all.number, piece); };
  absl::Status copied = local_->CopySlots(slots, send);
  if (!copied.ok()) {
    local_->shard()->TakeTracked();
    return copied;
  }
  FaultPoint("give-copied");
  const SteadyClock::time_point frozen = SteadyClock::now();
  local_->Freeze(&slots, [this](Slot slot) {
    return !transactor_->IsIdle(slot) && !Planted("given-with-transactions");
  });
  const Giving giving{all.number, taker, slots};
  copied = local_->CopyTail(send);
  if (copied.ok()) copied = local_->BeginGiving(giving.number, taker, slots);
  if (!copied.ok() || slots.empty()) {
    End(giving, /*given=*/false);
    return copied.ok() ? absl::UnavailableError("transactions are at all of them") : copied;
  }
  FaultPoint("give-written");
  const auto taken = Ask(taker, PeerOp::kTake,
                         Packer()
                             .Add(giving.number, slots, local_->inode_end(),
                                  service_->LocksOf(slots, self_, incarnation_))
                             .Take());
  if (!taken.ok()) {
    // It may have them all the same; the taker is asked until it says.
    unresolved_.push_back(giving);
    MutexLock lock(&mutex_);
    stats_.under_way += slots.size();
    return taken.status();
  }
  FaultPoint("give-answered");
  End(giving, /*given=*/true);
  FaultPoint("give-ended");
  const auto freeze = std::chrono::duration_cast<std::chrono::microseconds>(SteadyClock::now() - frozen);
  MutexLock lock(&mutex_);
  stats_.longest_freeze_us =
      std::max(stats_.longest_freeze_us, static_cast<uint64_t>(freeze.count()));
  return absl::OkStatus();
}

void HandOver::End(const Giving& giving, bool given) {
  if (given) transactor_->DropOutcomes(giving.slots);
  const absl::Status ended = local_->EndGiving(giving.number, giving.slots, given);
  if (!ended.ok()) {
    LogError("a hand-over is not written down, trying again error=", ended.ToString());
    unresolved_.push_back(giving);
    return;
  }
  if (!given) return;
  {
    MutexLock lock(&mutex_);
    stats_.given += giving.slots.size();
  }
  // It may forget that it was asked.
  Ask(giving.taker, PeerOp::kTakeEnd, Packer().Add(giving.number).Take()).IgnoreError();
}

void HandOver::Resolve(const ClusterMap& map) {
  std::vector<Giving> unresolved;
  unresolved.swap(unresolved_);
  for (const Giving& giving : unresolved) {
    if (IsGone(map, giving.taker)) {
      // What it has not claimed stays here, as it was when it was given.
      const bool given = std::ranges::any_of(giving.slots, [&](Slot slot) {
        return map.OwnerOf(slot) != self_ || map.IsVacant(slot);
      });
      const absl::Status raised = local_->RaiseInodes(InodesAfterLosses(map));
      LogWarn("a hand-over to a node that is lost ", given ? "has" : "has not",
              " happened node=", Raw(giving.taker), " slots=", giving.slots.size());
      if (raised.ok()) {
        End(giving, given);
      } else {
        unresolved_.push_back(giving);
      }
      continue;
    }
    const auto answer = Ask(giving.taker, PeerOp::kHasTaken, Packer().Add(giving.number).Take());
    bool taken;
    if (!answer.ok() || !Unpacker(*answer).Take(&taken)) {
      unresolved_.push_back(giving);
      continue;
    }
    LogInfo("a hand-over that was cut off ", taken ? "has" : "has not", " happened node=",
            Raw(giving.taker), " slots=", giving.slots.size());
    End(giving, taken);
  }
  uint64_t under_way = 0;
  for (const Giving& giving : unresolved_) under_way += giving.slots.size();
  MutexLock lock(&mutex_);
  stats_.under_way = under_way;
}

// ------------------------------------------------------------------ the taker

bool HandOver::KnowsThisProcess(const ClusterMap& map) const {
  const ClusterNode* const me = map.Find(self_);
  return me != nullptr && !IsGone(me->state) && me->incarnation == incarnation_;
}

void HandOver::EndTakings(const ClusterMap& map) {
  MutexLock lock(&taking_mutex_);
  std::erase_if(taking_, [&](const auto& entry) {
    return map.IsRemoving() || IsGone(map, entry.first);
  });
}

void HandOver::Adopt(const ClusterMap& map) {
  // One of last time may say so of slots that were taken over and given away since.
  if (!KnowsThisProcess(map)) return;
  SlotList slots;
  for (size_t i = 0; i < kSlots && map.vacant().any(); ++i) {
    const Slot slot{static_cast<uint16_t>(i)};
    if (map.OwnerOf(slot) == self_ && map.IsVacant(slot) && !local_->Owns(slot) &&
        !local_->IsLeaving(slot)) {
      slots.push_back(slot);
    }
  }
  if (slots.empty()) return;
  const absl::Status adopted = local_->Adopt(slots, InodesAfterLosses(map));
  if (!adopted.ok()) {
    return LogError("slots of a lost node are not taken over, trying again error=",
                    adopted.ToString());
  }
  LogWarn("took over slots of a lost node, empty slots=", slots.size());
}

void HandOver::Claim(const ClusterMap& map) {
  SlotSet claimed;
  for (size_t i = 0; i < kSlots; ++i) {
    const Slot slot{static_cast<uint16_t>(i)};
    const bool is_news = map.OwnerOf(slot) != self_ || map.IsVacant(slot);
    claimed[i] = local_->Owns(slot) && (is_news || map.IsRemoving());
  }
  // Of what is under way nobody can say whose it is.
  if (map.IsRemoving() && !unresolved_.empty()) return;
  if (map.IsRemoving()) FaultPoint("removal-claim");
  if (claimed.none() && !map.IsRemoving()) return;
  FaultPoint("claim");
  claim_(claimed, map.epoch());
}

absl::StatusOr<std::string> HandOver::Handle(NodeId giver, PeerOp op, absl::string_view arguments) {
  if (op == PeerOp::kCountLost) return losses_.CountHere(arguments);
  const absl::Status malformed = PosixError(EPROTO);
  Unpacker in(arguments);
  uint64_t number;
  if (!in.Take(&number)) return malformed;
  MutexLock lock(&taking_mutex_);
  const ClusterMapPtr map = map_();
  if (IsGone(*map, giver)) return PosixError(ESTALE);
  switch (op) {
    case PeerOp::kTakeBegin: {
      SlotList slots;
      if (!in.Take(&slots)) return malformed;
      // A map of last time does not say yet that the giver was given up as lost.
      if (map->IsRemoving() || !KnowsThisProcess(*map)) return PosixError(EBUSY);
      Taking taking{number, {}};
      for (const Slot slot : slots) {
        if (local_->Owns(slot)) return PosixError(EEXIST);
        if (local_->IsLeaving(slot)) return PosixError(EBUSY);
        taking.slots.set(Raw(slot));
      }
      for (const auto& [other, its] : taking_) {
        if (other != giver && (its.slots & taking.slots).any()) return PosixError(EBUSY);
      }
      CFS_RETURN_IF_ERROR(local_->WipeSlots(slots));
      taking_[giver] = std::move(taking);
      return "";
    }
    case PeerOp::kTakePiece: {
      CFS_ASSIGN_OR_RETURN(TransactionPart part, DecodeTransactionPart(in.rest()));
      const Taking& taking = taking_[giver];
      if (taking.number != number) return PosixError(ESTALE);
      for (const Slot slot : part.Slots()) {
        if (!taking.slots[Raw(slot)]) return malformed;
      }
      CFS_RETURN_IF_ERROR(local_->TakePiece(std::move(part.writes)));
      FaultPoint("take-piece");
      return "";
    }
    case PeerOp::kTake: {
      SlotList slots;
      uint64_t inode_end;
      std::vector<MovedLock> locks;
      if (!in.Take(&slots, &inode_end, &locks)) return malformed;
      CFS_ASSIGN_OR_RETURN(const bool before, local_->HasTaken(number));
      if (before) return "";
      Taking& taking = taking_[giver];
      // It may be said already what this node owns.
      if (taking.number != number || map->IsRemoving()) return PosixError(ESTALE);
      for (const Slot slot : slots) {
        if (!taking.slots[Raw(slot)]) return malformed;
      }
      taking = Taking();
      CFS_RETURN_IF_ERROR(local_->Take(number, slots, inode_end, [&] {
        if (!Planted("locks-stay")) service_->AdoptLocks(locks, self_);
      }));
      FaultPoint("take-owned");
      service_->AdoptReplies(slots);
      transactor_->AdoptOutcomes(slots);
      {
        MutexLock stats(&mutex_);
        stats_.taken += slots.size();
        look_ = true;
        wake_.Signal();
      }
      return "";
    }
    case PeerOp::kHasTaken: {
      // If not, it never will.
      if (taking_[giver].number == number && !Planted("not-taken-is-not-final")) {
        taking_[giver] = Taking();
      }
      CFS_ASSIGN_OR_RETURN(const bool taken, local_->HasTaken(number));
      return Packer().Add(taken).Take();
    }
    case PeerOp::kTakeEnd:
      CFS_RETURN_IF_ERROR(local_->ForgetTaken(number));
      return "";
    default:
      return malformed;
  }
}

}  // namespace cfs
