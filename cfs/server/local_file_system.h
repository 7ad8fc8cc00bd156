// The FileSystem of one node: its shard and its backing files.
#ifndef CFS_SERVER_LOCAL_FILE_SYSTEM_H_
#define CFS_SERVER_LOCAL_FILE_SYSTEM_H_

#include <atomic>
#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cfs/base/clock.h"
#include "cfs/base/mutex.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/shard.h"
#include "cfs/meta/store.h"
#include "cfs/meta/store_state.h"
#include "cfs/meta/wal_syncer.h"
#include "cfs/server/file_system.h"
#include "cfs/server/lock_table.h"
#include "cfs/server/open_table.h"
#include "cfs/tier/chunk_store.h"
#include "cfs/tier/io_pool.h"

namespace cfs {

// Guarantees: those of docs/semantics.md. Thread-safe.
//
// Order of locks: directory moves (Namespace), then stripe locks, then the
// leaf mutexes of the parts. The stripe lock of an inode guards its record, its
// OpenInode and its place among the ghosts.
class LocalFileSystem final : public FileSystem, private InodeUses {
 public:
  struct Options {
    std::string meta_path;
    std::string data_path;
    NodeId node{0};
    // Data goes through the daemon, which then keeps descriptors of open files.
    bool daemon_io = false;
  };

  // Opens the store and recovers: removes backing files that no record names,
  // collects orphans, and finds files that a ghost may still write. `clock`
  // outlives the file system.
  static absl::StatusOr<std::unique_ptr<LocalFileSystem>> Open(const Options& options,
                                                               Clock* clock);
  // Ends in good order if Close was called.
  ~LocalFileSystem() override;

  // REQUIRES: before the first operation; `cache` outlives the last.
  void SetKernelCache(KernelCache* cache) { cache_ = cache; }
  // Starts the background work. `registrar` prepares fresh backing files (see
  // ChunkStore).
  void Start(ChunkStore::Registrar registrar);
  // No operation is outstanding and none follows: settles what is open, removes
  // what is doomed, syncs, and marks the store as ended in good order.
  absl::Status Close();
  // No operation begins any more: ends what waits (locks, with EINTR) and returns
  // when every completion has run.
  void Drain();
  // Handles opened from now on keep descriptors for I/O through the daemon.
  void SetDaemonIo(bool daemon_io) { daemon_io_ = daemon_io; }

  nlohmann::json Status();
  nlohmann::json ChunkStatus();
  nlohmann::json Describe(InodeId ino);

