// The directories of which the kernel may hold a listing.
#ifndef CFS_FUSE_LISTED_DIRECTORIES_H_
#define CFS_FUSE_LISTED_DIRECTORIES_H_

#include <atomic>

#include "absl/container/flat_hash_set.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"

namespace cfs {

// The kernel goes on with the cached beginning of a listing even when the
// directory has changed since (Linux 4.20 to 6.18 at least): it compares the
// versions only when a reader starts anew, so one that is under way would miss
// names that were there all the time. Hence what it holds must go before the
// directory changes.
//
// Thread-safe. Memory: 16 bytes for each listed directory, until it changes or
// the kernel forgets it.
class ListedDirectories {
 public:
  void Add(InodeId dir) {
    MutexLock lock(&mutex_);
    dirs_.insert(dir);
    size_.store(dirs_.size(), std::memory_order_relaxed);
  }

  // Returns whether it was there.
  bool Remove(InodeId dir) {
    // A listing and a change of the same directory exclude each other in the
    // kernel, so a set that is seen empty has not got this one.
    if (size_.load(std::memory_order_relaxed) == 0) return false;
    MutexLock lock(&mutex_);
    const bool was = dirs_.erase(dir) > 0;
    size_.store(dirs_.size(), std::memory_order_relaxed);
    return was;
  }

 private:
  std::atomic<size_t> size_{0};
  Mutex mutex_;
  absl::flat_hash_set<InodeId> dirs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_FUSE_LISTED_DIRECTORIES_H_
