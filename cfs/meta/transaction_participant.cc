#include "cfs/meta/transaction_participant.h"

#include <algorithm>
#include <set>
#include <utility>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/planted.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

// Whose stripes a part needs.
std::vector<InodeId> InodesOf(const TransactionPart& part) {
  std::set<InodeId> inodes;
  for (const TransactionPart::Compare& compare : part.compares) {
    inodes.insert(InodeOfKey(compare.key));
  }
  for (const WriteSet::Write& write : part.writes.writes()) {
    if (write.family == Family::kRecords) inodes.insert(InodeOfKey(write.key));
  }
  for (const TransactionPart::Count& count : part.counts) inodes.insert(count.dir);
  return {inodes.begin(), inodes.end()};
}

}  // namespace

std::shared_ptr<TransactionParticipant::Prepared> TransactionParticipant::MakePrepared(
    TransactionPart part, Clock::time_point since) {
  auto prepared = std::make_shared<Prepared>();
  std::set<std::string> exclusive, shared;
  for (const WriteSet::Write& write : part.writes.writes()) {
    if (write.family == Family::kRecords) exclusive.insert(write.key);
  }
  for (const TransactionPart::Compare& compare : part.compares) {
    if (!exclusive.contains(compare.key)) shared.insert(compare.key);
  }
  prepared->exclusive.assign(exclusive.begin(), exclusive.end());
  prepared->shared.assign(shared.begin(), shared.end());
  prepared->slot = part.Slots().front();
  prepared->since = since;
  prepared->part = std::move(part);
  return prepared;
}

absl::Status TransactionParticipant::Recover(Clock::time_point now) {
  // Others act on the outcomes that are found here: power loss must not take them.
  if (!Planted("found-not-synced")) CFS_RETURN_IF_ERROR(shard_->store()->SyncWal());
  absl::Status malformed;
  std::map<TransactionId, std::shared_ptr<Prepared>> found;
  CFS_RETURN_IF_ERROR(shard_->store()->Scan(
      Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
        Slot slot;
        TransactionId id;
        if (!ParsePreparedKey(key, &slot, &id) || !shard_->Owns(slot)) return true;
        auto part = DecodeTransactionPart(value);
        malformed = part.status();
        if (!part.ok()) return false;
        auto prepared = MakePrepared(*std::move(part), now);
        if (Planted("locks-not-taken-again")) {
          prepared->exclusive.clear(), prepared->shared.clear();
        }
        if (!shard_->key_locks().TryLock(prepared->exclusive, prepared->shared)) {
          malformed = absl::DataLossError("two prepared transactions write the same");
          return false;
        }
        found[id] = std::move(prepared);
        return true;
      }));
  MutexLock lock(&mutex_);
  prepared_ = std::move(found);
  return malformed;
}

absl::StatusOr<std::vector<TransactionParticipant::Outcome>> TransactionParticipant::Outcomes() {
  std::vector<Outcome> outcomes;
  absl::Status malformed;
  CFS_RETURN_IF_ERROR(shard_->store()->Scan(
      Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
        TransactionId id;
        if (!ParseOutcomeKey(key, &id) || !shard_->Owns(id.slot)) return true;
        auto nodes = DecodeNodes(value);
        malformed = nodes.status();
        if (nodes.ok()) outcomes.emplace_back(id, *std::move(nodes));
        return malformed.ok();
      }));
  CFS_RETURN_IF_ERROR(malformed);
  return outcomes;
}

absl::StatusOr<std::optional<std::string>> TransactionParticipant::Read(const std::string& key) {
  StripeLocks::Hold hold(&shard_->locks(), {InodeOfKey(key)});
  return shard_->GetRaw(key);
}