  void Lookup(InodeId dir, absl::string_view name, Done<Attr> done) override;
  void Forget(InodeId ino) override;
  void GetAttr(InodeId ino, Done<Attr> done) override;
  void SetAttr(InodeId ino, const SetAttrRequest& request, Done<Attr> done) override;
  void ReadLink(InodeId ino, Done<std::string> done) override;
  void MakeNode(const Caller& caller, InodeId dir, absl::string_view name, uint32_t mode,
                uint64_t rdev, Done<Attr> done) override;
  void MakeDirectory(const Caller& caller, InodeId dir, absl::string_view name, uint32_t mode,
                     Done<Attr> done) override;
  void MakeSymlink(const Caller& caller, InodeId dir, absl::string_view name,
                   absl::string_view target, Done<Attr> done) override;
  void Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done) override;
  void Unlink(InodeId dir, absl::string_view name, DoneStatus done) override;
  void RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done) override;
  void Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
              absl::string_view to_name, uint32_t flags, DoneStatus done) override;
  void List(InodeId dir, uint64_t offset, size_t bytes_max, size_t entry_bytes, bool attributes,
            Done<std::vector<ListedEntry>> done) override;
  void GetXattr(InodeId ino, absl::string_view name, Done<std::string> done) override;
  void ListXattrs(InodeId ino, Done<std::vector<std::string>> done) override;
  void SetXattr(InodeId ino, absl::string_view name, absl::string_view value, int flags,
                bool clear_setgid, DoneStatus done) override;
  void RemoveXattr(InodeId ino, absl::string_view name, DoneStatus done) override;
  void Open(InodeId ino, int flags, bool kill_privileges, Done<OpenResult> done) override;
  void Create(const Caller& caller, InodeId dir, absl::string_view name, uint32_t mode, int flags,
              Done<CreateResult> done) override;
  void CreateUnnamed(const Caller& caller, InodeId dir, uint32_t mode, int flags,
                     Done<CreateResult> done) override;
  void Release(HandleId handle) override;
  void Flush(HandleId handle, uint64_t owner, DoneStatus done) override;
  void Sync(HandleId handle, bool data_only, DoneStatus done) override;
  void SyncDirectory(InodeId dir, DoneStatus done) override;
  void Read(HandleId handle, uint64_t offset, size_t size, Done<ReadResult> done) override;
  void Write(HandleId handle, uint64_t offset, bool kill_privileges, WriteSource source,
             Done<size_t> done) override;
  void Allocate(HandleId handle, int mode, uint64_t offset, uint64_t length, bool kill_privileges,
                DoneStatus done) override;
  void CopyRange(HandleId from, uint64_t from_offset, HandleId to, uint64_t to_offset,
                 uint64_t length, Done<uint64_t> done) override;
  void Seek(HandleId handle, uint64_t offset, int whence, Done<uint64_t> done) override;
  void StatFs(Done<struct statvfs> done) override;
  void GetLock(HandleId handle, uint64_t owner, FileLock lock, Done<FileLock> done) override;
  void SetLock(HandleId handle, uint64_t owner, FileLock lock, bool flock, bool wait,
               LockRequestId id, DoneStatus done) override;
  void CancelLock(LockRequestId id) override;
  absl::StatusOr<UniqueFd> OpenBacking(BackingId backing) override;

 private:
  // What a HandleId points at.
  struct OpenFile {
    InodeId ino;
    OpenInode* inode;  // Lives as long as the handle: it counts as an open.
    BackingId backing;
    int flags;
    UniqueFd fd;  // Only with daemon I/O, and only while descriptors last.
    bool writes() const { return (flags & O_ACCMODE) != O_RDONLY; }
  };
  // A descriptor of an open file: the kept one, or one for this request.
  class Descriptor;

  LocalFileSystem(const Options& options, Clock* clock, std::unique_ptr<Store> store);

  absl::Status Recover();
  InodeUse UseOf(InodeId ino) override;
  void OnRemoved(const Removed& removed) override;
  static OpenFile* FileOf(HandleId handle) { return reinterpret_cast<OpenFile*>(handle); }

  // The functions below need the inode's stripe lock.
  absl::StatusOr<Attr> AttrOf(InodeId ino, InodeRecord record);
  absl::StatusOr<Attr> AttrFromBacking(InodeId ino, InodeRecord record, const OpenInode* open);
  // Size and times as the backing file has them. Makes the file again where
  // power loss took it before it was ever synced.
  absl::Status MergeBacking(InodeRecord* record) const;
  // The file has a writer from now on. True in `fresh` if it had none.
  absl::Status BeginWriting(InodeId ino, OpenInode* inode, bool* fresh);
  absl::Status KillPrivileges(InodeId ino, InodeRecord* record, Shard::Update* update);
  absl::Status EraseOrphan(InodeId ino, const InodeRecord& record, bool marked);
  void QueueSettle(InodeId ino, OpenInode* inode);
  bool ProbeLocked(InodeId ino);
  void Unpin(InodeId ino, OpenInode* inode, bool writer);
  // Whether reading the file changes its access time.
  bool AccessTimeMoves(const InodeRecord& record) const;

  absl::StatusOr<Attr> GetAttrNow(InodeId ino);
  absl::StatusOr<Attr> LookupNow(InodeId dir, absl::string_view name);
  absl::StatusOr<Attr> SetAttrNow(InodeId ino, const SetAttrRequest& request);
  absl::StatusOr<Attr> ApplyAttr(InodeId ino, const SetAttrRequest& request, bool size_changed);
  absl::StatusOr<OpenResult> OpenNow(InodeId ino, int flags, bool kill_privileges);
  absl::StatusOr<CreateResult> CreateNow(const Caller& caller, InodeId dir,
                                         absl::string_view name, uint32_t mode, int flags,
                                         bool unnamed);
  absl::StatusOr<Attr> MakeInodeNow(const Caller& caller, InodeId dir, absl::string_view name,
                                    InodeRecord record, Slot slot);
  // Removes a pool file that no record came to name.
  void Discard(const FreshFile& fresh);
  HandleId NewHandle(InodeId ino, OpenInode* inode, int flags);
  absl::Status Truncate(BackingId backing, uint64_t size) const;
  Attr AttrFromRecord(InodeId ino, const InodeRecord& record) const;
  // The record of a known inode, also of a ghost: ESTALE if there is none, so
  // that the kernel looks the name up again. Needs the stripe lock.
  absl::StatusOr<InodeRecord> RecordOf(InodeId ino, bool* ghost);
  void DropRegistration(int registration);
  // ENOSPC where only what frees space may still write metadata.
  absl::Status RoomToGrow() const;
  // Answers an operation that may have freed space, after it is free where
  // space is short.
  void DoneFreeing(const Removed& removed, DoneStatus done);
  // `done` after the WAL sync if `flags` ask for one, else now.
  void DoneDurably(int flags, absl::AnyInvocable<void(absl::Status)> done);
  // Whether `size` bytes of the file can be had without the device.
  static bool IsResident(int fd, uint64_t offset, size_t size);
  template <typename T>
  void SlowOrNow(bool slow, Done<T> done, absl::AnyInvocable<absl::StatusOr<T>()> work);

  void RunBackground();
  void SettleSome();
  // REQUIRES: at most StripeLocks::Hold::kMax inodes.
  void SettleBatch(absl::Span<const InodeId> batch, uint64_t settled);
  void ReapSome(bool all);

  const NodeId node_;
  Clock* const clock_;
  KernelCache* cache_ = nullptr;
  std::atomic<bool> daemon_io_;
  const bool unsafe_sync_;  // Negative control of the crash tests.
  std::atomic<int> kept_descriptors_{0};

  std::unique_ptr<Store> store_;
  std::unique_ptr<WalSyncer> syncer_;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<StoreStateKeeper> state_;
  std::unique_ptr<ChunkStore> chunks_;
  std::unique_ptr<Namespace> names_;
  std::unique_ptr<IoPool> io_;
  OpenTable open_;
  LockTable locks_;
  uint32_t attr_epoch_ = 0;
  bool relatime_ = false;  // How the store's file system keeps access times.

  // Inodes without a name that the kernel still knows: their last attributes.
  // Backing files, and records of all but regular files, stay until Forget. The
  // count spares Forget the lock.
  std::atomic<size_t> ghost_count_{0};
  Mutex ghost_mutex_;
  absl::flat_hash_map<InodeId, InodeRecord> ghosts_ ABSL_GUARDED_BY(ghost_mutex_);

  Mutex background_mutex_;
  CondVar background_wake_;
  bool background_waits_ ABSL_GUARDED_BY(background_mutex_) = false;  // For something to settle.
  std::deque<InodeId> settle_ ABSL_GUARDED_BY(background_mutex_);
  // Waiting for their number to be settled, and for their writer to go.
  std::deque<InodeId> settle_later_ ABSL_GUARDED_BY(background_mutex_);
  std::deque<InodeId> settle_busy_ ABSL_GUARDED_BY(background_mutex_);
  std::vector<BackingId> doomed_ ABSL_GUARDED_BY(background_mutex_);
  bool stopping_ ABSL_GUARDED_BY(background_mutex_) = false;
  std::thread background_;
  // Relaxed: a hint, refreshed by the background thread.
  std::atomic<bool> space_is_short_{false};
};

}  // namespace cfs

#endif  // CFS_SERVER_LOCAL_FILE_SYSTEM_H_
