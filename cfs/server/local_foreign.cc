// What LocalFileSystem does for other nodes: inodes with the data elsewhere, and
// data with the inode elsewhere.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/meta/request_scope.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

// What has no name any more can still be opened for this long: the name may have
// been looked up shortly before it went.
constexpr auto kOpenableFor = std::chrono::seconds(2);

}  // namespace

// ------------------------------------------------------------------ the owner

absl::StatusOr<Attr> LocalFileSystem::CreateAway(const Caller& caller, InodeId dir,
                                                 absl::string_view name, uint32_t mode,
                                                 NodeId home, const FreshData& data) {
  if (home == node_) return PosixError(EREMOTE);
  Namespace::NewInode inode;
  CFS_ASSIGN_OR_RETURN(inode.ino, ReserveInode(SlotOf(dir)));
  inode.record.mode = S_IFREG | (mode & 07777u);
  inode.record.layout = Layout::kWhole;
  inode.record.home = home;
  inode.record.backing = data.backing;
  inode.record.attr_epoch = attr_epoch_;
  // The clock that will stamp the data, or a write might seem to be older.
  inode.now = data.now;
  if (RequestScope* request = RequestScope::Current()) request->SetInode(inode.ino);
  const InodeId ino = inode.ino;
  CFS_ASSIGN_OR_RETURN(const InodeRecord record,
                       name.empty() ? names_->CreateOrphan(caller, dir, std::move(inode))
                                    : names_->Create(caller, dir, name, std::move(inode)));
  if (name.empty()) NoteOrphan({ino, home, data.backing});
  return AttrFromRecord(ino, record);
}

void LocalFileSystem::NoteOrphan(Orphan orphan) {
  orphan.noted = SteadyClock::now();
  MutexLock lock(&background_mutex_);
  orphans_.push_back(orphan);
}

std::vector<LocalFileSystem::Orphan> LocalFileSystem::TakeOrphans() {
  const auto before = SteadyClock::now() - kOpenableFor;
  std::vector<Orphan> orphans;
  MutexLock lock(&background_mutex_);
  std::erase_if(orphans_, [&](const Orphan& orphan) {
    if (orphan.noted > before) return false;
    orphans.push_back(orphan);
    return true;
  });
  return orphans;
}

bool LocalFileSystem::BeginReaping(const Orphan& orphan) {
  StripeLocks::Hold hold(&shard_->locks(), {orphan.ino});
  const auto record = shard_->GetInode(orphan.ino);
  if (absl::IsNotFound(record.status()) || (record.ok() && record->nlink > 0)) return false;
  if (IsNotOwned(record.status())) return false;  // Its new owner sees to it.
  MutexLock lock(&background_mutex_);
  reaping_.insert(orphan.ino);
  return true;
}

bool LocalFileSystem::MayLink(InodeId ino) {
  MutexLock lock(&background_mutex_);
  return !reaping_.contains(ino);
}

void LocalFileSystem::EndReaping(const Orphan& orphan, bool gone) {
  StripeLocks::Hold hold(&shard_->locks(), {orphan.ino});
  const bool reaped = gone && ReapOrphan(orphan).value_or(false);
  MutexLock lock(&background_mutex_);
  reaping_.erase(orphan.ino);
  if (!reaped) orphans_.push_back(orphan);
}

// Erases the record. False: it is open here.
absl::StatusOr<bool> LocalFileSystem::ReapOrphan(const Orphan& orphan) {
  auto record = shard_->GetInode(orphan.ino);
  if (absl::IsNotFound(record.status())) return true;
  CFS_RETURN_IF_ERROR(record.status());
  if (record->nlink > 0) return true;
  const OpenInode* const open = open_.Find(orphan.ino);
  if (orphan.home == node_) {
    if (InGrace()) return false;
    if (open != nullptr && open->open()) return true;  // Its last release sees to it.
  }
  CFS_RETURN_IF_ERROR(EraseOrphan(orphan.ino, *record, open != nullptr && open->marked));
  if (orphan.home == node_) MergeBacking(&*record).IgnoreError();
  record->backing = kNoBacking;  // Attributes are all that is left.
  KeepGhost(orphan.ino, *std::move(record));
  if (orphan.home == node_) {
    if (cache_ != nullptr) cache_->BackingGone(orphan.ino);
    MutexLock lock(&background_mutex_);
    doomed_.push_back(orphan.backing);
  }
  return true;
}

