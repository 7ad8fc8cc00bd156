#include "cfs/server/local_file_system.h"

#include <dirent.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/request_scope.h"
#include "cfs/meta/snapshot.h"
#include "cfs/meta/xattr.h"
#include "cfs/ring/hash.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

constexpr uint32_t kBlockBytes = 4096;
constexpr uint64_t kDirectoryBytes = 4096;

timespec Later(const timespec& a, const timespec& b) { return a < b ? b : a; }

// Of the boot and of the mount of the store: what was written under both is still
// in the page cache, or on the device.
uint64_t StorageEpoch(const std::string& path) {
  std::string bytes;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> bytes;
  struct statx st {};
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000U
#endif
  if (statx(AT_FDCWD, path.c_str(), 0, STATX_MNT_ID_UNIQUE, &st) == 0) {
    AppendLittle(&bytes, uint64_t{st.stx_mnt_id});
  }
  return Hash64(bytes);
}

bool UnsafeSyncAskedFor() {
#ifdef CFS_FAULT_POINTS
  return getenv("CFS_TEST_UNSAFE_FSYNC") != nullptr;
#else
  return false;
#endif
}

}  // namespace

LocalFileSystem::LocalFileSystem(const Options& options, Clock* clock,
                                 std::unique_ptr<Store> store)
    : node_(options.node),
      in_cluster_(options.in_cluster),
      stores_files_(options.stores_files),
      clock_(clock),
      daemon_io_(options.daemon_io),
      unsafe_sync_(UnsafeSyncAskedFor()),
      store_(std::move(store)),
      syncer_(std::make_unique<WalSyncer>(store_.get())),
      shard_(std::make_unique<Shard>(store_.get(), syncer_.get())),
      names_(std::make_unique<Namespace>(shard_.get(), clock, static_cast<InodeUses*>(this),
                                         /*alone=*/!options.in_cluster)),
      io_(std::make_unique<IoPool>(kIoThreads)),
      used_(kUsedFilesMax) {}

LocalFileSystem::~LocalFileSystem() {
  if (background_.joinable()) {
    {
      MutexLock lock(&background_mutex_);
      stopping_ = true;
      background_wake_.Signal();
    }
    background_.join();
  }
  io_.reset();
  chunks_.reset();
  syncer_.reset();
}

absl::StatusOr<std::unique_ptr<LocalFileSystem>> LocalFileSystem::Open(const Options& options,
                                                                       Clock* clock) {
  CFS_ASSIGN_OR_RETURN(std::unique_ptr<Store> store, options.open_store
                                                         ? options.open_store()
                                                         : OpenRocksdbStore(options.meta_path));
  std::unique_ptr<LocalFileSystem> fs(new LocalFileSystem(options, clock, std::move(store)));
  CFS_ASSIGN_OR_RETURN(fs->state_, StoreStateKeeper::Open(fs->shard_.get()));
  fs->attr_epoch_ = fs->state_->attr_epoch();
  StoreStateKeeper* const state = fs->state_.get();
  CFS_ASSIGN_OR_RETURN(fs->chunks_, ChunkStore::Open(options.data_path,
                                                     [state] { return state->Next(); }));
  CFS_ASSIGN_OR_RETURN(const struct statvfs space, fs->chunks_->Space());
  fs->relatime_ = (space.f_flag & (ST_RELATIME | ST_NOATIME)) != 0;
  fs->storage_epoch_ =
      options.storage_epoch != 0 ? options.storage_epoch : StorageEpoch(options.data_path);
  if (fs->in_cluster_) CFS_RETURN_IF_ERROR(fs->LoadOwned(options.first_owned));
  CFS_RETURN_IF_ERROR(fs->Recover());
  return fs;
}

absl::Status LocalFileSystem::LoadOwned(const SlotSet& first) {
  std::string value;
  const absl::Status found = store_->Get(Family::kLocal, kOwnedSlotsKey, &value);
  if (found.ok()) {
    CFS_ASSIGN_OR_RETURN(const SlotSet owned, DecodeSlots(value));
    {
      MutexLock lock(&owned_mutex_);
      stored_owned_ = owned;
    }
    shard_->SetOwned(owned);
    // Whose they are is to be asked first.
    CFS_ASSIGN_OR_RETURN(const std::vector<Giving> givings, Givings());
    for (const Giving& giving : givings) {
      for (const Slot slot : giving.slots) {
        leaving_.Set(slot, true);
        shard_->SetOwned(slot, false);
      }
    }
    return absl::OkStatus();
  }
  if (!absl::IsNotFound(found)) return found;
  Shard::Update update(shard_.get());
  update.PutRaw(Family::kLocal, kOwnedSlotsKey, Encode(first));
  CFS_RETURN_IF_ERROR(update.Commit());
  {
    MutexLock lock(&owned_mutex_);
    stored_owned_ = first;
  }
  shard_->SetOwned(first);
  return store_->SyncWal();
}

