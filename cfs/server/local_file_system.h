// The FileSystem of one node: its shard and its backing files.
#ifndef CFS_SERVER_LOCAL_FILE_SYSTEM_H_
#define CFS_SERVER_LOCAL_FILE_SYSTEM_H_

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cfs/base/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/namespace.h"
#include "cfs/meta/shard.h"
#include "cfs/meta/store.h"
#include "cfs/meta/store_state.h"
#include "cfs/meta/wal_syncer.h"
#include "cfs/server/file_system.h"
#include "cfs/server/lock_table.h"
#include "cfs/server/open_table.h"
#include "cfs/tier/backend.h"
#include "cfs/tier/chunk_store.h"
#include "cfs/tier/io_pool.h"

namespace cfs {

// Bytes of a store that new files may still take before they go to other nodes.
uint64_t RoomForFiles(const struct statvfs& space);

// So much must be free of a store in front of a backend, or who opens a file for writing
// writes through the daemon.
uint64_t DaemonBytes(uint64_t total);

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
    // Other nodes use the shard and the backing files too.
    bool in_cluster = false;
    // New files come to be here: some are kept ready.
    bool stores_files = true;
    // The slots that it owns if the store does not say.
    SlotSet first_owned = SlotSet().set();
    // Simulators have a store of their own, instead of that at `meta_path`, and say
    // when it has lost what was not synced: by another epoch.
    std::function<absl::StatusOr<std::unique_ptr<Store>>()> open_store;
    uint64_t storage_epoch = 0;  // 0: that of the system.
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
  // The mount is gone, and what it had open is closed: the kernel does not always say so.
  void ForgetOpens();
  // For Status: files are read and written by cfs, not passed through.
  void SetDaemonIo(bool daemon_io) { daemon_io_ = daemon_io; }

  // ---- Of the slots.
  bool Owns(Slot slot) const { return shard_->Owns(slot); }
  SlotSet owned() const { return shard_->owned(); }
  // What transactions work on.
  Shard* shard() { return shard_.get(); }
  InodeUses* uses() { return this; }
  // An inode of the slot, never given out before.
  absl::StatusOr<InodeId> ReserveInode(Slot slot);
  // A directory whose inode is in a slot that may be another one's than `dir`.
  void MakeDirectoryIn(Slot slot, const Caller& caller, InodeId dir, absl::string_view name,
                       uint32_t mode, Done<Attr> done);
  // Whether its user.cfs.placement is "local". Of what is no inode it is not.
  absl::StatusOr<bool> PlacesLocally(InodeId dir);
  // Of a directory that has just been made, anywhere.
  Attr AttrOfNewDirectory(InodeId ino, const InodeRecord& record) const;
  // ENOSPC where only what frees space may still write metadata.
  absl::Status RoomToGrow() const;
  // What StatFs says.
  absl::StatusOr<struct statvfs> Space() const;
  // Whether new files are to go here rather than to another node. Cost: none while
  // a lot is free.
  bool HasRoomForFiles() const;

  // ---- Slots on their way from one node to another: for HandOver, in this order.
  // Synchronous; of one hand-over at a time.
  using SlotList = std::vector<Slot>;
  // What the slots have, in pieces.
  absl::Status CopySlots(const SlotList& slots,
                         absl::FunctionRef<absl::Status(const WriteSet&)> send);
  // The slots are nobody's from now on. Some may have to stay, for a transaction is
  // prepared in them: `slots` is what goes.
  void Freeze(SlotList* slots, absl::FunctionRef<bool(Slot)> stays);
  // What has changed since CopySlots began.
  absl::Status CopyTail(absl::FunctionRef<absl::Status(const WriteSet&)> send);
  // Writes down, on the device, that the other has the slots if it says so; files
  // of theirs whose data is here are other nodes' from now on.
  absl::Status BeginGiving(uint64_t number, NodeId taker, const SlotList& slots);
  // It has said so, or it has not and never will.
  absl::Status EndGiving(uint64_t number, const SlotList& slots, bool given);
  // What a process of before had begun to give and not ended.
  struct Giving {
    uint64_t number = 0;
    NodeId taker{0};
    SlotList slots;
  };
  absl::StatusOr<std::vector<Giving>> Givings();
  // The other side. Nothing of slots that are still leaving may be taken.
  bool IsLeaving(Slot slot) const { return leaving_.Has(slot); }
  absl::Status WipeSlots(const SlotList& slots);
  absl::Status TakePiece(WriteSet piece);
  // This node owns the slots, on the device, when it returns. No inode counter of
  // theirs is `inode_end` or more. `before` runs before anybody sees it.
  absl::Status Take(uint64_t number, const SlotList& slots, uint64_t inode_end,
                    absl::FunctionRef<void()> before);
  absl::StatusOr<bool> HasTaken(uint64_t number);
  absl::Status ForgetTaken(uint64_t number);
  uint64_t inode_end() { return state_->inode_end(); }
  absl::Status RaiseInodes(uint64_t first) { return state_->RaiseInodes(first); }
  // This node owns the slots, empty, on the device, when it returns: what they had is
  // lost. Inodes that are made in them have counters of `inode_first` and more.
  absl::Status Adopt(const SlotList& slots, uint64_t inode_first);

