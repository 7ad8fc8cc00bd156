#include "cfs/meta/store_state.h"

#include <algorithm>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"

namespace cfs {

absl::StatusOr<std::unique_ptr<StoreStateKeeper>> StoreStateKeeper::Open(Shard* shard) {
  std::unique_ptr<StoreStateKeeper> keeper(new StoreStateKeeper(shard));
  MutexLock lock(&keeper->mutex_);
  StoreState& state = keeper->state_;
  std::string value;
  const absl::Status found = shard->store()->Get(Family::kLocal, kStoreStateKey, &value);
  if (found.ok()) {
    CFS_ASSIGN_OR_RETURN(state, DecodeStoreState(value));
    keeper->was_clean_ = state.clean;
    keeper->unsettled_ = {state.settled, state.counter_end};
    // Attributes recorded before an unclean end are looked at again.
    if (!state.clean) ++state.attr_epoch;
  } else if (absl::IsNotFound(found)) {
    keeper->is_new_ = true;
  } else {
    return found;
  }
  keeper->attr_epoch_ = state.attr_epoch;
  keeper->next_ = state.counter_end;
  state.clean = false;
  CFS_RETURN_IF_ERROR(keeper->ReserveLocked());
  return keeper;
}

absl::Status StoreStateKeeper::WriteLocked(bool sync) {
  Shard::Update update(shard_);
  update.PutStoreState(state_);
  CFS_RETURN_IF_ERROR(update.Commit());
  return sync ? shard_->store()->SyncWal() : absl::OkStatus();
}

absl::Status StoreStateKeeper::ReserveLocked() {
  state_.counter_end = next_ + kCounterBlock;
  CFS_CHECK(state_.counter_end < kCounterMask);
  CFS_RETURN_IF_ERROR(WriteLocked(/*sync=*/true));
  usable_end_ = state_.counter_end;
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> StoreStateKeeper::Next() {
  MutexLock lock(&mutex_);
  if (next_ == usable_end_) CFS_RETURN_IF_ERROR(ReserveLocked());
  return next_++;
}

absl::Status StoreStateKeeper::TopUp() {
  uint64_t end;
  {
    MutexLock lock(&mutex_);
    if (usable_end_ - next_ >= kCounterBlock / 2) return absl::OkStatus();
    end = state_.counter_end = usable_end_ + kCounterBlock;
    CFS_RETURN_IF_ERROR(WriteLocked(/*sync=*/false));
  }
  // Synced without the lock: Next goes on with what is left of the old block.
  CFS_RETURN_IF_ERROR(shard_->store()->SyncWal());
  MutexLock lock(&mutex_);
  if (usable_end_ < end) usable_end_ = end;
  return absl::OkStatus();
}

absl::Status StoreStateKeeper::SetSettled(uint64_t settled) {
  MutexLock lock(&mutex_);
  if (settled <= state_.settled) return absl::OkStatus();
  // Taken for written only once it is: marks go on the strength of it.
  const uint64_t before = std::exchange(state_.settled, settled);
  const absl::Status status = WriteLocked(/*sync=*/false);
  if (!status.ok()) state_.settled = before;
  return status;
}

absl::Status StoreStateKeeper::RaiseInodes(uint64_t first) {
  MutexLock lock(&mutex_);
  if (state_.inode_lead >= first) return absl::OkStatus();
  // So much that no number that waits to be used, and is lower than others, meets
  // with what those have made.
  const uint64_t before = state_.inode_lead;
  state_.inode_lead = std::max(first, before + state_.counter_end);
  CFS_CHECK(state_.inode_lead + state_.counter_end < kCounterMask);
  const absl::Status status = WriteLocked(/*sync=*/true);
  if (!status.ok()) state_.inode_lead = before;
  return status;
}

absl::Status StoreStateKeeper::MarkClean() {
  MutexLock lock(&mutex_);
  state_.clean = true;
  return WriteLocked(/*sync=*/true);
}

}  // namespace cfs