absl::Status LocalFileSystem::Recover() {
  if (Owns(SlotOf(kRootInode))) {
    std::string value;
    const absl::Status root = store_->Get(Family::kRecords, InodeKey(kRootInode), &value);
    if (absl::IsNotFound(root)) {
      bool empty = true;
      CFS_RETURN_IF_ERROR(store_->Scan(Family::kRecords, "", "",
                                       [&](absl::string_view, absl::string_view) {
                                         empty = false;
                                         return false;
                                       }));
      if (!empty) return absl::DataLossError("the store has files but no root directory");
      CFS_RETURN_IF_ERROR(names_->Format(getuid(), getgid()));
    } else {
      CFS_RETURN_IF_ERROR(root);
    }
  }

  std::vector<std::pair<InodeId, BackingId>> marks, staged;
  std::vector<InodeId> orphans, dirty;
  absl::Status malformed;
  CFS_RETURN_IF_ERROR(shard_->ScanQueue([&](QueueKind kind, InodeId ino, absl::string_view value) {
    const auto backing = DecodeBacking(value);
    if (!backing.ok()) malformed = backing.status();
    if (!backing.ok()) return;
    if (kind == QueueKind::kOpen) marks.emplace_back(ino, *backing);
    if (kind == QueueKind::kOrphan) orphans.push_back(ino);
    if (kind == QueueKind::kStaged) staged.emplace_back(ino, *backing);
    if (kind == QueueKind::kDirty) dirty.push_back(ino);
  }));
  CFS_RETURN_IF_ERROR(malformed);

  for (const auto& [ino, backing] : staged) {
    // In good order, all is on the device.
    CFS_RETURN_IF_ERROR(Unstage(ino, state_->was_clean() ? kNoBacking : backing));
    if (!state_->was_clean()) std::erase(marks, std::pair(ino, backing));
  }
  if (!state_->was_clean()) {
    for (const InodeId ino : dirty) {
      CFS_ASSIGN_OR_RETURN(const bool lost, TakeBackLost(ino));
      if (lost) std::erase_if(marks, [ino = ino](const auto& mark) { return mark.first == ino; });
    }
  }
  // A file that was created and is not settled has its open mark; what else is
  // in the unsettled range was in the pool, or its record did not survive.
  const auto [settled, end] = state_->unsettled();
  size_t removed = 0;
  if (!state_->was_clean()) {
    absl::flat_hash_set<BackingId> named;
    for (const auto& [ino, backing] : marks) named.insert(backing);
    CFS_RETURN_IF_ERROR(shard_->ScanForeign([&](BackingId backing) { named.insert(backing); }));
    removed = chunks_->RemoveAll(settled, end,
                                 [&](BackingId backing) { return named.contains(backing); });
  }

  for (const auto& [ino, backing] : marks) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    OpenInode* open = open_.FindOrAdd(ino, backing);
    open->marked = open->maybe_writer = true;
    QueueSettle(ino, open);
  }
  for (InodeId ino : orphans) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const auto record = shard_->GetInode(ino);
    if (absl::IsNotFound(record.status())) continue;
    CFS_RETURN_IF_ERROR(record.status());
    if (in_cluster_ && record->IsRegular()) {
      // Other nodes may have it open, and say so soon.
      NoteOrphan({ino, record->home, record->backing});
      continue;
    }
    const OpenInode* open = open_.Find(ino);
    CFS_RETURN_IF_ERROR(EraseOrphan(ino, *record, open != nullptr && open->marked));
    open_.Erase(ino);
  }
  size_t doomed = 0;
  CFS_RETURN_IF_ERROR(store_->Scan(Family::kLocal, kDoomedPrefix, kDoomedPrefix,
                                   [&](absl::string_view key, absl::string_view) {
                                     BackingId backing;
                                     if (ParseDoomedKey(key, &backing)) {
                                       MutexLock lock(&background_mutex_);
                                       doomed_.push_back(backing);
                                       ++doomed;
                                     }
                                     return true;
                                   }));
  CFS_ASSIGN_OR_RETURN(const uint64_t first, state_->Next());
  chunks_->SetFirst(first);
  chunks_->Settle(BackingId(first));
  CFS_RETURN_IF_ERROR(state_->SetSettled(first));
  if (!state_->was_clean()) {
    LogInfo("recovered after an unclean end open_marks=", marks.size(),
            " orphans=", orphans.size(), " doomed=", doomed, " unreferenced=", removed,
            " unstaged=", staged.size());
  }
  return absl::OkStatus();
}

void LocalFileSystem::Start(ChunkStore::Registrar registrar) {
  if (stores_files_) chunks_->StartPool(std::move(registrar));
  background_ = Thread([this] { RunBackground(); });
}

InodeUse LocalFileSystem::UseOf(InodeId ino, const InodeRecord& record) {
  const OpenInode* open = open_.Find(ino);
  const bool marked = open != nullptr && open->marked;
  // Who has it open is for its home to say, later; and somebody who has just found
  // the name may be about to open it.
  if (in_cluster_ && record.IsRegular()) return {/*open=*/true, marked};
  return {open != nullptr && open->open(), marked};
}

// ---------------------------------------------------------------- attributes

Attr LocalFileSystem::AttrFromRecord(InodeId ino, const InodeRecord& r) const {
  Attr attr;
  struct stat& st = attr.st;
  st.st_ino = Raw(ino);
  st.st_mode = r.mode;
  st.st_nlink = r.nlink;
  st.st_uid = r.uid;
  st.st_gid = r.gid;
  st.st_rdev = r.rdev;
  st.st_size = static_cast<off_t>(S_ISLNK(r.mode) ? r.target.size() : r.size);
  st.st_blocks = static_cast<blkcnt_t>(r.blocks);
  st.st_blksize = kBlockBytes;
  st.st_atim = r.atime;
  st.st_mtim = r.mtime;
  st.st_ctim = r.ctime;
  attr.btime = r.btime;
  if (r.IsRegular()) {
    attr.home = r.home;
    attr.backing = r.backing;
  }
  return attr;
}