  // ---- For the other nodes of a cluster. A file's inode and its data may be on
  // two of them; the operations of FileSystem that need the data REQUIRE here
  // that this node has both.

  // The owner's part of Create, and of CreateUnnamed if `name` is empty: the data
  // is at `home`, which is not this node (EREMOTE).
  absl::StatusOr<Attr> CreateAway(const Caller& caller, InodeId dir, absl::string_view name,
                                  uint32_t mode, NodeId home, const FreshData& data);
  // Inodes without a name, of which somebody has to find out whether they are
  // still open anywhere.
  struct Orphan {
    InodeId ino = kNoInode;
    NodeId home{0};
    BackingId backing = kNoBacking;
    std::chrono::steady_clock::time_point noted{};
  };
  // Those that have been noted for two seconds: somebody who has looked up the name
  // may be about to open it.
  std::vector<Orphan> TakeOrphans();
  void NoteOrphan(Orphan orphan);
  // False if it has got a name, or is gone; otherwise it gets none until
  // EndReaping. `gone`: its home has freed the data, or the home is this node.
  bool BeginReaping(const Orphan& orphan);
  void EndReaping(const Orphan& orphan, bool gone);
  // What GetReply of Shard says.
  absl::StatusOr<InodeId> ReplyOf(Slot slot, const RequestId& request);
  // Removes the reply records for which `drop` says so.
  absl::Status DropReplies(absl::FunctionRef<bool(Slot, const RequestId&)> drop);
  // What is removed and open from now on, and closed, stays until the next start:
  // who has it open goes on.
  void KeepOrphans() { keep_orphans_.store(true, std::memory_order_relaxed); }
  // The WAL is on the device. With `ino`: EIO if there is no such inode (any more),
  // for power loss may have taken what was made and never synced.
  void SyncMeta(DoneStatus done);
  void SyncInode(InodeId ino, DoneStatus done);
  // Another one after power was lost, and what was not synced with it.
  uint64_t storage_epoch() const { return storage_epoch_; }

  // The home's part. A backing file for an inode that a third node is about to ask
  // an owner for, and this node's time. If there comes to be none, RemoveForeign.
  absl::StatusOr<FreshData> MakeForeign();
  // A fresh backing file for an inode of another node: noted in
  // the store, and safe from RemoveForeign, until one of the next three is called.
  absl::StatusOr<FreshFile> ReserveForeign();
  // The inode exists, and is open.
  OpenResult AdoptForeign(const FreshFile& fresh, InodeId ino, int flags);
  // It does not.
  void DiscardForeign(const FreshFile& fresh);
  // Nobody can say: what it would need is kept.
  void LeaveForeign(const FreshFile& fresh);
  // ESTALE if the file is gone. With `restore` it is made again, empty: it was
  // lost with power before it was ever synced.
  void OpenForeign(InodeId ino, BackingId backing, int flags, bool restore,
                   Done<OpenResult> done);
  absl::StatusOr<struct stat> StatForeign(BackingId backing);
  void TruncateForeign(InodeId ino, BackingId backing, uint64_t size, DoneStatus done);
  // Those of its times that the request names.
  absl::Status SetTimesForeign(BackingId backing, const SetAttrRequest& request);
  // The inode has no name any more, and that is synced. False: it is open.
  absl::StatusOr<bool> RemoveForeign(InodeId ino, BackingId backing);

