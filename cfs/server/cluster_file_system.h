// The FileSystem of a node of a cluster: each operation goes to where its inode
// and its data are.
#ifndef CFS_SERVER_CLUSTER_FILE_SYSTEM_H_
#define CFS_SERVER_CLUSTER_FILE_SYSTEM_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/cluster_names.h"
#include "cfs/server/cluster_space.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_client.h"

namespace cfs {

// Guarantees: those of docs/semantics.md for a cluster. What this node owns and
// has is done by its LocalFileSystem without the network. An operation that needs
// a node which does not answer fails with EIO after the client's time-out, and
// holds nothing up meanwhile.
// Thread-safe.
class ClusterFileSystem final : public FileSystem {
 public:
  using MapFn = std::function<ClusterMapPtr()>;

  // All outlive the last operation.
  ClusterFileSystem(LocalFileSystem* local, PeerClient* peers, NodeId self, uint64_t incarnation,
                    MapFn map, ClusterNames* names, ClusterSpace* space);
  ~ClusterFileSystem() override;

  // Begins to look after removed files of other nodes.
  void Start();
  // Ends that. Operations may still be under way.
  void Stop();

  // Tells nodes that have started again what of theirs is open and locked here.
  void OnMap(const ClusterMap* before, const ClusterMap& now);

  // What `cfs stat` shows. Waits for the owner.
  nlohmann::json Describe(InodeId ino);

