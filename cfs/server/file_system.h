// The seam between a mount and the rest: POSIX-shaped operations on inodes.
//
// Asynchronous: an operation may call `done` before it returns or later from
// another thread, exactly once. Nothing that waits (for a device, a lock, a
// peer) waits in the caller's thread. What an argument refers to need only live
// until the call returns.
//
// Thread-safe. No lock of the file system is held while `done` runs, so it may
// call back in. Errors carry the errno of POSIX (ErrnoOf). Permissions are
// checked by the kernel (default_permissions).
#ifndef CFS_SERVER_FILE_SYSTEM_H_
#define CFS_SERVER_FILE_SYSTEM_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/types.h"
#include "cfs/base/unique_fd.h"
#include "cfs/meta/namespace.h"

namespace cfs {

template <typename T>
using Done = absl::AnyInvocable<void(absl::StatusOr<T>)>;
using DoneStatus = absl::AnyInvocable<void(absl::Status)>;

struct Attr {
  struct stat st {};
  timespec btime{};
  // Nobody can change it without telling us: the kernel may keep it.
  bool stable = true;
  // Of a file that did not exist before: what happens to it in the first tick of
  // the clock that stamps files cannot be told from its creation.
  bool fresh = false;
  // Nothing but the inode number, and the type that its name says, is known here:
  // its owner has the rest.
  bool elsewhere = false;
  // Where a regular file's data is. If that is not the node that answers, size,
  // blocks and times are still to be had from there.
  NodeId home{0};
  BackingId backing = kNoBacking;
};

// An open file of one client; made by Open, ended by Release.
enum class HandleId : uint64_t {};

struct OpenResult {
  HandleId handle{};
  InodeId ino = kNoInode;
  BackingId backing = kNoBacking;
  // Passthrough registration of a fresh file; 0: register it.
  int registration = 0;
  // The data is another node's: no page of it is kept here.
  bool remote = false;
  // Not to be passed through, if the file is not open: who writes may have to wait.
  bool through_daemon = false;
};

struct CreateResult {
  Attr attr;
  OpenResult open;
};

// What of SetAttrRequest is meant.
enum SetAttrFields : uint32_t {
  kSetMode = 1u << 0,
  kSetUid = 1u << 1,
  kSetGid = 1u << 2,
  kSetSize = 1u << 3,
  kSetAtime = 1u << 4,
  kSetMtime = 1u << 5,
  kSetAtimeNow = 1u << 6,
  kSetMtimeNow = 1u << 7,
  kKillPrivileges = 1u << 8,  // Drop setuid and setgid bits and capabilities.
  kKillCapability = 1u << 9,  // Drop capabilities only.
};
struct SetAttrRequest {
  uint32_t fields = 0;
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t size = 0;
  timespec atime{};
  timespec mtime{};
};

// Data that no inode has yet, and the time by the clock that will stamp it.
struct FreshData {
  BackingId backing = kNoBacking;
  timespec now{};
};

// An entry of a directory with the attributes that its inode had meanwhile.
struct ListedEntry {
  DirectoryEntry entry;
  bool has_attr = false;
  Attr attr;
};

// Data of a read: `size` bytes, either at `bytes` (what a peer sent) or at
// `offset` of `fd`. Both live until the completion returns.
struct ReadResult {
  int fd = -1;
  uint64_t offset = 0;
  size_t size = 0;
  const char* bytes = nullptr;
};
struct WriteMode {
  bool append = false;  // To where the end is by then, not at the offset.
  bool kill_privileges = false;
};
// What a write request carries.
class WriteSource {
 public:
  virtual ~WriteSource() = default;
  virtual size_t size() const = 0;
  // Writes it to a descriptor at an offset; bytes or error.
  virtual absl::StatusOr<size_t> WriteTo(int fd, uint64_t offset) = 0;
  // Its bytes, to keep, instead: given away where that is possible, else copied.
  virtual absl::StatusOr<std::shared_ptr<char[]>> Take() = 0;
};

struct FileLock {
  uint64_t start = 0;
  uint64_t end = 0;  // Inclusive; OFFSET_MAX for "to the end".
  int type = F_UNLCK;
  int32_t pid = 0;
};
// Identifies a waiting lock request, to cancel it; chosen by the caller.
enum class LockRequestId : uint64_t {};

// What the file system asks of the mounts: their kernel caches.
class KernelCache {
 public:
  virtual ~KernelCache() = default;
  // Size and times of the inode may change unseen from now on.
  virtual void AttrUnstable(InodeId ino) = 0;
  // A fresh file's registration (OpenResult) is not going to be used.
  virtual void RegistrationUnused(int registration) = 0;
  // Give up what keeps the space of a closed file in use.
  virtual void BackingGone(InodeId ino) = 0;
  // What is cached of the directory's listing is no longer true.
  virtual void ListingChanged(InodeId dir) = 0;
  // What is cached of the name is no longer true. The kernel is told as soon as no
  // operation in the directory is under way; nobody waits for that here.
  virtual void NameChanged(InodeId dir, absl::string_view name) = 0;
  // It was told of all of them.
  virtual bool NamesTold() = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // Others change it too: a kernel may keep neither names nor attributes, and
  // locks are taken here. Never changes.
  virtual bool IsShared() const { return false; }