  // For some seconds after a start, or until EndGrace, others say what they had
  // open and locked before: nothing that was removed is freed, and no lock is
  // given to anybody else.
  bool InGrace() const {
    return in_cluster_ && !state_->is_new() &&
           SteadyClock::now().time_since_epoch().count() <
               grace_end_.load(std::memory_order_relaxed);
  }
  // They begin when peers are served.
  void BeginGrace() {
    constexpr auto kGrace = std::chrono::seconds(10);
    grace_end_.store((SteadyClock::now() + kGrace).time_since_epoch().count(),
                     std::memory_order_relaxed);
  }
  void EndGrace() { grace_end_.store(0, std::memory_order_relaxed); }
  // Of the inodes that this node owns.
  LockTable* lock_table() { return &locks_; }
  void DropRegistration(int registration);
  // Reads for a peer; how much, less than `size` only at the end of the file. Unless
  // it may `wait`, an error where a device or a lock would be waited for: whoever has
  // a file's lock may be waiting, in a page fault, for a network thread.
  absl::StatusOr<size_t> ReadInto(HandleId handle, uint64_t offset, char* bytes, size_t size,
                                  bool wait);
  // Writes for a peer if that is sure not to wait: where the store says so (XFS), and
  // only within a page. Otherwise false, and nothing is written.
  bool WriteNow(HandleId handle, uint64_t offset, absl::string_view bytes);
  // Runs what may wait for the device.
  void RunIo(absl::AnyInvocable<void()> task) { io_->Run(std::move(task)); }
  // Another node has written: what our kernel knows of the size is old.
  void ChangedByPeer(InodeId ino) {
    if (cache_ != nullptr) cache_->AttrUnstable(ino);
  }

  // ---- For BackendTier: names and data that are on the backend, and not here.
  class Fetcher {
   public:
    virtual ~Fetcher() = default;
    // Brings it; OK if the operation that needs it may be tried again.
    virtual void Fetch(const BackendNeed& need, DoneStatus done) = 0;
    // Why the inode, or a name of it, could not be brought to the backend; "": it could.
    virtual std::string FlushError(InodeId ino) = 0;
    // Whether a name is to be looked at again before it is used; without a name, what the
    // directory has.
    virtual bool IsDue(InodeId, absl::string_view) { return false; }
    // Looks, and calls `done` whatever came of it.
    virtual void Look(InodeId, absl::string_view, absl::AnyInvocable<void()> done) { done(); }
  };
  // REQUIRES: before the first operation; `fetcher` outlives the last. `looks`: IsDue may be true.
  void SetFetcher(Fetcher* fetcher, bool writes_back, bool looks = false);
  absl::StatusOr<InodeRecord> RecordNow(InodeId ino);
  struct Imported {
    std::string name;
    InodeRecord record;
    BucketRecord bucket;  // Of a directory.
    Xattrs xattrs;
  };
  // The root is the top of the backend. False if it was so before.
  absl::StatusOr<bool> ImportRoot(Imported root);
  // Of a directory that is being imported: removes what an import before has left,
  // adds entries (but names that it has already) and counts them in the bucket, and
  // ends it with that. Nobody sees any of it before. Without a bucket, it was imported;
  // `theirs`: others have made them, and the directory is not ours to bring there.
  absl::Status BeginImport(InodeId dir);
  absl::Status Import(InodeId dir, std::vector<Imported> entries, BucketRecord* bucket,
                      bool theirs = false);
  absl::Status EndImport(InodeId dir, const BucketRecord& bucket);
  // An empty backing file to copy data to. Then one of the next two.
  struct Staging {
    FreshFile fresh;
    UniqueFd fd;
  };
  absl::StatusOr<Staging> BeginStaging();
  void DropStaging(const Staging& staging);
  // The file of the inode is `staged` from now on, whose times and identity are set
  // here; with other xattrs, if there are any. False if its record is not `seen` any
  // more.
  absl::StatusOr<bool> EndStaging(InodeId ino, const InodeRecord& seen, InodeRecord staged,
                                  const Xattrs* xattrs, const Staging& staging);
  // Until it returns true, power loss takes the data back to the backend. Syncs. An
  // error: the data may be lost already, and only Evict helps.
  absl::StatusOr<bool> Harden(InodeId ino);
  // The same for many, with one sync; `soft` has those that are left. An error: none was
  // hardened, and each has to be asked for.
  absl::Status HardenAll(std::vector<InodeId>* soft, std::vector<InodeId>* unsound);
  // EBUSY: it is open, or changed. False if it is not here.
  absl::StatusOr<bool> Evict(InodeId ino);