absl::Status LocalFileSystem::MergeBacking(InodeRecord* r) const {
  struct stat st;
  absl::Status found = chunks_->Stat(r->backing, &st);
  if (!found.ok()) {
    if (ErrnoOf(found) != ENOENT || r->attr_epoch == attr_epoch_ || !r->backend_identity.empty()) {
      LogError("backing file cannot be read backing=", Raw(r->backing),
               " error=", found.ToString());
      return PosixError(EIO);
    }
    // Created shortly before a power failure and never synced: the name may
    // have survived, the file system below did not promise the file.
    LogInfo("file that was never synced is empty after a power failure backing=",
            Raw(r->backing));
    CFS_RETURN_IF_ERROR(chunks_->CreateEmpty(r->backing));
    CFS_RETURN_IF_ERROR(chunks_->Stat(r->backing, &st));
  }
  r->blocks = static_cast<uint64_t>(st.st_blocks);
  if (IsClean(*r, st)) {
    // Its other times are the backend's.
    r->atime = Later(r->atime, st.st_atim);
    return absl::OkStatus();
  }
  r->size = static_cast<uint64_t>(st.st_size);
  // Before the inode's birth the file was in the pool, or the time was set by
  // utimens, which the record has too.
  if (!(st.st_mtim < r->btime)) r->mtime = st.st_mtim;
  if (!(st.st_atim < r->btime)) r->atime = st.st_atim;
  r->ctime = Later(r->ctime, st.st_ctim);
  return absl::OkStatus();
}

absl::StatusOr<Attr> LocalFileSystem::AttrFromBacking(InodeId ino, InodeRecord record,
                                                      const OpenInode* open) {
  CFS_RETURN_IF_ERROR(MergeBacking(&record));
  Attr attr = AttrFromRecord(ino, record);
  attr.stable = open == nullptr || !open->maybe_writer;
  return attr;
}

Attr LocalFileSystem::AttrOfDirectory(InodeId ino, const InodeRecord& record,
                                      const BucketRecord& bucket) const {
  Attr attr = AttrFromRecord(ino, record);
  attr.st.st_nlink = record.nlink == 0 ? 0 : 2 + bucket.subdirs;
  attr.st.st_size = kDirectoryBytes;
  attr.st.st_blocks = kDirectoryBytes / 512;
  attr.st.st_mtim = bucket.mtime;
  attr.st.st_ctim = Later(record.ctime, bucket.ctime);
  return attr;
}

Attr LocalFileSystem::AttrOfNewDirectory(InodeId ino, const InodeRecord& record) const {
  return AttrOfDirectory(ino, record, EmptyBucket(record));
}

absl::StatusOr<Attr> LocalFileSystem::AttrOf(InodeId ino, InodeRecord record) {
  if (record.IsDirectory()) {
    CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, shard_->GetBucket(ino));
    return AttrOfDirectory(ino, record, bucket);
  }
  if (!record.IsRegular() || record.home != node_) return AttrFromRecord(ino, record);
  const OpenInode* open = open_.Find(ino);
  if (open != nullptr) return AttrFromBacking(ino, std::move(record), open);
  if (record.attr_epoch != attr_epoch_) {
    CFS_RETURN_IF_ERROR(MergeBacking(&record));
    record.attr_epoch = attr_epoch_;
    if (!space_is_short_.load(std::memory_order_relaxed)) {
      Shard::Update update(shard_.get());
      update.PutInode(ino, record);
      update.Commit().IgnoreError();  // Spares the next look, and no more.
    }
  }
  return AttrFromRecord(ino, record);
}

absl::StatusOr<Attr> LocalFileSystem::GetAttrNow(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  bool ghost;
  CFS_ASSIGN_OR_RETURN(InodeRecord record, RecordOf(ino, &ghost));
  if (!ghost) return AttrOf(ino, std::move(record));
  if (record.backing != kNoBacking) CFS_RETURN_IF_ERROR(MergeBacking(&record));
  Attr attr = AttrFromRecord(ino, record);
  attr.stable = false;
  return attr;
}

void LocalFileSystem::GetAttr(InodeId ino, Done<Attr> done) {
  if (!looks_) return done(GetAttrNow(ino));
  const BackendLinks::Place due = PlaceDue(ino);
  if (due.dir == kNoInode) return done(GetAttrNow(ino));
  fetcher_->Look(due.dir, due.name,
                 [this, ino, done = std::move(done)]() mutable { done(GetAttrNow(ino)); });
}

absl::StatusOr<Attr> LocalFileSystem::LookupNow(InodeId dir, absl::string_view name) {
  // A name that moves between the two locks is looked up again.
  for (InodeId missing = kNoInode;;) {
    InodeId ino;
    uint8_t type = DT_DIR;
    {
      StripeLocks::Hold hold(&shard_->locks(), {dir});
      if (name == ".") {
        ino = dir;
      } else if (name == "..") {
        CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard_->GetInode(dir));
        if (!record.IsDirectory()) return PosixError(ENOTDIR);
        ino = record.parent;
      } else {
        if (name.size() > kNameBytesMax) return PosixError(ENAMETOOLONG);
        CFS_ASSIGN_OR_RETURN(const DentryRecord dentry, shard_->GetDentry(dir, name));
        ino = dentry.ino;
        type = dentry.type;
      }
    }
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    auto record = shard_->GetInode(ino);
    // In a cluster it may be lost: who asks finds out.
    const bool lost = absl::IsNotFound(record.status()) && ino == missing && in_cluster_;
    if (IsNotOwned(record.status()) || lost) {
      Attr attr;
      attr.st.st_ino = Raw(ino);
      attr.st.st_mode = DTTOIF(type);
      attr.elsewhere = true;
      return attr;
    }
    if (record.ok()) {
      // By handle (name_to_handle_at): what has no name is stale.
      if (name == "." && record->nlink == 0) return NotFound();
      return AttrOf(ino, *std::move(record));
    }
    if (!absl::IsNotFound(record.status()) || name == "." || name == "..") {
      return record.status();
    }
    if (ino == missing) return absl::DataLossError("a name of an inode that is not there");
    missing = ino;
  }
}