absl::StatusOr<TransactionParticipant::Vote> TransactionParticipant::Check(
    const TransactionPart& part) {
  for (const Slot slot : part.Slots()) {
    if (!shard_->Owns(slot)) return Vote::kNotOwned;
  }
  KeyLocks& locks = shard_->key_locks();
  for (const WriteSet::Write& write : part.writes.writes()) {
    if (write.family == Family::kRecords && !locks.MayWrite(write.key)) return Vote::kBusy;
  }
  for (const TransactionPart::Count& count : part.counts) {
    if (!locks.MayWrite(BucketKey(count.dir, 0))) return Vote::kBusy;
  }
  for (const TransactionPart::Compare& compare : part.compares) {
    const auto now = shard_->GetRaw(compare.key);
    if (IsBusy(now.status())) return Vote::kBusy;
    if (IsNotOwned(now.status())) return Vote::kNotOwned;
    CFS_RETURN_IF_ERROR(now.status());
    if (*now != compare.value && !Planted("compare-skipped")) return Vote::kChanged;
    if (!compare.value || !IsInodeKey(compare.key)) continue;
    // What has no name may be on its way out.
    const InodeId ino = InodeOfKey(compare.key);
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, DecodeInode(*compare.value));
    if (record.nlink == 0 && !uses_->MayLink(ino)) return Vote::kBusy;
  }
  return Vote::kYes;
}

absl::StatusOr<TransactionParticipant::Vote> TransactionParticipant::Prepare(
    const TransactionId& id, TransactionPart part, Clock::time_point now) {
  const std::vector<InodeId> inodes = InodesOf(part);
  std::shared_ptr<Prepared> prepared = MakePrepared(std::move(part), now);
  StripeLocks::Hold hold(&shard_->locks(), inodes);
  {
    MutexLock lock(&mutex_);
    if (prepared_.contains(id)) return Vote::kYes;
    if (over_.contains(id) && !Planted("late-prepare")) return Vote::kChanged;
  }
  CFS_ASSIGN_OR_RETURN(const Vote vote, Check(prepared->part));
  if (vote != Vote::kYes) return vote;
  if (Planted("no-locks")) prepared->exclusive.clear(), prepared->shared.clear();
  if (Planted("reads-not-locked")) prepared->shared.clear();
  if (!shard_->key_locks().TryLock(prepared->exclusive, prepared->shared)) return Vote::kBusy;
  WriteSet writes;
  writes.Put(Family::kQueue, PreparedKey(prepared->slot, id), Encode(prepared->part));
  const absl::Status status = shard_->ApplyUnchecked(writes);
  if (!status.ok()) {
    shard_->key_locks().Unlock(prepared->exclusive, prepared->shared);
    return status;
  }
  MutexLock lock(&mutex_);
  prepared_[id] = std::move(prepared);
  return Vote::kYes;
}

// REQUIRES also: what the part has locked may be read, so no key of it is locked
// by another.
absl::Status TransactionParticipant::Collect(const TransactionPart& part, WriteSet* writes) {
  for (const WriteSet::Write& write : part.writes.writes()) {
    if (write.is_delete) {
      writes->Delete(write.family, write.key);
    } else {
      writes->Put(write.family, write.key, write.value);
    }
  }
  for (const TransactionPart::Count& count : part.counts) {
    CFS_ASSIGN_OR_RETURN(BucketRecord bucket, shard_->GetBucket(count.dir));
    if (Planted("count-overwrites")) bucket.entries = 0;
    bucket.entries += static_cast<uint64_t>(count.entries);
    bucket.subdirs += static_cast<uint64_t>(count.subdirs);
    bucket.mtime = bucket.ctime = count.now;
    writes->Put(Family::kRecords, BucketKey(count.dir, 0), Encode(bucket));
  }
  return absl::OkStatus();
}

void TransactionParticipant::Tell(const TransactionPart& part) {
  for (const WriteSet::Write& write : part.writes.writes()) {
    if (write.is_delete || write.family != Family::kRecords || !IsInodeKey(write.key)) continue;
    const auto record = DecodeInode(write.value);
    if (!record.ok() || record->nlink > 0) continue;
    uses_->OnRemoved({InodeOfKey(write.key), /*orphaned=*/true, *record});
  }
}

void TransactionParticipant::SetOver(const TransactionId& id, bool committed) {
  if (!over_.try_emplace(id, committed).second) return;
  over_order_.push_back(id);
  if (over_order_.size() <= kTransactionsOverMax) return;
  over_.erase(over_order_.front());
  over_order_.pop_front();
}