  // ---- For Evictor: how full the store is, and with what.
  struct Resident {
    InodeId ino = kNoInode;
    InodeId dir = kNoInode;  // Where it is on the backend; kNoInode: nowhere.
    uint64_t bytes = 0;      // Of the device.
    time_t used = 0;         // Not after it was used last.
    bool clean = false;      // As far as that is known.
    bool has_xattrs = false;
    bool open = false;  // Or it was a moment ago.
  };
  // Every file whose data is here; beside what goes on meanwhile.
  absl::Status ListResident(absl::FunctionRef<void(const Resident& file)> visit);
  // Returns when what was evicted and removed before is off the device.
  void FreeDoomed() { ReapSome(/*all=*/true); }
  // What the device has left is seen here; this is of a limit below that. At kShort, who
  // opens a file for writing writes through the daemon, and at kNone waits for room there.
  enum class Room : uint8_t { kPlenty, kShort, kNone };
  void SetRoom(Room room) { room_.store(room, std::memory_order_relaxed); }
  Room room() const { return room_.load(std::memory_order_relaxed); }
  // The kernel knows of all names that were changed by others.
  bool NamesTold() { return cache_ == nullptr || cache_->NamesTold(); }
  // Of files that were there already.
  uint64_t opens() const { return opens_.load(std::memory_order_relaxed); }
  // What an xattr says of an inode that is, or is to be, in the directory: its own, or that
  // of the nearest directory above; "" if none has it. `known` is what was found before in
  // the same look. Without locks: the tree may change meanwhile.
  using KnownPolicies = absl::flat_hash_map<InodeId, std::string>;
  absl::StatusOr<std::string> PolicyOf(InodeId ino, InodeId dir, absl::string_view xattr,
                                       KnownPolicies* known);
  // Whether user.cfs.pin keeps the copy of the file here.
  absl::StatusOr<bool> IsPinned(InodeId ino);

  // ---- For Flusher: what is not on the backend as it is here. Whoever changes the
  // backend says so afterwards, and nobody else does.
  struct DirtyPlace {
    InodeId dir = kNoInode;
    std::string name;
    DirtyName mark;
    // What it is here, as far as that is on the device.
    InodeId wanted = kNoInode;
  };
  struct DirtyInode {
    InodeId ino = kNoInode;
    uint64_t version = 0;  // Of the last change: ns since the epoch.
  };
  struct Dirty {
    std::vector<DirtyPlace> names;
    std::vector<DirtyInode> inodes;
    std::vector<InodeId> pending;
  };
  absl::StatusOr<Dirty> ListDirty();
  // Rises with each change.
  uint64_t dirty_version() const { return shard_->dirty_version(); }
  uint64_t NextDirtyVersion() { return shard_->NextDirtyVersion(); }
  bool IsDirty(InodeId ino);
  // Not if it is removed.
  absl::Status NoteDirty(InodeId ino);
  // kNoInode: there is no such name.
  absl::StatusOr<InodeId> NameNow(InodeId dir, absl::string_view name);
  // The names on the backend of an object that has, or had, several.
  absl::StatusOr<BackendLinks> LinksByNumber(uint64_t number);
  absl::StatusOr<BackendLinks> LinksOf(uint64_t number, InodeId ino);
  absl::Status ChangeLinks(uint64_t number, InodeId ino,
                           const std::optional<BackendLinks::Place>& gone,
                           const std::optional<BackendLinks::Place>& added);
  // Of a directory that was imported: what has come to be there since. Names that are here
  // stay as they are.
  absl::Status AddImported(InodeId dir, std::vector<Imported> entries);
  // What the backend has there, or is about to.
  absl::Status NoteName(InodeId dir, absl::string_view name, const DirtyName& mark);
  // The name is dirty no longer, unless the backend has something else there.
  absl::Status EndName(InodeId dir, absl::string_view name);
  // Nothing: no object is its own (any more), and it needs one.
  absl::Status SetIdentity(InodeId ino, const std::optional<BackendIdentity>& identity);
  // Its object, which is there as `stamp` says, is in another place.
  absl::Status NotePlace(InodeId ino, InodeId dir, absl::string_view name,
                         const BackendStamp& stamp);
  // All of an inode, at one moment.
  struct Outgoing {
    InodeRecord record;      // As the backing file says.
    timespec mtime{};
    Xattrs xattrs;
    uint64_t version = 0;    // 0: it is not dirty.
    uint64_t pending = 0;    // The number of the object that was being put in its place.
    bool data = false;       // What is in the file is not on the backend.
    bool has_writer = false;
    bool soft = false;  // EndInodeSoftly is going to say that it is clean.
    UniqueFd fd;             // If `data`.
    timespec backing_ctime{};
  };
  absl::StatusOr<Outgoing> TakeOut(InodeId ino);
  struct Pending {
    InodeId ino = kNoInode;
    uint64_t number = 0;
  };
  absl::Status NoteNames(const std::vector<const DirtyPlace*>& places);
  absl::Status NotePending(const std::vector<Pending>& pending);
  absl::Status ForgetPending(InodeId ino);
  // 0: none. Also of what has been removed since.
  absl::StatusOr<uint64_t> PendingOf(InodeId ino);
  // The object has all that was taken; `identity` says how it is now.
  absl::Status PutOut(InodeId ino, const Outgoing& taken, BackendIdentity identity);
  // The inode is dirty no longer, unless it has changed since (EAGAIN) or has a writer
  // (EBUSY).
  absl::Status EndInode(InodeId ino, uint64_t version);
  // The same, of what was taken with `backing_ctime`, and whose data need not be on the device
  // here: it IsSoft from then on.
  absl::Status EndInodeSoftly(InodeId ino, uint64_t version, timespec backing_ctime);
  // It IsSoft no longer: the backend is about to lose what it has of it.
  absl::Status MakeHard(InodeId ino);
  // Its data is on the device. An error is known for ever.
  absl::Status SyncData(InodeId ino);
  // EIO if some of what `out.fd` was read from has been lost on the way to the device.
  absl::Status CheckWritten(InodeId ino, const Outgoing& out);
  // A directory that was removed is not on the backend any more either.
  absl::Status ForgetRemoved(InodeId dir);
  // The name is another one's on the backend, and stays that: what has it here gets the
  // name `aside` instead (nothing, if there is nothing any more).
  absl::Status MoveAside(InodeId dir, absl::string_view name, absl::string_view aside,
                         Imported theirs);
  // What is said of all that is here is on the device.
  absl::Status SyncMetaNow();
  absl::StatusOr<bool> IsNameDirty(InodeId dir, absl::string_view name);

