// Operations on names: create, link, unlink, rename and so on, each as one
// atomic Update of a shard.
#ifndef CFS_META_NAMESPACE_H_
#define CFS_META_NAMESPACE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/clock.h"
#include "cfs/base/types.h"
#include "cfs/meta/shard.h"

namespace cfs {

// Who asks.
struct Caller {
  uint32_t uid = 0;
  uint32_t gid = 0;
  int32_t pid = 0;
  uint32_t umask = 0;
};

// What is known of an inode beyond its record.
struct InodeUse {
  bool open = false;    // Some open is outstanding, for all that is known.
  bool marked = false;  // An open mark is in the store.
};

// An inode whose last name went away.
struct Removed {
  InodeId ino = kNoInode;  // kNoInode: it has other names, or there was none.
  // Its record stays: of an open file until its last release, of anything but a
  // regular file (whose opens nobody counts) until the kernel forgets it.
  bool orphaned = false;
  InodeRecord record;
};

// Knows what inodes are used for. Called with the inode's stripe lock held.
class InodeUses {
 public:
  virtual ~InodeUses() = default;
  virtual InodeUse UseOf(InodeId ino, const InodeRecord& record) = 0;
  // The inode's last name is gone; the kernel may still know it.
  virtual void OnRemoved(const Removed& removed) = 0;
  // Whether an inode without a name may get one again, now.
  virtual bool MayLink(InodeId ino) = 0;
};

// What a rename did beside the names.
struct Renamed {
  Removed removed;
  // Directories that have another parent now: their ".." changed.
  InodeId moved[2] = {kNoInode, kNoInode};
};

// Guarantees: an operation happens whole or not at all. The name of an inode that
// is not there (it was lost with a node) can be removed and replaced.
// Thread-safe; takes the stripe locks it needs itself (REQUIRES: the caller holds
// none).
// Errors: what POSIX says. Permissions are the kernel's to check.
class Namespace {
 public:
  // None is owned. `alone`: nobody else changes the records, so that directories
  // may be moved by looking at one after the other; otherwise, IsNotOwned.
  Namespace(Records* records, Clock* clock, InodeUses* uses, bool alone = true)
      : alone_(alone), records_(records), clock_(clock), uses_(uses) {}

  // Makes the root directory in an empty store.
  absl::Status Format(uint32_t uid, uint32_t gid);

  struct NewInode {
    InodeId ino = kNoInode;
    InodeRecord record;     // mode (with the caller's bits), rdev, target, layout, home, backing...
    bool open_mark = false;
    std::optional<timespec> now;  // Of its creation, if not our clock's.
  };
  // Completes `record` (owner, mode by umask or default ACL, times) and links
  // it as `name`. EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG.
  absl::StatusOr<InodeRecord> Create(const Caller& caller, InodeId dir, absl::string_view name,
                                     NewInode inode);
  // Without a name: an orphan that Link may name.
  absl::StatusOr<InodeRecord> CreateOrphan(const Caller& caller, InodeId dir, NewInode inode);

  // IsBusy: somebody looks just now whether it is still open.
  absl::StatusOr<InodeRecord> Link(InodeId ino, InodeId dir, absl::string_view name);
  absl::StatusOr<Removed> Unlink(InodeId dir, absl::string_view name);
  absl::StatusOr<Removed> RemoveDirectory(InodeId dir, absl::string_view name);
  // `flags` as for renameat2(2).
  absl::StatusOr<Renamed> Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
                                 absl::string_view to_name, uint32_t flags);

  // Takes away the name, which is that of `ino` (EAGAIN), because the backend says so:
  // nothing is marked as dirty. ENOTEMPTY: a directory with names in it. `also` may change
  // the record first, adds what goes with it, and refuses by an error; with `instead`, that
  // is another entry of this name and this mode.
  absl::StatusOr<Removed> Drop(
      InodeId dir, absl::string_view name, InodeId ino, std::optional<uint32_t> instead,
      absl::FunctionRef<absl::Status(InodeRecord* record, Records::Update* update)> also);

  // Adds to `update` what ends an inode: record, xattrs, marks, backing file.
  // REQUIRES: the stripe lock of `ino`.
  absl::Status EraseInode(InodeId ino, const InodeRecord& record, bool marked,
                          Records::Update* update);

 private:
  struct Child {
    InodeId ino;
    InodeRecord record;
  };
  // Each needs the stripe lock of `dir` and of what it returns.
  absl::StatusOr<InodeRecord> GetDirectory(InodeId dir);
  absl::StatusOr<InodeId> Peek(InodeId dir, absl::string_view name);
  // One entry more or less in a directory.
  absl::Status ChangeBucket(InodeId dir, int entries, int subdirs, const timespec& now,
                            Records::Update* update);
  void OrphanDirectory(InodeId ino, InodeRecord record, const timespec& now,
                       Records::Update* update, Removed* removed);
  // Commits, and tells of an inode that went with it.
  absl::Status Commit(const Removed& removed, Records::Update* update);
  absl::Status DropLink(InodeId ino, InodeRecord record, const timespec& now,
                        Records::Update* update, Removed* removed);
  // Owner, mode, ACLs and placement of a new inode below `dir`.
  absl::Status Inherit(const Caller& caller, InodeId dir, const InodeRecord& parent,
                       NewInode* inode, Records::Update* update);
  absl::StatusOr<bool> IsBelow(InodeId dir, InodeId ancestor);
  absl::StatusOr<Renamed> RenameLocked(InodeId from_dir, absl::string_view from_name,
                                       InodeId to_dir, absl::string_view to_name, uint32_t flags,
                                       InodeId from_ino, InodeId to_ino, bool* changed);

  const bool alone_;
  Records* const records_;
  Clock* const clock_;
  InodeUses* const uses_;
  // Serialises moves of directories to another parent, so that no two of them
  // make a cycle. Taken before any stripe.
  Mutex directory_moves_;
};

// Name of a directory entry: EINVAL, ENAMETOOLONG.
absl::Status CheckName(absl::string_view name);

struct DirectoryEntry {
  std::string name;
  InodeId ino;
  uint8_t type;      // DT_*.
  uint64_t next;     // Offset that continues after this entry.
};

// Entries of `dir` from `offset` on (0: from the start), "." and ".." first,
// until `take` returns false. Offsets are derived from the names' hashes: they
// hold across restarts, and an entry that is there all the time is met once.
absl::Status ReadDirectory(Shard* shard, InodeId dir, uint64_t offset,
                           absl::FunctionRef<bool(const DirectoryEntry&)> take);

}  // namespace cfs

#endif  // CFS_META_NAMESPACE_H_