absl::Status TransactionParticipant::End(const TransactionId& id, bool committed) {
  std::shared_ptr<Prepared> prepared;
  {
    MutexLock lock(&mutex_);
    const auto it = prepared_.find(id);
    // A Prepare that this has overtaken comes too late then.
    if (it == prepared_.end()) return SetOver(id, committed), absl::OkStatus();
    prepared = it->second;
  }
  StripeLocks::Hold hold(&shard_->locks(), InodesOf(prepared->part));
  {
    MutexLock lock(&mutex_);
    if (!prepared_.contains(id)) return absl::OkStatus();  // By another call.
  }
  WriteSet writes;
  absl::Status status;
  if (committed) {
    // The locks go first, for a bucket's times may have to be read from an inode
    // that this part has locked; nobody comes between, with the stripes held.
    shard_->key_locks().Unlock(prepared->exclusive, prepared->shared);
    status = Collect(prepared->part, &writes);
  }
  if (!committed || !Planted("committed-stays-prepared")) {
    writes.Delete(Family::kQueue, PreparedKey(prepared->slot, id));
  }
  if (status.ok()) status = shard_->ApplyUnchecked(writes);
  if (!status.ok()) {
    if (committed) shard_->key_locks().TryLock(prepared->exclusive, prepared->shared);
    return status;
  }
  if (committed) {
    Tell(prepared->part);
  } else if (!Planted("abort-keeps-locks")) {
    shard_->key_locks().Unlock(prepared->exclusive, prepared->shared);
  }
  MutexLock lock(&mutex_);
  prepared_.erase(id);
  SetOver(id, committed);
  return absl::OkStatus();
}

absl::StatusOr<TransactionParticipant::Vote> TransactionParticipant::Write(
    const TransactionPart& part, const Decision* decision,
    const std::function<void(Records::Update*)>& add) {
  StripeLocks::Hold hold(&shard_->locks(), InodesOf(part));
  if (decision != nullptr && !shard_->Owns(decision->id.slot)) return Vote::kNotOwned;
  CFS_ASSIGN_OR_RETURN(const Vote vote, Check(part));
  if (vote != Vote::kYes && !Planted("own-part-not-checked")) return vote;
  WriteSet writes;
  CFS_RETURN_IF_ERROR(Collect(part, &writes));
  Records::Update more(shard_);
  if (add) add(&more);
  for (const WriteSet::Write& write : more.writes().writes()) {
    write.is_delete ? writes.Delete(write.family, write.key)
                    : writes.Put(write.family, write.key, write.value);
  }
  if (decision != nullptr && !Planted("outcome-not-written")) {
    writes.Put(Family::kQueue, OutcomeKey(decision->id), EncodeNodes(decision->others));
  }
  CFS_RETURN_IF_ERROR(shard_->ApplyUnchecked(writes));
  Tell(part);
  if (decision != nullptr) {
    MutexLock lock(&mutex_);
    SetOver(decision->id, /*committed=*/true);
  }
  return Vote::kYes;
}

bool TransactionParticipant::WasCommitted(const TransactionId& id) {
  MutexLock lock(&mutex_);
  const auto it = over_.find(id);
  return it != over_.end() && it->second;
}

absl::StatusOr<bool> TransactionParticipant::IsCommitted(const TransactionId& id) {
  std::string value;
  const absl::Status found = shard_->store()->Get(Family::kQueue, OutcomeKey(id), &value);
  if (absl::IsNotFound(found)) return false;
  CFS_RETURN_IF_ERROR(found);
  return true;
}

absl::Status TransactionParticipant::ForgetOutcomes(const std::vector<TransactionId>& ids) {
  WriteSet writes;
  for (const TransactionId& id : ids) writes.Delete(Family::kQueue, OutcomeKey(id));
  return writes.empty() ? absl::OkStatus() : shard_->ApplyUnchecked(writes);
}

std::vector<TransactionId> TransactionParticipant::PreparedBefore(Clock::time_point when) {
  std::vector<TransactionId> ids;
  MutexLock lock(&mutex_);
  for (const auto& [id, prepared] : prepared_) {
    if (prepared->since < when) ids.push_back(id);
  }
  return ids;
}

bool TransactionParticipant::HasPrepared(Slot slot) {
  MutexLock lock(&mutex_);
  return std::ranges::any_of(prepared_, [slot](const auto& entry) {
    const std::vector<Slot> slots = entry.second->part.Slots();
    return std::ranges::find(slots, slot) != slots.end();
  });
}

}  // namespace cfs