  // ---- For BackendRefresh: what others have changed on the backend. What is dirty stays.
  // A name, and all that is known of what it stands for, at one moment.
  struct Known {
    InodeId dir = kNoInode;
    std::string name;
    bool name_dirty = false;
    InodeId ino = kNoInode;  // kNoInode: there is no such name.
    bool dirty = false;      // The inode.
    bool lost = false;       // It has no inode.
    InodeRecord record;
    timespec mtime{};        // Of a directory.
  };
  absl::StatusOr<Known> KnownNow(InodeId dir, absl::string_view name);
  // Of a directory without one: the root.
  absl::StatusOr<Known> TopNow(InodeId ino);
  // Some of the names in an imported directory; `from` says where to go on, and is empty at
  // the end.
  absl::StatusOr<std::vector<Known>> ListKnown(InodeId dir, std::string* from);
  // Of the next three, EAGAIN: it is not what was known any more, or is dirty.
  // The name has gone there; `instead`, if not null, has it now. The object has as many
  // names as `links` says, if that is known. ENOTEMPTY as Namespace::Drop.
  absl::Status DropName(const Known& known, const std::optional<uint32_t>& links,
                        Imported* instead);
  // What the name stands for is `object` there. EBUSY: its data is another one's by now,
  // and somebody has it open.
  absl::Status TakeOver(const Known& known, const BackendObject& object);
  // The directory is not there any more, but what is in it, or said of it, is not there yet.
  absl::Status KeepDirectory(const Known& known);
  // Whether somebody has the file open, for all that is known.
  bool IsOpen(InodeId ino);
  // Says to the kernel that the name was changed, and the inode that had it. `on_use`: an
  // operation waits, and names are kept for a time only.
  void SayChanged(InodeId dir, absl::string_view name, InodeId ino, bool on_use);

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
  // What a HandleId points at.
  struct OpenFile {
    InodeId ino;
    OpenInode* inode;  // Lives as long as the handle: it counts as an open.
    BackingId backing;
    int flags;
    // It is not passed through because there is little room: writes take their time.
    bool slow = false;
    // The descriptor of reads and writes that cfs does, -1 before the first one and
    // while too many are kept.
    std::atomic<int> kept{-1};
    bool writes() const { return (flags & O_ACCMODE) != O_RDONLY; }
  };
  // A descriptor of an open file: the kept one, or one for this request.
  class Descriptor;

