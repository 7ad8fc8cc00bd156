// Record locks (fcntl, OFD) and whole-file locks (flock) of a shard.
#ifndef CFS_SERVER_LOCK_TABLE_H_
#define CFS_SERVER_LOCK_TABLE_H_

#include <cstdint>
#include <list>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"
#include "cfs/server/file_system.h"

namespace cfs {

// Guarantees: the rules of fcntl(2) and flock(2): ranges of an owner split and
// merge, readers share, a waiter is served when nothing conflicts any more, and
// a record-lock wait that would close a cycle of owners gets EDEADLK.
// Thread-safe. Completions run after the table's lock is given up.
// Memory: bounded by kLocksPerInodeMax and kLockWaitersMax; over them ENOLCK.
class LockTable {
 public:
  // The two spaces of locks, which do not see each other.
  enum class Space { kRecord, kWholeFile };

  // The first lock that conflicts, or type F_UNLCK.
  FileLock Test(InodeId ino, uint64_t owner, const FileLock& lock);
  // Sets or (F_UNLCK) drops; `handle` is the one it came through. EAGAIN when it
  // conflicts and `wait` is false.
  void Set(Space space, InodeId ino, HandleId handle, uint64_t owner, const FileLock& lock,
           bool wait, LockRequestId id, DoneStatus done);
  // A waiter ends with EINTR; nothing happens if it is no longer waiting.
  void Cancel(LockRequestId id);
  // close(2): the owner's record locks on the inode go.
  void DropOwner(InodeId ino, uint64_t owner);
  // The last reference to an open file is gone, and what it held with it.
  void DropHandle(InodeId ino, HandleId handle);
  // Ends all waiters, for shutdown.
  void CancelAll();
  // Forgets inodes for which `gone` says so; those who wait end with `status`.
  void Drop(absl::FunctionRef<bool(InodeId)> gone, const absl::Status& status);

  // Of inodes for which `wanted` says so.
  struct HeldLock {
    Space space;
    InodeId ino;
    HandleId handle;
    uint64_t owner;
    FileLock lock;
  };
  std::vector<HeldLock> HeldLocks(absl::FunctionRef<bool(InodeId)> wanted);

  size_t waiters();
  size_t locks();

 private:
  struct Held {
    uint64_t owner;
    HandleId handle;
    FileLock lock;
  };
  struct Waiter {
    Space space;
    InodeId ino;
    HandleId handle;
    uint64_t owner;
    FileLock lock;
    LockRequestId id;
    DoneStatus done;
  };
  struct Inode {
    std::vector<Held> held[2];     // By Space.
    std::list<Waiter> waiters[2];  // Oldest first.
  };
  using Finished = std::vector<std::pair<DoneStatus, absl::Status>>;

  static const Held* Conflict(const std::vector<Held>& held, uint64_t owner, const FileLock& lock);
  static void Replace(std::vector<Held>* held, HandleId handle, uint64_t owner,
                      const FileLock& lock);
  bool WouldDeadlock(InodeId ino, uint64_t owner, const FileLock& lock)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Serves waiters of an inode after something was dropped.
  void Wake(InodeId ino, Space space, Finished* finished) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EraseIfIdle(InodeId ino) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Finish(Finished* finished);

  Mutex mutex_;
  absl::flat_hash_map<InodeId, Inode> inodes_ ABSL_GUARDED_BY(mutex_);
  // Where a waiter is, for Cancel.
  absl::flat_hash_map<LockRequestId, std::pair<InodeId, Space>> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_SERVER_LOCK_TABLE_H_