template <typename DoneT>
void LocalFileSystem::FetchFirst(const absl::Status& status, DoneT done,
                                 absl::AnyInvocable<void(DoneT)> again) {
  fetcher_->Fetch(*BackendNeedOf(status), [done = std::move(done), again = std::move(again)](
                                              absl::Status fetched) mutable {
    if (!fetched.ok()) return done(std::move(fetched));
    again(std::move(done));
  });
}
template void LocalFileSystem::FetchFirst<Done<OpenResult>>(
    const absl::Status&, Done<OpenResult>, absl::AnyInvocable<void(Done<OpenResult>)>);
template void LocalFileSystem::FetchFirst<Done<CreateResult>>(
    const absl::Status&, Done<CreateResult>, absl::AnyInvocable<void(Done<CreateResult>)>);
template void LocalFileSystem::FetchFirst<Done<size_t>>(const absl::Status&, Done<size_t>,
                                                        absl::AnyInvocable<void(Done<size_t>)>);
template void LocalFileSystem::FetchFirst<DoneStatus>(const absl::Status&, DoneStatus,
                                                      absl::AnyInvocable<void(DoneStatus)>);

void LocalFileSystem::Lookup(InodeId dir, absl::string_view name, Done<Attr> done) {
  if (looks_ && name != "." && name != ".." && fetcher_->IsDue(dir, name)) {
    return fetcher_->Look(dir, name,
                          [this, dir, name = std::string(name), done = std::move(done)]() mutable {
                            LookupAgain(dir, name, std::move(done));
                          });
  }
  LookupAgain(dir, name, std::move(done));
}

void LocalFileSystem::LookupAgain(InodeId dir, absl::string_view name, Done<Attr> done) {
  absl::StatusOr<Attr> attr = LookupNow(dir, name);
  if (NeedsFetch(attr.status())) {
    return FetchFirst<Done<Attr>>(
        attr.status(), std::move(done),
        [this, dir, name = std::string(name)](Done<Attr> d) { Lookup(dir, name, std::move(d)); });
  }
  done(std::move(attr));
}

void LocalFileSystem::Forget(InodeId ino) {
  // Relaxed: the kernel forgets an inode after it has seen the reply to the
  // unlink, which came after the count went up.
  if (ghost_count_.load(std::memory_order_relaxed) == 0) return;
  // Those of other nodes may know it still, and do not say.
  if (!in_cluster_) EndGhost(ino);
}

void LocalFileSystem::EndGhost(InodeId ino) {
  InodeRecord last;
  {
    MutexLock lock(&ghost_mutex_);
    const auto it = ghosts_.find(ino);
    if (it == ghosts_.end()) return;
    last = std::move(it->second);
    ghosts_.erase(it);
    ghost_count_.store(ghosts_.size(), std::memory_order_relaxed);
  }
  if (!last.IsRegular()) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const auto record = shard_->GetInode(ino);
    if (record.ok() && record->nlink > 0) return;
    const absl::Status erased =
        record.ok() ? EraseOrphan(ino, *record, /*marked=*/false) : record.status();
    if (!erased.ok()) {
      LogWarn("removed inode stays until the next start ino=", Raw(ino),
              " error=", erased.ToString());
    }
  }
  if (last.backing == kNoBacking) return;
  if (cache_ != nullptr) cache_->BackingGone(ino);
  MutexLock lock(&background_mutex_);
  doomed_.push_back(last.backing);
  if (doomed_.size() == kDoomedFilesMax) background_wake_.Signal();
}

void LocalFileSystem::OnRemoved(const Removed& removed) {
  const InodeRecord& record = removed.record;
  if (record.IsRegular() && record.home != node_) {
    return NoteOrphan({removed.ino, record.home, record.backing});
  }
  if (removed.orphaned && record.IsRegular()) {
    const OpenInode* const open = open_.Find(removed.ino);
    // Otherwise the last release sees to it.
    if (open == nullptr || !open->open()) {
      NoteOrphan({removed.ino, record.home, record.backing});
    }
    return;
  }
  KeepGhost(removed.ino, record);
}

void LocalFileSystem::KeepGhost(InodeId ino, InodeRecord ghost) {
  MutexLock lock(&ghost_mutex_);
  if (in_cluster_) ghost_ages_.emplace_back(SteadyClock::now(), ino);
  ghosts_[ino] = std::move(ghost);
  ghost_count_.store(ghosts_.size(), std::memory_order_relaxed);
}

absl::StatusOr<InodeRecord> LocalFileSystem::RecordOf(InodeId ino, bool* ghost) {
  *ghost = false;
  auto record = shard_->GetInode(ino);
  if (!absl::IsNotFound(record.status())) return record;
  MutexLock lock(&ghost_mutex_);
  const auto it = ghosts_.find(ino);
  if (it == ghosts_.end()) return PosixError(ESTALE);
  *ghost = true;
  return it->second;
}

absl::Status LocalFileSystem::KillPrivileges(InodeId ino, InodeRecord* record,
                                             Shard::Update* update) {
  if (record->IsDirectory()) return absl::OkStatus();
  record->mode &= ~uint32_t{S_ISUID};
  if (record->mode & S_IXGRP) record->mode &= ~uint32_t{S_ISGID};
  return DropCapability(shard_.get(), ino, record, update);
}