  LocalFileSystem(const Options& options, Clock* clock, std::unique_ptr<Store> store);

  absl::Status Recover();
  InodeUse UseOf(InodeId ino, const InodeRecord& record) override;
  void OnRemoved(const Removed& removed) override;
  bool MayLink(InodeId ino) override;
  static OpenFile* FileOf(HandleId handle) { return reinterpret_cast<OpenFile*>(handle); }
  static HandleId HandleOf(OpenFile* file) { return HandleId(reinterpret_cast<uint64_t>(file)); }

  // The functions below need the inode's stripe lock.
  absl::StatusOr<Attr> AttrOf(InodeId ino, InodeRecord record);
  Attr AttrOfDirectory(InodeId ino, const InodeRecord& record, const BucketRecord& bucket) const;
  absl::StatusOr<Attr> AttrFromBacking(InodeId ino, InodeRecord record, const OpenInode* open);
  // Size and times as the backing file has them. Makes the file again where
  // power loss took it before it was ever synced.
  absl::Status MergeBacking(InodeRecord* record) const;
  // The file has a writer from now on. True in `fresh` if it had none.
  absl::Status BeginWriting(InodeId ino, OpenInode* inode, bool* fresh);
  absl::Status KillPrivileges(InodeId ino, InodeRecord* record, Shard::Update* update);
  absl::StatusOr<bool> ReapOrphan(const Orphan& orphan);
  absl::Status CheckForeign(BackingId backing);
  // What is still answered for an inode that has gone.
  void KeepGhost(InodeId ino, InodeRecord ghost);
  void EndGhost(InodeId ino);
  void EndOldGhosts();
  absl::Status EraseOrphan(InodeId ino, const InodeRecord& record, bool marked);
  // Whether nobody has written the file since it was equal to the backend's.
  static bool IsClean(const InodeRecord& record, const struct stat& st);
  // The record as the store has it, beside the cache: for inodes that are not locked.
  absl::StatusOr<InodeRecord> ReadInode(InodeId ino) const;
  // EROFS in front of a backend that is only read.
  absl::Status MayChange() const {
    return fetcher_ == nullptr || shard_->writes_back() ? absl::OkStatus() : PosixError(EROFS);
  }
  // As RoomToGrow; where something can go to the backend, what is needed for that.
  absl::Status MayGrow() const;
  // ENOSPC that passes when something goes to the backend.
  bool IsFull(const absl::Status& status) const {
    return fetcher_ != nullptr && ErrnoOf(status) == ENOSPC;
  }
  // Who writes is to wait first.
  bool IsAtLimit() const { return fetcher_ != nullptr && room() == Room::kNone; }
  // Of who opens a file for writing.
  bool WritesThroughDaemon() const;
  void NoteUse(InodeId ino) { used_.Put(ino, clock_->Now().tv_sec); }
  // The rest of a Write; one that is done by the I/O pool; and one that has to wait for room
  // first.
  void EndWrite(HandleId handle, WriteMode mode, size_t written, Done<size_t> done);
  void WriteSlowly(HandleId handle, uint64_t offset, WriteMode mode,
                   std::shared_ptr<char[]> bytes, size_t size, Done<size_t> done);
  void WriteWithRoom(HandleId handle, uint64_t offset, WriteMode mode,
                     std::shared_ptr<char[]> bytes, size_t size, Done<size_t> done);
  absl::StatusOr<std::string> OwnPolicy(InodeId ino, absl::string_view xattr);
  // Whether power loss would take it back to what the backend has, which is the same.
  bool IsSoft(InodeId ino);
  // Before a file is written that IsSoft: what was written and synced must stay.
  // Which identity it had; none if there was nothing to do.
  absl::StatusOr<std::string> HardenForWriting(InodeId ino);
  absl::Status SyncStaged(InodeId ino, BackingId backing);
  // The data is on the device as it was with the record `synced`. False: another one is not.
  absl::StatusOr<bool> EndSoft(InodeId ino, const InodeRecord& synced);
  absl::Status CheckImporting(InodeId dir);
  // While it lives, the copy is not evicted.
  class Kept {
   public:
    Kept(LocalFileSystem* fs, InodeId ino) : fs_(fs), ino_(ino) {
      if (fs_->fetcher_ == nullptr) return;
      MutexLock lock(&fs_->unsound_mutex_);
      ++fs_->kept_here_[ino_];
    }
    ~Kept() {
      if (fs_->fetcher_ == nullptr) return;
      MutexLock lock(&fs_->unsound_mutex_);
      const auto it = fs_->kept_here_.find(ino_);
      if (--it->second == 0) fs_->kept_here_.erase(it);
    }
    Kept(const Kept&) = delete;
    Kept& operator=(const Kept&) = delete;

