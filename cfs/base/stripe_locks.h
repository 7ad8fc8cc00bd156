// One lock for each of a fixed number of hash classes of inodes.
#ifndef CFS_BASE_STRIPE_LOCKS_H_
#define CFS_BASE_STRIPE_LOCKS_H_

#include <algorithm>
#include <array>
#include <initializer_list>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "cfs/base/limits.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"

namespace cfs {

class StripeLocks {
 public:
  Mutex& Of(InodeId ino) { return mutexes_[IndexOf(ino)]; }
  Mutex& At(size_t stripe) { return mutexes_[stripe]; }

  // Holds the locks of some inodes (kNoInode entries are left out). They are
  // taken in ascending order, so any two holders may overlap without deadlock.
  // A thread holds at most one Hold at a time.
  class Hold {
   public:
    // More than this are fine, and cost an allocation.
    static constexpr size_t kMax = 16;

    Hold(StripeLocks* locks, std::initializer_list<InodeId> inodes)
        : Hold(locks, absl::MakeConstSpan(inodes.begin(), inodes.size())) {}
    Hold(StripeLocks* locks, absl::Span<const InodeId> inodes) : locks_(locks) {
      for (InodeId ino : inodes) {
        if (ino != kNoInode) indexes_.push_back(IndexOf(ino));
      }
      std::sort(indexes_.begin(), indexes_.end());
      indexes_.erase(std::unique(indexes_.begin(), indexes_.end()), indexes_.end());
      for (const size_t i : indexes_) locks_->mutexes_[i].Lock();
    }
    ~Hold() {
      for (; !indexes_.empty(); indexes_.pop_back()) locks_->mutexes_[indexes_.back()].Unlock();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    StripeLocks* const locks_;
    absl::InlinedVector<size_t, kMax> indexes_;
  };

 private:
  static size_t IndexOf(InodeId ino) {
    // Fibonacci hashing: counters of neighbours fall into different classes.
    return (Raw(ino) * 0x9E3779B97F4A7C15u >> 32) % kLockStripes;
  }

  std::array<Mutex, kLockStripes> mutexes_;
};

}  // namespace cfs

#endif  // CFS_BASE_STRIPE_LOCKS_H_