void LocalFileSystem::EndOldGhosts() {
  constexpr auto kAge = std::chrono::hours(1);
  constexpr size_t kMost = 64 << 10;
  const auto now = SteadyClock::now();
  for (;;) {
    InodeId ino;
    {
      MutexLock lock(&ghost_mutex_);
      if (ghost_ages_.empty() ||
          (now - ghost_ages_.front().first < kAge && ghost_ages_.size() <= kMost)) {
        return;
      }
      ino = ghost_ages_.front().second;
      ghost_ages_.pop_front();
    }
    EndGhost(ino);
  }
}

absl::StatusOr<InodeId> LocalFileSystem::ReplyOf(Slot slot, const RequestId& request) {
  return shard_->GetReply(slot, request);
}

absl::Status LocalFileSystem::DropReplies(absl::FunctionRef<bool(Slot, const RequestId&)> drop) {
  Shard::Update update(shard_.get());
  CFS_RETURN_IF_ERROR(shard_->ScanReplies([&](Slot slot, const RequestId& request) {
    if (drop(slot, request)) update.DeleteReply(slot, request);
  }));
  return update.Commit();
}

void LocalFileSystem::SyncMeta(DoneStatus done) {
  if (unsafe_sync_) return done(absl::OkStatus());
  syncer_->Sync([done = std::move(done)](absl::Status s) mutable { done(std::move(s)); });
}

void LocalFileSystem::SyncInode(InodeId ino, DoneStatus done) {
  absl::Status found;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    found = shard_->GetInode(ino).status();
  }
  if (absl::IsNotFound(found)) found = PosixError(EIO, "the inode was lost with power");
  if (!found.ok()) return done(std::move(found));
  SyncMeta(std::move(done));
}

// ------------------------------------------------------------------- the home

absl::StatusOr<FreshFile> LocalFileSystem::ReserveForeign() {
  CFS_RETURN_IF_ERROR(RoomToGrow());
  CFS_ASSIGN_OR_RETURN(const FreshFile fresh, chunks_->TakeFresh());
  {
    MutexLock lock(&reserved_mutex_);
    reserved_.insert(fresh.backing);
  }
  Shard::Update update(shard_.get());
  update.PutForeign(fresh.backing, kNoInode);
  const absl::Status status = update.Commit();
  if (!status.ok()) {
    DiscardForeign(fresh);
    return status;
  }
  return fresh;
}

absl::StatusOr<FreshData> LocalFileSystem::MakeForeign() {
  CFS_ASSIGN_OR_RETURN(const FreshFile fresh, ReserveForeign());
  LeaveForeign(fresh);
  return FreshData{fresh.backing, RealClock().Now()};
}

OpenResult LocalFileSystem::AdoptForeign(const FreshFile& fresh, InodeId ino, int flags) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  OpenInode* const open = open_.FindOrAdd(ino, fresh.backing);
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  ++(writes ? open->writers : open->readers);
  if (Owns(SlotOf(ino))) {
    // The record has come here between its making and the answer.
    bool first;
    const absl::Status marked = writes ? BeginWriting(ino, open, &first) : absl::OkStatus();
    if (!marked.ok()) LogWarn("open file is not marked error=", marked.ToString());
  } else {
    open->foreign = true;
    Shard::Update update(shard_.get());
    update.PutForeign(fresh.backing, ino);
    // Without it, only whose the file is is not written down.
    update.Commit().IgnoreError();
  }
  EndReservation(fresh);
  return {NewHandle(ino, open, flags), ino, fresh.backing, fresh.registration};
}

void LocalFileSystem::LeaveForeign(const FreshFile& fresh) {
  DropRegistration(fresh.registration);
  EndReservation(fresh);
}

void LocalFileSystem::EndReservation(const FreshFile& fresh) {
  chunks_->Settle(fresh.backing);
  MutexLock lock(&reserved_mutex_);
  reserved_.erase(fresh.backing);
}

void LocalFileSystem::DiscardForeign(const FreshFile& fresh) {
  {
    MutexLock lock(&reserved_mutex_);
    reserved_.erase(fresh.backing);
  }
  Shard::Update update(shard_.get());
  update.DeleteForeign(fresh.backing);
  update.Commit().IgnoreError();  // It names a file that is gone: no harm.
  Discard(fresh);
}

