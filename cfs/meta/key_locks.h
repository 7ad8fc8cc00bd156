// Locks of keys that outlive the call that takes them: those of transactions
// that are prepared.
#ifndef CFS_META_KEY_LOCKS_H_
#define CFS_META_KEY_LOCKS_H_

#include <atomic>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "cfs/base/mutex.h"

namespace cfs {

// Nobody waits for such a lock: whoever meets one tries again later. Thread-safe;
// a key is locked under the stripe lock of its inode, so that who holds that
// sees it.
class KeyLocks {
 public:
  // `exclusive`: of what is going to be written; `shared`: of what must not
  // change meanwhile. All or none.
  bool TryLock(const std::vector<std::string>& exclusive, const std::vector<std::string>& shared) {
    MutexLock lock(&mutex_);
    for (const std::string& key : exclusive) {
      if (keys_.contains(key)) return false;
    }
    for (const std::string& key : shared) {
      const auto it = keys_.find(key);
      if (it != keys_.end() && it->second == kExclusive) return false;
    }
    for (const std::string& key : exclusive) keys_[key] = kExclusive;
    for (const std::string& key : shared) ++keys_[key];
    count_.store(keys_.size(), std::memory_order_relaxed);
    return true;
  }

  void Unlock(const std::vector<std::string>& exclusive, const std::vector<std::string>& shared) {
    MutexLock lock(&mutex_);
    for (const std::string& key : exclusive) keys_.erase(key);
    for (const std::string& key : shared) {
      const auto it = keys_.find(key);
      if (--it->second == 0) keys_.erase(it);
    }
    count_.store(keys_.size(), std::memory_order_relaxed);
  }

  // Relaxed: the stripe lock orders it.
  bool none() const { return count_.load(std::memory_order_relaxed) == 0; }
  bool MayRead(absl::string_view key) {
    MutexLock lock(&mutex_);
    const auto it = keys_.find(key);
    return it == keys_.end() || it->second != kExclusive;
  }
  bool MayWrite(absl::string_view key) {
    MutexLock lock(&mutex_);
    return !keys_.contains(key);
  }

 private:
  static constexpr int kExclusive = -1;  // Otherwise: how many share it.

  std::atomic<size_t> count_{0};
  Mutex mutex_;
  absl::flat_hash_map<std::string, int> keys_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_META_KEY_LOCKS_H_