absl::StatusOr<Attr> LocalFileSystem::ApplyAttr(InodeId ino, const SetAttrRequest& request,
                                                bool size_changed) {
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard_->GetInode(ino));
  const timespec now = clock_->Now();
  Shard::Update update(shard_.get());
  const uint32_t fields = request.fields;
  const bool data_is_here = record.IsRegular() && record.home == node_;
  if (size_changed && data_is_here) CFS_RETURN_IF_ERROR(MergeBacking(&record));
  if (fields & kSetMode) {
    record.mode = (record.mode & ~07777u) | (request.mode & 07777u);
    if (record.flags & kHasAccessAcl) {
      CFS_ASSIGN_OR_RETURN(const std::string xattr, shard_->GetXattr(ino, kAccessAclXattr));
      CFS_ASSIGN_OR_RETURN(Acl acl, Acl::Parse(xattr));
      acl.SetModeBits(record.mode);
      update.PutXattr(ino, kAccessAclXattr, acl.Encode());
    }
  }
  if (fields & kSetUid) record.uid = request.uid;
  if (fields & kSetGid) record.gid = request.gid;
  // chown(2) drops privileges whoever calls it, and so does anything the
  // kernel asks to; a mode that comes along was meant to stay.
  if ((fields & (kSetUid | kSetGid | kKillPrivileges)) && !(fields & kSetMode)) {
    CFS_RETURN_IF_ERROR(KillPrivileges(ino, &record, &update));
  } else if (fields & kKillCapability) {
    CFS_RETURN_IF_ERROR(DropCapability(shard_.get(), ino, &record, &update));
  }
  timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
  if (fields & kSetAtime) times[0] = fields & kSetAtimeNow ? now : request.atime;
  if (fields & kSetMtime) times[1] = fields & kSetMtimeNow ? now : request.mtime;
  if (fields & (kSetAtime | kSetMtime)) {
    if (data_is_here) {
      // The backing file's times are the authority. Its own change time moves
      // too, and must not show later as another change.
      CFS_RETURN_IF_ERROR(chunks_->SetTimes(record.backing, times));
      CFS_RETURN_IF_ERROR(MergeBacking(&record));
    }
    if (fields & kSetAtime) record.atime = times[0];
    if (fields & kSetMtime) record.mtime = times[1];
    if ((fields & kSetMtime) && record.IsDirectory()) {
      CFS_ASSIGN_OR_RETURN(BucketRecord bucket, shard_->GetBucket(ino));
      bucket.mtime = times[1];
      update.PutBucket(ino, bucket);
    }
  }
  record.ctime = Later(record.ctime, now);
  update.PutInode(ino, record);
  CFS_RETURN_IF_ERROR(update.Commit());
  return AttrOf(ino, std::move(record));
}

absl::StatusOr<Attr> LocalFileSystem::SetAttrNow(InodeId ino, const SetAttrRequest& request) {
  CFS_RETURN_IF_ERROR(MayChange());
  if (!(request.fields & kSetSize)) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    absl::StatusOr<Attr> attr = ApplyAttr(ino, request, /*size_changed=*/false);
    if (absl::IsNotFound(attr.status())) return PosixError(ESTALE);
    return attr;
  }
  // A truncation is a write of ours: the file has a writer meanwhile, and the
  // lock is not held while the device frees blocks.
  OpenInode* open;
  BackingId backing;
  bool fresh = false;
  const Kept kept(this, ino);
  CFS_ASSIGN_OR_RETURN(const std::string hard, HardenForWriting(ino));
  bool dirtied = false;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    auto found = shard_->GetInode(ino);
    if (absl::IsNotFound(found.status())) return PosixError(ESTALE);
    CFS_ASSIGN_OR_RETURN(InodeRecord record, std::move(found));
    if (!record.IsRegular()) return PosixError(record.IsDirectory() ? EISDIR : EINVAL);
    if (record.layout == Layout::kBackend) return NeedsBackend({BackendNeed::kData, ino});
    if (record.home != node_) return PosixError(EREMOTE);
    if (record.attr_epoch != attr_epoch_) CFS_RETURN_IF_ERROR(MergeBacking(&record));
    backing = record.backing;
    // Staged in since: it is to be begun again.
    if (IsSoft(ino) && record.backend_identity != hard) {
      return NeedsBackend({BackendNeed::kData, ino});
    }
    dirtied = !record.backend_identity.empty() && shard_->writes_back() && !IsDirty(ino);
    open = open_.FindOrAdd(ino, backing);
    CFS_RETURN_IF_ERROR(BeginWriting(ino, open, &fresh));
    ++open->writers;
  }
  if (fresh && cache_ != nullptr) cache_->AttrUnstable(ino);
  // As in OpenNow.
  absl::Status truncated = dirtied ? SyncMetaNow() : absl::OkStatus();
  if (truncated.ok()) truncated = Truncate(backing, request.size);
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  absl::StatusOr<Attr> attr =
      truncated.ok() ? ApplyAttr(ino, request, /*size_changed=*/true) : truncated;
  Unpin(ino, open, /*writer=*/true);
  return attr;
}

void LocalFileSystem::SetAttr(InodeId ino, const SetAttrRequest& request, Done<Attr> done) {
  bool slow = false;
  if (request.fields & kSetSize) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const auto record = shard_->GetInode(ino);
    struct stat st;
    slow = record.ok() && record->IsRegular() && chunks_->Stat(record->backing, &st).ok() &&
           st.st_blocks > kSlowTruncateBlocks;
    slow |= IsSoft(ino);
  }
  auto finish = [this, ino, request, done = std::move(done)]() mutable {
    absl::StatusOr<Attr> attr = SetAttrNow(ino, request);
    if (NeedsFetch(attr.status())) {
      return FetchFirst<Done<Attr>>(
          attr.status(), std::move(done),
          [this, ino, request](Done<Attr> d) { SetAttr(ino, request, std::move(d)); });
    }
    done(std::move(attr));
  };
  if (slow) return io_->Run(std::move(finish));
  finish();
}

void LocalFileSystem::ReadLink(InodeId ino, Done<std::string> done) {
  absl::StatusOr<InodeRecord> record;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    bool ghost;
    record = RecordOf(ino, &ghost);
  }
  if (!record.ok()) return done(record.status());
  if (!S_ISLNK(record->mode)) return done(PosixError(EINVAL));
  done(std::move(record->target));
}

// --------------------------------------------------------------------- names