   private:
    LocalFileSystem* const fs_;
    const InodeId ino_;
  };
  // For all that is known; needs the inode's stripe lock.
  bool HasWriterNow(OpenInode* open) const;
  // After power loss: what was staged in may not have come to the device.
  absl::Status Unstage(InodeId ino, BackingId backing);
  // The same of a dirty file that is not here at all: it never was on the device, and was just
  // being flushed.
  absl::StatusOr<bool> TakeBackLost(InodeId ino);
  // Those of the names in `links`, and where the object is found, that are the inode's here.
  absl::StatusOr<std::vector<BackendLinks::Place>> PlacesHere(InodeId ino,
                                                              const BackendIdentity& identity);
  // Whether a name that is not agreed with the backend is, or was, the inode's.
  absl::StatusOr<bool> IsAnyNameDirty(InodeId ino);
  absl::StatusOr<uint32_t> LinksToTakeOver(InodeId ino, const InodeRecord& record,
                                           const BackendIdentity& identity, uint32_t there);
  // Runs `again` when the backend has brought what `status` says is needed.
  template <typename DoneT>
  void FetchFirst(const absl::Status& status, DoneT done, absl::AnyInvocable<void(DoneT)> again);
  bool NeedsFetch(const absl::Status& status) const {
    return fetcher_ != nullptr && BackendNeedOf(status).has_value();
  }
  void QueueSettle(InodeId ino, OpenInode* inode);
  bool ProbeLocked(InodeId ino);
  void Unpin(InodeId ino, OpenInode* inode, bool writer);
  // Whether reading the file changes its access time.
  bool AccessTimeMoves(const InodeRecord& record) const;

  // Where the inode is to be looked at again before it is used; kNoInode: not now.
  BackendLinks::Place PlaceDue(InodeId ino);
  absl::StatusOr<Attr> GetAttrNow(InodeId ino);
  void LookupAgain(InodeId dir, absl::string_view name, Done<Attr> done);
  void ListAgain(InodeId dir, uint64_t offset, size_t bytes_max, size_t entry_bytes,
                 bool attributes, Done<std::vector<ListedEntry>> done);
  absl::StatusOr<Attr> LookupNow(InodeId dir, absl::string_view name);
  absl::StatusOr<Attr> SetAttrNow(InodeId ino, const SetAttrRequest& request);
  absl::StatusOr<Attr> ApplyAttr(InodeId ino, const SetAttrRequest& request, bool size_changed);
  absl::StatusOr<OpenResult> OpenNow(InodeId ino, int flags, bool kill_privileges);
  absl::StatusOr<CreateResult> CreateNow(const Caller& caller, InodeId dir,
                                         absl::string_view name, uint32_t mode, int flags,
                                         bool unnamed);
  void MakeNamed(const Caller& caller, InodeId dir, absl::string_view name, InodeRecord record,
                 Slot slot, Done<Attr> done);
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
  void EndReservation(const FreshFile& fresh);
  absl::Status LoadOwned(const SlotSet& first);
  // Commits the update with what is owned from now on. One after the other: slots
  // come and go at the same time.
  absl::Status CommitOwned(const SlotList& slots, bool owned, Shard::Update* update);
  absl::Status ScanSlots(Family family, const SlotList& slots,
                         absl::FunctionRef<bool(absl::string_view key, absl::string_view value)> visit);
  // Inodes of the slots whose data is here.
  absl::StatusOr<std::vector<std::pair<InodeId, BackingId>>> FilesOf(const SlotList& slots);
  // Answers an operation that may have freed space, after it is free where
  // space is short.
  void DoneFreeing(const Removed& removed, DoneStatus done);
  // `done` after the WAL sync if `flags` ask for one, else now.
  void DoneDurably(int flags, absl::AnyInvocable<void(absl::Status)> done);
  // Whether `size` bytes of the file can be had without the device.
  bool IsResident(int fd, uint64_t offset, size_t size) const;
  template <typename T>
  void SlowOrNow(bool slow, Done<T> done, absl::AnyInvocable<absl::StatusOr<T>()> work);

