#include "cfs/server/lock_table.h"

#include <algorithm>
#include <cerrno>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"

namespace cfs {
namespace {

bool Overlap(const FileLock& a, const FileLock& b) { return a.start <= b.end && b.start <= a.end; }

bool Conflicting(const FileLock& a, const FileLock& b) {
  return Overlap(a, b) && (a.type == F_WRLCK || b.type == F_WRLCK);
}

}  // namespace

const LockTable::Held* LockTable::Conflict(const std::vector<Held>& held, uint64_t owner,
                                           const FileLock& lock) {
  for (const Held& h : held) {
    if (h.owner != owner && Conflicting(h.lock, lock)) return &h;
  }
  return nullptr;
}

// The owner's locks in the range are replaced by `lock`; what lies outside the
// range stays, and neighbours of the same type become one.
void LockTable::Replace(std::vector<Held>* held, HandleId handle, uint64_t owner,
                        const FileLock& lock) {
  FileLock merged = lock;
  std::vector<Held> pieces;
  std::erase_if(*held, [&](const Held& h) {
    if (h.owner != owner) return false;
    if (lock.type == h.lock.type) {
      // Overlapping or adjacent, with care for the ends of the number range.
      const bool touches = Overlap(h.lock, merged) ||
                           (h.lock.end != UINT64_MAX && h.lock.end + 1 == merged.start) ||
                           (merged.end != UINT64_MAX && merged.end + 1 == h.lock.start);
      if (!touches) return false;
      merged.start = std::min(merged.start, h.lock.start);
      merged.end = std::max(merged.end, h.lock.end);
      return true;
    }
    if (!Overlap(h.lock, lock)) return false;
    if (h.lock.start < lock.start) {
      pieces.push_back(h);
      pieces.back().lock.end = lock.start - 1;
    }
    if (h.lock.end > lock.end) {
      pieces.push_back(h);
      pieces.back().lock.start = lock.end + 1;
    }
    return true;
  });
  held->insert(held->end(), pieces.begin(), pieces.end());
  if (lock.type != F_UNLCK) held->push_back({owner, handle, merged});
}

FileLock LockTable::Test(InodeId ino, uint64_t owner, const FileLock& lock) {
  MutexLock hold(&mutex_);
  const auto it = inodes_.find(ino);
  if (it != inodes_.end()) {
    if (const Held* h = Conflict(it->second.held[0], owner, lock)) return h->lock;
  }
  FileLock none = lock;
  none.type = F_UNLCK;
  return none;
}

// Follows who waits for whom from the owners that `lock` would wait for.
bool LockTable::WouldDeadlock(InodeId ino, uint64_t owner, const FileLock& lock) {
  struct Wait {
    InodeId ino;
    FileLock lock;
    uint64_t owner;
  };
  std::vector<Wait> pending = {{ino, lock, owner}};
  absl::flat_hash_set<uint64_t> seen;
  while (!pending.empty()) {
    const Wait wait = pending.back();
    pending.pop_back();
    const auto blocked_on = inodes_.find(wait.ino);
    if (blocked_on == inodes_.end()) continue;
    for (const Held& h : blocked_on->second.held[0]) {
      if (h.owner == wait.owner || !Conflicting(h.lock, wait.lock)) continue;
      if (h.owner == owner) return true;
      if (!seen.insert(h.owner).second) continue;
      for (const auto& [waiting_ino, inode] : inodes_) {
        for (const Waiter& w : inode.waiters[0]) {
          if (w.owner == h.owner) pending.push_back({waiting_ino, w.lock, w.owner});
        }
      }
    }
  }
  return false;
}

void LockTable::Set(Space space, InodeId ino, HandleId handle, uint64_t owner,
                    const FileLock& lock, bool wait, LockRequestId id, DoneStatus done) {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    Inode& inode = inodes_[ino];
    std::vector<Held>& held = inode.held[static_cast<int>(space)];
    absl::Status result;
    bool blocked = false;
    if (lock.type != F_UNLCK) {
      if (held.size() >= kLocksPerInodeMax) {
        result = PosixError(ENOLCK);
      } else if (Conflict(held, owner, lock) != nullptr) {
        if (!wait) {
          result = PosixError(EAGAIN);
        } else if (waiting_.size() >= kLockWaitersMax) {
          result = PosixError(ENOLCK);
        } else if (space == Space::kRecord && WouldDeadlock(ino, owner, lock)) {
          result = PosixError(EDEADLK);
        } else {
          blocked = true;
        }
        // flock(2) converts by giving up the old lock first.
        if (space == Space::kWholeFile) {
          FileLock none = lock;
          none.type = F_UNLCK;
          Replace(&held, handle, owner, none);
        }
      }
    }
    if (blocked) {
      waiting_[id] = {ino, space};
      inode.waiters[static_cast<int>(space)].push_back(
          {space, ino, handle, owner, lock, id, std::move(done)});
    } else {
      if (result.ok()) Replace(&held, handle, owner, lock);
      finished.emplace_back(std::move(done), std::move(result));
    }
    Wake(ino, space, &finished);
    EraseIfIdle(ino);
  }
  Finish(&finished);
}

