// One lock for each of a fixed number of hash classes of inodes.
#ifndef CFS_BASE_STRIPE_LOCKS_H_
#define CFS_BASE_STRIPE_LOCKS_H_

#include <algorithm>
#include <array>
#include <initializer_list>

#include "absl/types/span.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"

namespace cfs {

class StripeLocks {
 public:
  Mutex& Of(InodeId ino) { return mutexes_[IndexOf(ino)]; }

  // Holds the locks of some inodes (kNoInode entries are left out). They are
  // taken in ascending order, so any two holders may overlap without deadlock.
  // A thread holds at most one Hold at a time.
  class Hold {
   public:
    static constexpr size_t kMax = 16;

    // REQUIRES: at most kMax inodes.
    Hold(StripeLocks* locks, std::initializer_list<InodeId> inodes)
        : Hold(locks, absl::MakeConstSpan(inodes.begin(), inodes.size())) {}
    Hold(StripeLocks* locks, absl::Span<const InodeId> inodes) : locks_(locks) {
      CFS_CHECK(inodes.size() <= kMax);
      for (InodeId ino : inodes) {
        if (ino == kNoInode) continue;
        indexes_[count_++] = IndexOf(ino);
      }
      std::sort(indexes_.begin(), indexes_.begin() + count_);
      count_ = std::unique(indexes_.begin(), indexes_.begin() + count_) - indexes_.begin();
      for (size_t i = 0; i < count_; ++i) locks_->mutexes_[indexes_[i]].Lock();
    }
    ~Hold() {
      while (count_ > 0) locks_->mutexes_[indexes_[--count_]].Unlock();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    StripeLocks* const locks_;
    std::array<size_t, kMax> indexes_;
    size_t count_ = 0;
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