absl::StatusOr<Attr> LocalFileSystem::MakeInodeNow(const Caller& caller, InodeId dir,
                                                   absl::string_view name, InodeRecord record,
                                                   Slot slot) {
  CFS_RETURN_IF_ERROR(MayChange());
  CFS_RETURN_IF_ERROR(MayGrow());
  CFS_ASSIGN_OR_RETURN(const uint64_t counter, state_->Next());
  const InodeId ino = MakeInode(slot, counter + state_->inode_lead());
  if (RequestScope* request = RequestScope::Current()) request->SetInode(ino);
  auto created = names_->Create(caller, dir, name, {ino, std::move(record), false});
  // The number has no backing file, whatever became of the inode.
  chunks_->Settle(BackingId(counter));
  CFS_RETURN_IF_ERROR(created.status());
  // Not read again: it is made, even if another node has it by now.
  return created->IsDirectory() ? AttrOfNewDirectory(ino, *created) : AttrFromRecord(ino, *created);
}

void LocalFileSystem::MakeNamed(const Caller& caller, InodeId dir, absl::string_view name,
                                InodeRecord record, Slot slot, Done<Attr> done) {
  absl::StatusOr<Attr> made = MakeInodeNow(caller, dir, name, record, slot);
  if (NeedsFetch(made.status())) {
    return FetchFirst<Done<Attr>>(made.status(), std::move(done),
                                  [this, caller, dir, name = std::string(name),
                                   record = std::move(record), slot](Done<Attr> d) {
                                    MakeNamed(caller, dir, name, record, slot, std::move(d));
                                  });
  }
  done(std::move(made));
}

void LocalFileSystem::MakeNode(const Caller& caller, InodeId dir, absl::string_view name,
                               uint32_t mode, uint64_t rdev, Done<Attr> done) {
  if (S_ISREG(mode) || (mode & S_IFMT) == 0) {
    auto created = CreateNow(caller, dir, name, S_IFREG | (mode & 07777u), O_RDONLY | O_EXCL,
                             /*unnamed=*/false);
    if (NeedsFetch(created.status())) {
      return FetchFirst<Done<Attr>>(
          created.status(), std::move(done),
          [this, caller, dir, name = std::string(name), mode, rdev](Done<Attr> d) {
            MakeNode(caller, dir, name, mode, rdev, std::move(d));
          });
    }
    if (!created.ok()) return done(created.status());
    DropRegistration(created->open.registration);
    Release(created->open.handle);
    return done(std::move(created->attr));
  }
  if (S_ISDIR(mode) || S_ISLNK(mode)) return done(PosixError(EINVAL));
  InodeRecord record;
  record.mode = mode;
  record.rdev = rdev;
  MakeNamed(caller, dir, name, std::move(record), SlotOf(dir), std::move(done));
}

void LocalFileSystem::MakeDirectory(const Caller& caller, InodeId dir, absl::string_view name,
                                    uint32_t mode, Done<Attr> done) {
  MakeDirectoryIn(SpreadSlot(dir, name), caller, dir, name, mode, std::move(done));
}

void LocalFileSystem::MakeDirectoryIn(Slot slot, const Caller& caller, InodeId dir,
                                      absl::string_view name, uint32_t mode, Done<Attr> done) {
  InodeRecord record;
  record.mode = S_IFDIR | (mode & 07777u);
  MakeNamed(caller, dir, name, std::move(record), slot, std::move(done));
}

absl::StatusOr<bool> LocalFileSystem::PlacesLocally(InodeId dir) {
  const auto placement = cfs::GetXattr(shard_.get(), dir, kPlacementXattr);
  if (placement.ok()) return *placement == kPlacementLocal;
  if (absl::IsNotFound(placement.status()) || ErrnoOf(placement.status()) == ENODATA) return false;
  return placement.status();
}

absl::StatusOr<InodeId> LocalFileSystem::ReserveInode(Slot slot) {
  if (!Owns(slot)) return NotOwned();
  CFS_RETURN_IF_ERROR(RoomToGrow());
  CFS_ASSIGN_OR_RETURN(const uint64_t counter, state_->Next());
  chunks_->Settle(BackingId(counter));  // No backing file has the number.
  return MakeInode(slot, counter + state_->inode_lead());
}

void LocalFileSystem::MakeSymlink(const Caller& caller, InodeId dir, absl::string_view name,
                                  absl::string_view target, Done<Attr> done) {
  if (target.empty()) return done(NotFound());
  if (target.size() > kSymlinkBytesMax) return done(PosixError(ENAMETOOLONG));
  InodeRecord record;
  record.mode = S_IFLNK | 0777;
  record.target = std::string(target);
  MakeNamed(caller, dir, name, std::move(record), SlotOf(dir), std::move(done));
}

void LocalFileSystem::Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done) {
  absl::Status may = MayChange();
  may.Update(MayGrow());
  const absl::StatusOr<InodeRecord> linked = may.ok() ? names_->Link(ino, dir, name) : may;
  if (NeedsFetch(linked.status())) {
    return FetchFirst<Done<Attr>>(linked.status(), std::move(done),
                                  [this, ino, dir, name = std::string(name)](Done<Attr> d) {
                                    Link(ino, dir, name, std::move(d));
                                  });
  }
  if (!linked.ok()) return done(linked.status());
  absl::StatusOr<Attr> attr = GetAttrNow(ino);
  // It is linked, even if another node has it by now, or a transaction.
  if (IsNotOwned(attr.status()) || IsBusy(attr.status())) {
    attr.emplace();
    attr->st.st_ino = Raw(ino);
    attr->elsewhere = true;
  }
  done(std::move(attr));
}

void LocalFileSystem::DropRegistration(int registration) {
  if (registration != 0 && cache_ != nullptr) cache_->RegistrationUnused(registration);
}