  bool IsShared() const override { return true; }
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
  bool IsRemote(HandleId handle) override;
  void Flush(HandleId handle, uint64_t owner, DoneStatus done) override;
  void Sync(HandleId handle, bool data_only, DoneStatus done) override;
  void SyncDirectory(InodeId dir, DoneStatus done) override;
  void Read(HandleId handle, uint64_t offset, size_t size, Done<ReadResult> done) override;
  void Write(HandleId handle, uint64_t offset, WriteMode mode, WriteSource* source,
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
  // Where a regular file's data is; kNoBacking: the inode is no regular file.
  struct Place {
    NodeId home{0};
    BackingId backing = kNoBacking;
  };
  // An open file; a HandleId points at a FilePtr.
  struct File;
  using FilePtr = std::shared_ptr<File>;
  struct Creation;
  using CreationPtr = std::shared_ptr<Creation>;

  bool Mine(InodeId ino) const { return local_->Owns(SlotOf(ino)); }
  // The home is not the owner: two nodes are asked.
  bool IsSplit(InodeId ino, const Place& place) const {
    if (place.backing == kNoBacking) return false;
    if (Mine(ino) || place.home == self_) return Mine(ino) != (place.home == self_);
    return place.home != map_()->OwnerOf(SlotOf(ino));
  }
  // Runs `here` if this node owns the inode, otherwise `there`; again, where that
  // has changed meanwhile or a transaction has it.
  template <typename Result, typename Here, typename There>
  void AtOwner(InodeId ino, Here here, There there, absl::AnyInvocable<void(Result)> done,
               std::chrono::steady_clock::time_point since = SteadyClock::now());

  std::optional<absl::StatusOr<PeerAnswer>> AnswerOfBefore(PeerOp op, Slot slot, uint64_t sequence,
                                                           bool again);
  // Asks the owner of `ino`; the result is a T.
  template <typename T, typename... Args>
  void AskOwner(InodeId ino, PeerOp op, size_t result_bytes_max, Done<T> done,
                const Args&... args);
  template <typename... Args>
  void TellOwner(InodeId ino, PeerOp op, DoneStatus done, const Args&... args);
  template <typename T, typename... Args>
  void AskNode(NodeId node, PeerOp op, Done<T> done, const Args&... args);
  // Asks the home of an open file, which may have to be told first that it is.
  template <typename... Args>
  void AskHome(FilePtr file, PeerOp op, Done<PeerAnswer> done, const Args&... args);
  void AskHomeAgain(FilePtr file, std::function<PeerRequest()> request, int attempts,
                    Done<PeerAnswer> done);
  void OpenAtHome(FilePtr file, int flags, bool kill_privileges, bool restore, DoneStatus done);

  // Gets size and times where the data is; for what a name leads to, only if that
  // node is there.
  Done<Attr> Completing(Done<Attr> done, bool of_name = false);
  void Complete(Attr attr, bool of_name, Done<Attr> done);
  void Locate(InodeId ino, Done<Place> done);
  void GetAttrOf(InodeId ino, bool of_name, Done<Attr> done);
  // What is shown of an inode that was lost with a node, and has a name still: enough
  // to remove that.
  Attr LostInode(InodeId ino, uint32_t type);
  // Whether a node's data is lost.
  bool IsGone(NodeId node);
  void LookupAgain(InodeId dir, std::string name, int attempts, Done<Attr> done);
  void SetAttrAtOwner(InodeId ino, const SetAttrRequest& request, Done<Attr> done);
  void SetAttrOfOwner(InodeId ino, const SetAttrRequest& request, Done<Attr> done);
  void SetDataAttr(InodeId ino, const Place& place, SetAttrRequest request, Done<Attr> done);
  void KillPrivileges(InodeId ino, uint32_t what, DoneStatus done);
  void OpenAt(InodeId ino, const Place& place, int flags, bool kill_privileges,
              Done<OpenResult> done,
              std::chrono::steady_clock::time_point since = SteadyClock::now());
  void OpenRemote(FilePtr file, int flags, bool kill_privileges, bool restore,
                  Done<OpenResult> done);
  OpenResult OpenedRemote(const FilePtr& file);
  static FilePtr MakeRemote(InodeId ino, const Place& place, int flags, uint64_t key);
  // New files have their data here, unless little room is left.
  bool StoresFiles();
  void CreateSomewhere(CreationPtr creation);
  void CreateAt(CreationPtr creation, NodeId home);
  void CreateHere(const CreationPtr& creation, Done<CreateResult> done);
  void CreateForeign(const CreationPtr& creation, Done<CreateResult> done);
  void CreateSplit(const CreationPtr& creation, NodeId home, Done<CreateResult> done);
  void CreateAtOwner(const CreationPtr& creation, Done<CreateResult> done);
  void OpenCreated(const CreationPtr& creation, Attr attr, const Place& place, uint64_t key,
                   Done<CreateResult> done);
  void FinishCreate(CreateResult result, bool sync, Done<CreateResult> done);
  void TakeLock(FilePtr file, const LockTable::HeldLock& wanted, bool wait, LockRequestId id,
                DoneStatus done);
  void SetLockHere(FilePtr file, uint64_t owner, const FileLock& lock, bool flock, bool wait,
                   LockRequestId id, DoneStatus done);
  // Until they have been told, or have forgotten it anyway.
  void ReleaseAtHome(const File& file);
  void DropLocksAtOwner(InodeId ino, uint64_t key);
  void AskForLock(const LockTable::HeldLock& wanted, bool wait, uint64_t number, bool reassert,
                  DoneStatus done);
  OpenResult Wrap(const OpenResult& opened, const Place& place, int flags);
  static FilePtr FileOf(HandleId handle) { return *reinterpret_cast<FilePtr*>(handle); }

  // Opens and locks again what this node has open and locked there.
  void Reassert(NodeId node);
  void RunReaper();
  void Reap(const LocalFileSystem::Orphan& orphan);

  LocalFileSystem* const local_;
  PeerClient* const peers_;
  ClusterNames* const names_;
  ClusterSpace* const space_;
  const NodeId self_;
  const uint64_t incarnation_;
  const MapFn map_;
  // Never changes for an inode, as long as data does not move.
  LruCache<InodeId, Place> places_;
  // Types of inodes that were lost, and whose names were looked up.
  LruCache<InodeId, uint32_t> lost_;
  std::atomic<uint64_t> next_key_{1};

  Mutex mutex_;
  // Open here, with the data elsewhere.
  absl::flat_hash_set<FilePtr> remote_ ABSL_GUARDED_BY(mutex_);
  // Owners of record locks, by inode.
  absl::flat_hash_set<std::pair<InodeId, uint64_t>> lock_owners_ ABSL_GUARDED_BY(mutex_);
  // Locks that other nodes have given, by keys of files.
  LockTable given_;
  // Where each waiting lock request waits.
  absl::flat_hash_map<LockRequestId, InodeId> lock_waits_ ABSL_GUARDED_BY(mutex_);

  Mutex reaper_mutex_;
  CondVar reaper_wake_;
  bool stopping_ ABSL_GUARDED_BY(reaper_mutex_) = false;
  Thread reaper_;
};

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_FILE_SYSTEM_H_