  virtual void Lookup(InodeId dir, absl::string_view name, Done<Attr> done) = 0;
  // The kernel no longer knows the inode.
  virtual void Forget(InodeId ino) = 0;
  virtual void GetAttr(InodeId ino, Done<Attr> done) = 0;
  virtual void SetAttr(InodeId ino, const SetAttrRequest& request, Done<Attr> done) = 0;
  virtual void ReadLink(InodeId ino, Done<std::string> done) = 0;

  // Any kind of inode but a directory or symbolic link.
  virtual void MakeNode(const Caller& caller, InodeId dir, absl::string_view name, uint32_t mode,
                        uint64_t rdev, Done<Attr> done) = 0;
  virtual void MakeDirectory(const Caller& caller, InodeId dir, absl::string_view name,
                             uint32_t mode, Done<Attr> done) = 0;
  virtual void MakeSymlink(const Caller& caller, InodeId dir, absl::string_view name,
                           absl::string_view target, Done<Attr> done) = 0;
  virtual void Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done) = 0;
  virtual void Unlink(InodeId dir, absl::string_view name, DoneStatus done) = 0;
  virtual void RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done) = 0;
  virtual void Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
                      absl::string_view to_name, uint32_t flags, DoneStatus done) = 0;

  // Entries after `offset`, as many as fit `bytes_max` when each takes
  // `entry_bytes` and its name; with attributes if `attributes`.
  virtual void List(InodeId dir, uint64_t offset, size_t bytes_max, size_t entry_bytes,
                    bool attributes, Done<std::vector<ListedEntry>> done) = 0;

  virtual void GetXattr(InodeId ino, absl::string_view name, Done<std::string> done) = 0;
  virtual void ListXattrs(InodeId ino, Done<std::vector<std::string>> done) = 0;
  virtual void SetXattr(InodeId ino, absl::string_view name, absl::string_view value, int flags,
                        bool clear_setgid, DoneStatus done) = 0;
  virtual void RemoveXattr(InodeId ino, absl::string_view name, DoneStatus done) = 0;

  // `flags` as for open(2); `kill_privileges`: a truncation drops setuid bits.
  virtual void Open(InodeId ino, int flags, bool kill_privileges, Done<OpenResult> done) = 0;
  virtual void Create(const Caller& caller, InodeId dir, absl::string_view name, uint32_t mode,
                      int flags, Done<CreateResult> done) = 0;
  // O_TMPFILE.
  virtual void CreateUnnamed(const Caller& caller, InodeId dir, uint32_t mode, int flags,
                             Done<CreateResult> done) = 0;
  // Drops the locks that were taken through the handle.
  virtual void Release(HandleId handle) = 0;
  // What OpenResult said of it.
  virtual bool IsRemote(HandleId) { return false; }
  // close(2) by `owner`: drops its record locks.
  virtual void Flush(HandleId handle, uint64_t owner, DoneStatus done) = 0;

  // After OK: data, attributes and names survive power loss.
  virtual void Sync(HandleId handle, bool data_only, DoneStatus done) = 0;
  virtual void SyncDirectory(InodeId dir, DoneStatus done) = 0;

  // Data through the daemon. Only without passthrough.
  virtual void Read(HandleId handle, uint64_t offset, size_t size, Done<ReadResult> done) = 0;
  // `source` runs before the call returns.
  virtual void Write(HandleId handle, uint64_t offset, WriteMode mode, WriteSource* source,
                     Done<size_t> done) = 0;

  virtual void Allocate(HandleId handle, int mode, uint64_t offset, uint64_t length,
                        bool kill_privileges, DoneStatus done) = 0;
  virtual void CopyRange(HandleId from, uint64_t from_offset, HandleId to, uint64_t to_offset,
                         uint64_t length, Done<uint64_t> done) = 0;
  // SEEK_HOLE and SEEK_DATA.
  virtual void Seek(HandleId handle, uint64_t offset, int whence, Done<uint64_t> done) = 0;
  virtual void StatFs(Done<struct statvfs> done) = 0;

  // Record locks and, with `flock`, whole-file locks, which are another space.
  virtual void GetLock(HandleId handle, uint64_t owner, FileLock lock, Done<FileLock> done) = 0;
  // With `wait`, `done` may run much later; Cancel ends the wait with EINTR.
  virtual void SetLock(HandleId handle, uint64_t owner, FileLock lock, bool flock, bool wait,
                       LockRequestId id, DoneStatus done) = 0;
  virtual void CancelLock(LockRequestId id) = 0;

  // For the passthrough registration of an open inode.
  virtual absl::StatusOr<UniqueFd> OpenBacking(BackingId backing) = 0;
};

}  // namespace cfs

#endif  // CFS_SERVER_FILE_SYSTEM_H_