void LocalFileSystem::Drain() {
  locks_.CancelAll();
  // What the pool runs may ask for a sync, and what waits for one may ask the
  // pool: twice each is as deep as it goes.
  for (int pass = 0; pass < 2; ++pass) {
    io_->Drain();
    Mutex mutex;
    CondVar synced;
    bool finished = false;
    syncer_->Sync([&](absl::Status) {
      MutexLock lock(&mutex);
      finished = true;
      synced.Signal();
    });
    MutexLock lock(&mutex);
    while (!finished) synced.Wait(&mutex);
  }
  io_->Drain();
}

absl::Status LocalFileSystem::RoomToGrow() const {
  if (!space_is_short_.load(std::memory_order_relaxed)) return absl::OkStatus();
  CFS_ASSIGN_OR_RETURN(const struct statvfs space, chunks_->Space());
  const uint64_t unit = space.f_frsize;
  const uint64_t floor = std::min(kGrowthBytesMax, space.f_blocks * unit / kGrowthShare);
  return space.f_bavail * unit < floor ? PosixError(ENOSPC) : absl::OkStatus();
}

void LocalFileSystem::DoneFreeing(const Removed& removed, DoneStatus done) {
  BackingId backing = kNoBacking;
  if (removed.ino != kNoInode && !removed.orphaned &&
      space_is_short_.load(std::memory_order_relaxed)) {
    // What is freed here may be written the next moment, and a passthrough
    // write that finds no space cannot wait for us: free it now, and do without
    // the chance to open the file again through /proc/self/fd.
    StripeLocks::Hold hold(&shard_->locks(), {removed.ino});
    const OpenInode* open = open_.Find(removed.ino);
    if (open == nullptr || !open->open()) {
      MutexLock lock(&ghost_mutex_);
      const auto it = ghosts_.find(removed.ino);
      if (it != ghosts_.end()) backing = std::exchange(it->second.backing, kNoBacking);
    }
  }
  if (backing == kNoBacking) return done(absl::OkStatus());
  if (cache_ != nullptr) cache_->BackingGone(removed.ino);
  syncer_->Sync([this, backing, done = std::move(done)](absl::Status synced) mutable {
    if (synced.ok()) {
      io_->Run([this, backing, done = std::move(done)]() mutable {
        const absl::Status gone = chunks_->Remove(backing);
        if (!gone.ok()) LogWarn("space is not freed before the next start error=", gone.ToString());
        // Its entry among the doomed goes at the next start.
        done(absl::OkStatus());
      });
    } else {
      done(absl::OkStatus());
    }
  });
}

void LocalFileSystem::Unlink(InodeId dir, absl::string_view name, DoneStatus done) {
  if (absl::Status may = MayChange(); !may.ok()) return done(std::move(may));
  const auto removed = names_->Unlink(dir, name);
  if (NeedsFetch(removed.status())) {
    return FetchFirst<DoneStatus>(removed.status(), std::move(done),
                                  [this, dir, name = std::string(name)](DoneStatus d) {
                                    Unlink(dir, name, std::move(d));
                                  });
  }
  if (!removed.ok()) return done(removed.status());
  DoneFreeing(*removed, std::move(done));
}

void LocalFileSystem::RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done) {
  if (absl::Status may = MayChange(); !may.ok()) return done(std::move(may));
  absl::Status removed = names_->RemoveDirectory(dir, name).status();
  if (NeedsFetch(removed)) {
    return FetchFirst<DoneStatus>(removed, std::move(done),
                                  [this, dir, name = std::string(name)](DoneStatus d) {
                                    RemoveDirectory(dir, name, std::move(d));
                                  });
  }
  done(std::move(removed));
}

void LocalFileSystem::Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
                             absl::string_view to_name, uint32_t flags, DoneStatus done) {
  if (absl::Status may = MayChange(); !may.ok()) return done(std::move(may));
  const auto renamed = names_->Rename(from_dir, from_name, to_dir, to_name, flags);
  if (NeedsFetch(renamed.status())) {
    return FetchFirst<DoneStatus>(
        renamed.status(), std::move(done),
        [this, from_dir, from_name = std::string(from_name), to_dir,
         to_name = std::string(to_name), flags](DoneStatus d) {
          Rename(from_dir, from_name, to_dir, to_name, flags, std::move(d));
        });
  }
  if (!renamed.ok()) return done(renamed.status());
  for (const InodeId moved : renamed->moved) {
    if (moved != kNoInode && cache_ != nullptr) cache_->ListingChanged(moved);
  }
  DoneFreeing(renamed->removed, std::move(done));
}

void LocalFileSystem::List(InodeId dir, uint64_t offset, size_t bytes_max, size_t entry_bytes,
                           bool attributes, Done<std::vector<ListedEntry>> done) {
  if (looks_ && offset == 0 && fetcher_->IsDue(dir, "")) {
    return fetcher_->Look(
        dir, "", [this, dir, bytes_max, entry_bytes, attributes, done = std::move(done)]() mutable {
          ListAgain(dir, 0, bytes_max, entry_bytes, attributes, std::move(done));
        });
  }
  ListAgain(dir, offset, bytes_max, entry_bytes, attributes, std::move(done));
}