  void RunBackground();
  void SettleSome();
  // REQUIRES: at most StripeLocks::Hold::kMax inodes.
  void SettleBatch(absl::Span<const InodeId> batch, uint64_t settled);
  void ReapSome(bool all);

  const NodeId node_;
  const bool in_cluster_;
  const bool stores_files_;
  uint64_t storage_epoch_ = 0;
  // Relaxed: set before what it matters for is closed, by the same thread.
  std::atomic<bool> keep_orphans_{false};
  // When, on the steady clock; relaxed: a little later is fine.
  std::atomic<int64_t> grace_end_{std::numeric_limits<int64_t>::max()};
  Clock* const clock_;
  KernelCache* cache_ = nullptr;
  Fetcher* fetcher_ = nullptr;
  bool looks_ = false;
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
  // Backing files, and records of all but regular files, stay until Forget. In a
  // cluster, where those who forget need not say so, ghosts stay for an hour, and
  // those of regular files have no backing file. The count spares Forget the lock.
  std::atomic<size_t> ghost_count_{0};
  Mutex ghost_mutex_;
  absl::flat_hash_map<InodeId, InodeRecord> ghosts_ ABSL_GUARDED_BY(ghost_mutex_);
  // In a cluster, oldest first.
  std::deque<std::pair<std::chrono::steady_clock::time_point, InodeId>> ghost_ages_
      ABSL_GUARDED_BY(ghost_mutex_);

  Mutex background_mutex_;
  CondVar background_wake_;
  bool background_waits_ ABSL_GUARDED_BY(background_mutex_) = false;  // For something to settle.
  std::deque<InodeId> settle_ ABSL_GUARDED_BY(background_mutex_);
  // Waiting for their number to be settled, and for their writer to go.
  std::deque<InodeId> settle_later_ ABSL_GUARDED_BY(background_mutex_);
  std::deque<InodeId> settle_busy_ ABSL_GUARDED_BY(background_mutex_);
  std::vector<BackingId> doomed_ ABSL_GUARDED_BY(background_mutex_);
  std::vector<Orphan> orphans_ ABSL_GUARDED_BY(background_mutex_);
  absl::flat_hash_set<InodeId> reaping_ ABSL_GUARDED_BY(background_mutex_);
  bool stopping_ ABSL_GUARDED_BY(background_mutex_) = false;
  Thread background_;

  // What the store says is owned. It has the slots that are on their way to another
  // node; what serves (Shard::Owns) has not.
  Mutex owned_mutex_;
  SlotSet stored_owned_ ABSL_GUARDED_BY(owned_mutex_);
  // On their way to another node, and what they leave behind not wiped yet.
  AtomicSlotSet leaving_;

  // Backing files between ReserveForeign and what ends it.
  Mutex reserved_mutex_;
  absl::flat_hash_set<BackingId> reserved_ ABSL_GUARDED_BY(reserved_mutex_);
  // Relaxed: a hint, refreshed by the background thread.
  std::atomic<bool> space_is_short_{false};

  // Relaxed: hints of the evictor.
  std::atomic<Room> room_{Room::kPlenty};
  std::atomic<uint64_t> opens_{0};
  // When files were opened, since the start; of those that were longest ago, nothing.
  LruCache<InodeId, time_t> used_;

  // Objects of the backend with several names get one inode. Taken before a stripe.
  Mutex import_links_mutex_;
  // Copies that could not be written to the device; the kernel says so once.
  Mutex unsound_mutex_;
  absl::flat_hash_set<InodeId> unsound_ ABSL_GUARDED_BY(unsound_mutex_);
  // See Kept.
  absl::flat_hash_map<InodeId, int> kept_here_ ABSL_GUARDED_BY(unsound_mutex_);
  // Held while backing files are removed. Before a stripe.
  Mutex reap_mutex_;
};

}  // namespace cfs

#endif  // CFS_SERVER_LOCAL_FILE_SYSTEM_H_