void LockTable::Wake(InodeId ino, Space space, Finished* finished) {
  const auto it = inodes_.find(ino);
  if (it == inodes_.end()) return;
  std::vector<Held>& held = it->second.held[static_cast<int>(space)];
  std::list<Waiter>& waiters = it->second.waiters[static_cast<int>(space)];
  for (auto w = waiters.begin(); w != waiters.end();) {
    if (Conflict(held, w->owner, w->lock) != nullptr) {
      ++w;
      continue;
    }
    Replace(&held, w->handle, w->owner, w->lock);
    finished->emplace_back(std::move(w->done), absl::OkStatus());
    waiting_.erase(w->id);
    w = waiters.erase(w);
  }
}

void LockTable::EraseIfIdle(InodeId ino) {
  const auto it = inodes_.find(ino);
  if (it == inodes_.end()) return;
  const Inode& inode = it->second;
  if (inode.held[0].empty() && inode.held[1].empty() && inode.waiters[0].empty() &&
      inode.waiters[1].empty()) {
    inodes_.erase(it);
  }
}

void LockTable::Finish(Finished* finished) {
  for (auto& [done, status] : *finished) done(std::move(status));
}

void LockTable::Cancel(LockRequestId id) {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    const auto where = waiting_.find(id);
    if (where == waiting_.end()) return;
    const auto [ino, space] = where->second;
    std::list<Waiter>& waiters = inodes_[ino].waiters[static_cast<int>(space)];
    const auto w = std::find_if(waiters.begin(), waiters.end(),
                                [&](const Waiter& waiter) { return waiter.id == id; });
    finished.emplace_back(std::move(w->done), PosixError(EINTR));
    waiters.erase(w);
    waiting_.erase(where);
    EraseIfIdle(ino);
  }
  Finish(&finished);
}

void LockTable::DropOwner(InodeId ino, uint64_t owner) {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    const auto it = inodes_.find(ino);
    if (it == inodes_.end()) return;
    if (std::erase_if(it->second.held[0], [&](const Held& h) { return h.owner == owner; }) == 0) {
      return;
    }
    Wake(ino, Space::kRecord, &finished);
    EraseIfIdle(ino);
  }
  Finish(&finished);
}

void LockTable::DropHandle(InodeId ino, HandleId handle) {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    const auto it = inodes_.find(ino);
    if (it == inodes_.end()) return;
    for (const Space space : {Space::kRecord, Space::kWholeFile}) {
      std::erase_if(it->second.held[static_cast<int>(space)],
                    [&](const Held& h) { return h.handle == handle; });
      Wake(ino, space, &finished);
    }
    EraseIfIdle(ino);
  }
  Finish(&finished);
}

std::vector<LockTable::HeldLock> LockTable::HeldLocks(absl::FunctionRef<bool(InodeId)> wanted) {
  std::vector<HeldLock> locks;
  MutexLock hold(&mutex_);
  for (const auto& [ino, inode] : inodes_) {
    if (!wanted(ino)) continue;
    for (const Space space : {Space::kRecord, Space::kWholeFile}) {
      for (const Held& held : inode.held[static_cast<int>(space)]) {
        locks.push_back({space, ino, held.handle, held.owner, held.lock});
      }
    }
  }
  return locks;
}

void LockTable::CancelAll() {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    for (auto& [ino, inode] : inodes_) {
      for (auto& waiters : inode.waiters) {
        for (Waiter& w : waiters) finished.emplace_back(std::move(w.done), PosixError(EINTR));
        waiters.clear();
      }
    }
    waiting_.clear();
  }
  Finish(&finished);
}

void LockTable::Drop(absl::FunctionRef<bool(InodeId)> gone, const absl::Status& status) {
  Finished finished;
  {
    MutexLock hold(&mutex_);
    for (auto it = inodes_.begin(); it != inodes_.end();) {
      if (!gone(it->first)) {
        ++it;
        continue;
      }
      for (auto& waiters : it->second.waiters) {
        for (Waiter& w : waiters) {
          waiting_.erase(w.id);
          finished.emplace_back(std::move(w.done), status);
        }
      }
      inodes_.erase(it++);
    }
  }
  Finish(&finished);
}

size_t LockTable::waiters() {
  MutexLock hold(&mutex_);
  return waiting_.size();
}

size_t LockTable::locks() {
  MutexLock hold(&mutex_);
  size_t sum = 0;
  for (const auto& [ino, inode] : inodes_) sum += inode.held[0].size() + inode.held[1].size();
  return sum;
}

}  // namespace cfs