void LocalFileSystem::ListAgain(InodeId dir, uint64_t offset, size_t bytes_max,
                                size_t entry_bytes, bool attributes,
                                Done<std::vector<ListedEntry>> done) {
  if (in_cluster_) {
    // Where a kernel has not been told that the directory is gone.
    StripeLocks::Hold hold(&shard_->locks(), {dir});
    const auto record = shard_->GetInode(dir);
    if (record.ok() && record->nlink == 0) return done(NotFound());
  }
  std::vector<ListedEntry> entries;
  size_t bytes = 0;
  absl::Status status =
      ReadDirectory(shard_.get(), dir, offset, [&](const DirectoryEntry& entry) {
        bytes += (entry_bytes + entry.name.size() + 7) & ~size_t{7};
        if (bytes > bytes_max) return false;
        ListedEntry& listed = entries.emplace_back();
        listed.entry = entry;
        return true;
      });
  if (NeedsFetch(status)) {
    return FetchFirst<Done<std::vector<ListedEntry>>>(
        status, std::move(done),
        [this, dir, offset, bytes_max, entry_bytes, attributes](Done<std::vector<ListedEntry>> d) {
          List(dir, offset, bytes_max, entry_bytes, attributes, std::move(d));
        });
  }
  // A directory that was removed while open lists nothing.
  if (absl::IsNotFound(status)) return done(std::move(entries));
  if (!status.ok()) return done(std::move(status));
  if (attributes) {
    std::vector<InodeId> inos;
    for (const ListedEntry& listed : entries) inos.push_back(listed.entry.ino);
    shard_->Prefetch(inos);
    for (ListedEntry& listed : entries) {
      // Not what the kernel would keep for longer than it may.
      if (looks_ && fetcher_->IsDue(dir, listed.entry.name)) continue;
      // What went away meanwhile is listed without attributes.
      absl::StatusOr<Attr> attr = GetAttrNow(listed.entry.ino);
      listed.has_attr = attr.ok();
      if (attr.ok()) listed.attr = *std::move(attr);
    }
  }
  done(std::move(entries));
}

void LocalFileSystem::GetXattr(InodeId ino, absl::string_view name, Done<std::string> done) {
  if (fetcher_ != nullptr && name == kFlushErrorXattr) {
    std::string error = fetcher_->FlushError(ino);
    if (error.empty()) return done(PosixError(ENODATA));
    return done(std::move(error));
  }
  absl::StatusOr<std::string> value = cfs::GetXattr(shard_.get(), ino, name);
  // A ghost's attributes went with its record.
  if (absl::IsNotFound(value.status())) value = PosixError(ENODATA);
  done(std::move(value));
}

void LocalFileSystem::ListXattrs(InodeId ino, Done<std::vector<std::string>> done) {
  absl::StatusOr<std::vector<std::string>> names = cfs::ListXattrs(shard_.get(), ino);
  if (absl::IsNotFound(names.status())) names = std::vector<std::string>();
  done(std::move(names));
}

void LocalFileSystem::SetXattr(InodeId ino, absl::string_view name, absl::string_view value,
                               int flags, bool clear_setgid, DoneStatus done) {
  absl::Status may = MayChange();
  may.Update(MayGrow());
  if (NeedsFetch(may)) {
    return FetchFirst<DoneStatus>(
        may, std::move(done),
        [this, ino, name = std::string(name), value = std::string(value), flags,
         clear_setgid](DoneStatus d) {
          SetXattr(ino, name, value, flags, clear_setgid, std::move(d));
        });
  }
  if (!may.ok()) return done(std::move(may));
  done(cfs::SetXattr(shard_.get(), clock_, ino, name, value, flags, clear_setgid));
}

void LocalFileSystem::RemoveXattr(InodeId ino, absl::string_view name, DoneStatus done) {
  if (absl::Status may = MayChange(); !may.ok()) return done(std::move(may));
  done(cfs::RemoveXattr(shard_.get(), clock_, ino, name));
}

// -------------------------------------------------------------------- status

nlohmann::json LocalFileSystem::Status() {
  nlohmann::json status;
  {
    MutexLock lock(&ghost_mutex_);
    status["ghosts"] = ghosts_.size();
  }
  {
    MutexLock lock(&background_mutex_);
    status["settling"] = settle_.size() + settle_later_.size() + settle_busy_.size();
    status["doomed"] = doomed_.size();
  }
  status["open_inodes"] = open_.size();
  status["rocksdb_memory_bytes"] = store_->MemoryBytes();
  status["wal_syncs"] = syncer_->syncs();
  status["attr_epoch"] = attr_epoch_;
  status["locks_held"] = locks_.locks();
  status["lock_waiters"] = locks_.waiters();
  return status;
}

nlohmann::json LocalFileSystem::ChunkStatus() {
  nlohmann::json status = {{"pool", chunks_->pool_size()}, {"settled", chunks_->settled()}};
  const absl::StatusOr<struct statvfs> space = chunks_->Space();
  if (space.ok()) {
    status["free_bytes"] = uint64_t{space->f_bavail} * space->f_frsize;
    status["total_bytes"] = uint64_t{space->f_blocks} * space->f_frsize;
  }
  return status;
}

nlohmann::json LocalFileSystem::Describe(InodeId ino) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  const auto record = shard_->GetInode(ino);
  if (!record.ok()) {
    return {{"ok", false}, {"error", "no such inode"}, {"errno", ErrnoOf(record.status())}};
  }
  const OpenInode* open = open_.Find(ino);
  nlohmann::json reply = {{"ok", true},
                          {"ino", Raw(ino)},
                          {"slot", Raw(SlotOf(ino))},
                          {"home", Raw(record->IsRegular() ? record->home : node_)},
                          {"open_count", open == nullptr ? 0 : open->readers + open->writers},
                          {"has_writer", open != nullptr && open->maybe_writer}};
  if (record->IsRegular() && record->layout == Layout::kBackend) {
    reply["layout"] = "backend";
    reply["mode"] = "closed";
  } else if (record->IsRegular()) {
    reply["layout"] = "whole";
    if (record->home == node_) reply["backing"] = chunks_->PathOf(record->backing);
    reply["mode"] = open == nullptr || !open->open() ? "closed"
                    : daemon_io_                     ? "daemon-io"
                                                     : "passthrough";
  } else {
    reply["layout"] = "none";
    if (record->flags & kNotImported) reply["not_imported"] = true;
  }
  return reply;
}

}  // namespace cfs