void LocalFileSystem::OpenForeign(InodeId ino, BackingId backing, int flags, bool restore,
                                  Done<OpenResult> done) {
  const bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
  OpenInode* open;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    if (Owns(SlotOf(ino))) return done(Busy());  // Since a moment ago.
    const auto known = shard_->GetForeign(backing);
    if (!known.ok() && !absl::IsNotFound(known.status())) return done(known.status());
    if (!known.ok() || *known == kNoInode) {
      bool reserved;
      {
        MutexLock lock(&reserved_mutex_);
        reserved = reserved_.contains(backing);
      }
      if (!known.ok() && leaving_.Has(SlotOf(ino))) return done(Busy());
      if (!known.ok() && !restore) return done(PosixError(ESTALE));
      if (!known.ok()) {
        LogInfo("file that was never synced is empty after a power failure backing=",
                Raw(backing));
        // What is there without a note is not another node's.
        const absl::Status made = chunks_->CreateEmpty(backing);
        if (!made.ok()) return done(ErrnoOf(made) == EEXIST ? PosixError(ESTALE) : made);
      }
      if (!reserved) {
        Shard::Update update(shard_.get());
        update.PutForeign(backing, ino);
        const absl::Status noted = update.Commit();
        if (!noted.ok()) return done(noted);
      }
    }
    open = open_.FindOrAdd(ino, backing);
    open->foreign = true;
    ++(writes ? open->writers : open->readers);
  }
  auto finish = [this, ino, flags, writes, open, done = std::move(done)]() mutable {
    if (flags & O_TRUNC) {
      absl::Status truncated = Truncate(open->backing, 0);
      if (!truncated.ok()) {
        StripeLocks::Hold hold(&shard_->locks(), {ino});
        Unpin(ino, open, writes);
        return done(std::move(truncated));
      }
    }
    done(OpenResult{NewHandle(ino, open, writes ? flags | O_WRONLY : flags), ino, open->backing});
  };
  if (flags & O_TRUNC) return io_->Run(std::move(finish));
  finish();
}

absl::StatusOr<struct stat> LocalFileSystem::StatForeign(BackingId backing) {
  struct stat st;
  CFS_RETURN_IF_ERROR(chunks_->Stat(backing, &st));
  return st;
}

void LocalFileSystem::TruncateForeign(InodeId ino, BackingId backing, uint64_t size,
                                      DoneStatus done) {
  const absl::Status known = CheckForeign(backing);
  if (!known.ok()) return done(known);
  io_->Run([this, ino, backing, size, done = std::move(done)]() mutable {
    const absl::Status truncated = Truncate(backing, size);
    if (truncated.ok()) ChangedByPeer(ino);
    done(truncated);
  });
}

absl::Status LocalFileSystem::CheckForeign(BackingId backing) {
  const absl::Status known = shard_->GetForeign(backing).status();
  return absl::IsNotFound(known) ? PosixError(ESTALE) : known;
}

absl::Status LocalFileSystem::SetTimesForeign(BackingId backing, const SetAttrRequest& request) {
  CFS_RETURN_IF_ERROR(CheckForeign(backing));
  const timespec omit{0, UTIME_OMIT};
  const timespec times[2] = {request.fields & kSetAtime ? request.atime : omit,
                             request.fields & kSetMtime ? request.mtime : omit};
  return chunks_->SetTimes(backing, times);
}

absl::StatusOr<bool> LocalFileSystem::RemoveForeign(InodeId ino, BackingId backing) {
  StripeLocks::Hold hold(&shard_->locks(), {ino});
  {
    MutexLock lock(&reserved_mutex_);
    if (reserved_.contains(backing)) return false;
  }
  const OpenInode* const open = open_.Find(ino);
  if (open != nullptr && open->open()) return false;
  const auto known = shard_->GetForeign(backing);
  if (absl::IsNotFound(known.status())) return true;  // Removed before.
  CFS_RETURN_IF_ERROR(known.status());
  if (*known != kNoInode && *known != ino) return PosixError(EINVAL);
  if (InGrace()) return false;
  Shard::Update update(shard_.get());
  update.DeleteForeign(backing);
  update.PutDoomed(backing);
  CFS_RETURN_IF_ERROR(update.Commit());
  if (cache_ != nullptr) cache_->BackingGone(ino);
  MutexLock lock(&background_mutex_);
  doomed_.push_back(backing);
  return true;
}

}  // namespace cfs
