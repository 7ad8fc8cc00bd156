#include "cfs/meta/wal_syncer.h"

#include <chrono>
#include <utility>

#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"

namespace cfs {

WalSyncer::WalSyncer(Store* store) : store_(store), thread_([this] { Run(); }) {}

WalSyncer::~WalSyncer() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.Signal();
  }
  thread_.join();
}

void WalSyncer::Sync(Waiter waiter) {
  MutexLock lock(&mutex_);
  waiters_.push_back(std::move(waiter));
  wake_.Signal();
}

void WalSyncer::Run() {
  NameThread("cfs-wal-sync");
  absl::Status sticky;
  std::vector<Waiter> batch;
  for (bool stop = false; !stop;) {
    {
      MutexLock lock(&mutex_);
      const auto deadline =
          SteadyClock::now() + std::chrono::milliseconds(kWalSyncMilliseconds);
      while (waiters_.empty() && !stopping_) {
        const auto left = deadline - SteadyClock::now();
        if (left.count() <= 0) break;
        wake_.WaitFor(&mutex_, left);
      }
      batch.swap(waiters_);
      stop = stopping_;
    }
    if (batch.empty() && !stop && !dirty_.load(std::memory_order_relaxed)) continue;
    dirty_.store(false, std::memory_order_relaxed);
    absl::Status status = store_->SyncWal();
    syncs_.fetch_add(1, std::memory_order_relaxed);
    if (!status.ok() && sticky.ok()) {
      sticky = status;
      LogError("sync of the metadata log failed; every fsync fails from now on error=",
               status.ToString());
    }
    for (Waiter& waiter : batch) waiter(sticky);
    batch.clear();
  }
  MutexLock lock(&mutex_);
  for (Waiter& waiter : waiters_) waiter(sticky);
  waiters_.clear();
}

}  // namespace cfs
