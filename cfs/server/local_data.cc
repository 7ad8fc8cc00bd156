// Opens, data and durability of LocalFileSystem.
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/request_scope.h"
#include "cfs/server/local_file_system.h"

namespace cfs {
namespace {

constexpr uint64_t kPageBytes = 4096;

}  // namespace

class LocalFileSystem::Descriptor {
 public:
  Descriptor(const LocalFileSystem* fs, const OpenFile* file, int flags) {
    fd_ = flags & O_APPEND ? -1 : file->kept.load(std::memory_order_acquire);
    if (fd_ >= 0) return;
    auto opened = fs->chunks_->OpenFile(file->backing, flags);
    if (!opened.ok()) {
      LogError("backing file cannot be opened backing=", Raw(file->backing),
               " error=", opened.status().ToString());
      status_ = PosixError(EIO);
      return;
    }
    own_ = *std::move(opened);
    fd_ = own_.get();
  }
  // For a read or write: another one is likely to come, so while there are few the
  // descriptor is kept.
  static Descriptor ForData(LocalFileSystem* fs, OpenFile* file) {
    Descriptor fd(fs, file, (file->writes() ? O_RDWR : O_RDONLY) | (file->flags & O_NOATIME));
    if (fd.own_.valid()) fd.Keep(fs, file);
    return fd;
  }
  const absl::Status& status() const { return status_; }
  int get() const { return fd_; }

 private:
  void Keep(LocalFileSystem* fs, OpenFile* file) {
    int none = -1;
    if (fs->kept_descriptors_.fetch_add(1, std::memory_order_relaxed) <
            static_cast<int>(kDescriptorCacheMax) &&
        file->kept.compare_exchange_strong(none, fd_, std::memory_order_acq_rel)) {
      own_.release();
      return;
    }
    fs->kept_descriptors_.fetch_sub(1, std::memory_order_relaxed);
  }

  absl::Status status_;
  UniqueFd own_;
  int fd_ = -1;
};

template <typename T>
void LocalFileSystem::SlowOrNow(bool slow, Done<T> done,
                                absl::AnyInvocable<absl::StatusOr<T>()> work) {
  if (!slow) return done(work());
  io_->Run([done = std::move(done), work = std::move(work)]() mutable { done(work()); });
}
template void LocalFileSystem::SlowOrNow<Attr>(bool, Done<Attr>,
                                               absl::AnyInvocable<absl::StatusOr<Attr>()>);

absl::Status LocalFileSystem::Truncate(BackingId backing, uint64_t size) const {
  CFS_ASSIGN_OR_RETURN(const UniqueFd fd, chunks_->OpenFile(backing, O_WRONLY));
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return ErrnoStatus("truncate");
  return absl::OkStatus();
}

absl::Status LocalFileSystem::BeginWriting(InodeId ino, OpenInode* inode, bool* fresh) {
  // What is written from now on is not on the backend, even if what was written before
  // is just being brought there.
  const bool dirties = shard_->writes_back() &&
                       (!inode->maybe_writer || inode->probed || !IsDirty(ino));
  if ((!inode->marked || dirties) && !inode->ghost) {
    Shard::Update update(shard_.get());
    update.PutQueue(QueueKind::kOpen, ino, inode->backing);
    if (dirties) {
      update.PutQueue(QueueKind::kDirty, ino, BackingId(shard_->NextDirtyVersion()));
      if (IsSoft(ino)) update.DeleteQueue(QueueKind::kStaged, ino);
    }
    const absl::Status status = update.Commit();
    if (!status.ok()) {
      if (!inode->open() && !inode->queued) open_.Erase(ino);
      return status;
    }
    inode->marked = true;
  }
  *fresh = !inode->maybe_writer;
  inode->maybe_writer = true;
  inode->probed = false;
  return absl::OkStatus();
}

HandleId LocalFileSystem::NewHandle(InodeId ino, OpenInode* inode, int flags) {
  return HandleOf(new OpenFile{ino, inode, inode->backing, flags});
}

absl::StatusOr<OpenResult> LocalFileSystem::OpenNow(InodeId ino, int flags,
                                                    bool kill_privileges) {
  const bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
  if (writes) CFS_RETURN_IF_ERROR(MayChange());
  OpenInode* open;
  bool fresh = false, dirtied = false;
  std::string hard;
  std::optional<Kept> kept;
  if (writes) {
    kept.emplace(this, ino);  // Syncing it may take a while.
    CFS_ASSIGN_OR_RETURN(hard, HardenForWriting(ino));
  }
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    // A ghost is opened through /proc/self/fd, after its last name is gone.
    bool ghost;
    absl::StatusOr<InodeRecord> record = RecordOf(ino, &ghost);
    CFS_RETURN_IF_ERROR(record.status());
    if (!record->IsRegular()) return PosixError(record->IsDirectory() ? EISDIR : EINVAL);
    if (record->layout == Layout::kBackend) return NeedsBackend({BackendNeed::kData, ino});
    if (record->home != node_) return PosixError(EREMOTE);
    if (record->backing == kNoBacking) return PosixError(ESTALE);  // Freed already.
    if (record->attr_epoch != attr_epoch_) CFS_RETURN_IF_ERROR(MergeBacking(&*record));
    open = open_.FindOrAdd(ino, record->backing);
    open->ghost = ghost;
    if (writes) {
      // Staged in since: it is to be opened again.
      if (IsSoft(ino) && record->backend_identity != hard) {
        if (!open->open() && !open->queued) open_.Erase(ino);
        return NeedsBackend({BackendNeed::kData, ino});
      }
      dirtied = !record->backend_identity.empty() && shard_->writes_back() && !IsDirty(ino);
      CFS_RETURN_IF_ERROR(BeginWriting(ino, open, &fresh));
      ++open->writers;
    } else {
      ++open->readers;
    }
  }
  if (fresh && cache_ != nullptr) cache_->AttrUnstable(ino);
  // What is written from now on may be on the device before anybody says so: that it is
  // not on the backend has to be there before.
  if (dirtied) {
    const absl::Status synced = SyncMetaNow();
    if (!synced.ok()) {
      StripeLocks::Hold hold(&shard_->locks(), {ino});
      Unpin(ino, open, /*writer=*/true);
      return PosixError(EIO);
    }
  }
  if (flags & O_TRUNC) {
    absl::Status truncated = Truncate(open->backing, 0);
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    if (truncated.ok() && !open->ghost) {
      SetAttrRequest request;
      if (kill_privileges) request.fields = kKillPrivileges;
      truncated = ApplyAttr(ino, request, /*size_changed=*/true).status();
    }
    if (!truncated.ok()) {
      Unpin(ino, open, /*writer=*/true);
      return truncated;
    }
  }
  if (fetcher_ != nullptr) {
    opens_.fetch_add(1, std::memory_order_relaxed);
    NoteUse(ino);
  }
  OpenResult result{NewHandle(ino, open, writes ? flags | O_WRONLY : flags), ino, open->backing};
  result.through_daemon = writes && WritesThroughDaemon();
  FileOf(result.handle)->slow = result.through_daemon;
  return result;
}

void LocalFileSystem::DoneDurably(int flags, absl::AnyInvocable<void(absl::Status)> done) {
  if ((flags & O_DSYNC) && !unsafe_sync_) return syncer_->Sync(std::move(done));
  done(absl::OkStatus());
}

void LocalFileSystem::Open(InodeId ino, int flags, bool kill_privileges, Done<OpenResult> done) {
  auto finish = [this, ino, flags, kill_privileges, done = std::move(done)]() mutable {
    absl::StatusOr<OpenResult> opened = OpenNow(ino, flags, kill_privileges);
    if (NeedsFetch(opened.status())) {
      return FetchFirst<Done<OpenResult>>(opened.status(), std::move(done),
                                    [this, ino, flags, kill_privileges](Done<OpenResult> d) {
                                      Open(ino, flags, kill_privileges, std::move(d));
                                    });
    }
    if (!opened.ok()) return done(std::move(opened));
    DoneDurably(flags, [this, opened = *opened, done = std::move(done)](absl::Status s) mutable {
      if (s.ok()) return done(opened);
      Release(opened.handle);
      done(PosixError(EIO));
    });
  };
  bool slow = false;
  if (flags & O_TRUNC) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const auto record = shard_->GetInode(ino);
    struct stat st;
    slow = record.ok() && record->IsRegular() && chunks_->Stat(record->backing, &st).ok() &&
           st.st_blocks > kSlowTruncateBlocks;
  }
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC)) slow |= IsSoft(ino);
  if (slow) return io_->Run(std::move(finish));
  finish();
}

void LocalFileSystem::Discard(const FreshFile& fresh) {
  DropRegistration(fresh.registration);
  if (!chunks_->Remove(fresh.backing).ok()) {
    Shard::Update update(shard_.get());
    update.PutDoomed(fresh.backing);
    // What stays unsettled is found again by recovery.
    if (!update.Commit().ok()) return;
    MutexLock lock(&background_mutex_);
    doomed_.push_back(fresh.backing);
  }
  chunks_->Settle(fresh.backing);
}

absl::StatusOr<CreateResult> LocalFileSystem::CreateNow(const Caller& caller, InodeId dir,
                                                        absl::string_view name, uint32_t mode,
                                                        int flags, bool unnamed) {
  CFS_RETURN_IF_ERROR(MayChange());
  CFS_RETURN_IF_ERROR(MayGrow());
  const absl::StatusOr<FreshFile> taken = chunks_->TakeFresh();
  if (IsFull(taken.status())) return NeedsBackend({BackendNeed::kRoom});
  CFS_ASSIGN_OR_RETURN(const FreshFile fresh, taken);
  const InodeId ino = MakeInode(SlotOf(dir), Raw(fresh.backing) + state_->inode_lead());
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  OpenInode* open;
  {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    open = open_.FindOrAdd(ino, fresh.backing);
    // Marked even if only read: until its number is settled, the mark is what
    // tells recovery that the file has a record.
    open->marked = true;
    open->maybe_writer = writes;
    if (writes) {
      ++open->writers;
    } else {
      ++open->readers;
    }
  }
  if (RequestScope* request = RequestScope::Current()) request->SetInode(ino);
  Namespace::NewInode inode{ino, {}, /*open_mark=*/true};
  inode.record.mode = mode;
  inode.record.layout = Layout::kWhole;
  inode.record.home = node_;
  inode.record.backing = fresh.backing;
  inode.record.attr_epoch = attr_epoch_;
  auto created = unnamed ? names_->CreateOrphan(caller, dir, std::move(inode))
                         : names_->Create(caller, dir, name, std::move(inode));
  if (!created.ok()) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    open_.Erase(ino);
    Discard(fresh);
    return created.status();
  }
  chunks_->Settle(fresh.backing);
  CreateResult result;
  result.attr = AttrFromRecord(ino, *created);
  result.attr.stable = !writes;
  result.attr.fresh = true;
  if (fetcher_ != nullptr) NoteUse(ino);
  result.open = {NewHandle(ino, open, flags), ino, fresh.backing, fresh.registration};
  result.open.through_daemon = writes && WritesThroughDaemon();
  FileOf(result.open.handle)->slow = result.open.through_daemon;
  return result;
}

void LocalFileSystem::Create(const Caller& caller, InodeId dir, absl::string_view name,
                             uint32_t mode, int flags, Done<CreateResult> done) {
  absl::StatusOr<CreateResult> created =
      CreateNow(caller, dir, name, S_IFREG | (mode & 07777u), flags, /*unnamed=*/false);
  if (absl::IsAlreadyExists(created.status()) && !(flags & O_EXCL)) {
    // The name came to be after the kernel looked it up.
    const absl::StatusOr<Attr> attr = LookupNow(dir, name);
    if (!attr.ok()) return done(attr.status());
    return Open(InodeId(attr->st.st_ino), flags & ~O_CREAT, /*kill_privileges=*/false,
                [attr = *attr, done = std::move(done)](absl::StatusOr<OpenResult> open) mutable {
                  if (!open.ok()) return done(open.status());
                  attr.stable = false;
                  done(CreateResult{attr, *open});
                });
  }
  if (NeedsFetch(created.status())) {
    return FetchFirst<Done<CreateResult>>(
        created.status(), std::move(done),
        [this, caller, dir, name = std::string(name), mode, flags](Done<CreateResult> d) {
          Create(caller, dir, name, mode, flags, std::move(d));
        });
  }
  if (!created.ok()) return done(std::move(created));
  DoneDurably(flags, [this, created = *created, done = std::move(done)](absl::Status s) mutable {
    if (s.ok()) return done(created);
    DropRegistration(created.open.registration);
    Release(created.open.handle);
    done(PosixError(EIO));
  });
}

void LocalFileSystem::CreateUnnamed(const Caller& caller, InodeId dir, uint32_t mode, int flags,
                                    Done<CreateResult> done) {
  absl::StatusOr<CreateResult> created =
      CreateNow(caller, dir, "", S_IFREG | (mode & 07777u), flags, /*unnamed=*/true);
  if (NeedsFetch(created.status())) {
    return FetchFirst<Done<CreateResult>>(created.status(), std::move(done),
                                          [this, caller, dir, mode, flags](Done<CreateResult> d) {
                                            CreateUnnamed(caller, dir, mode, flags, std::move(d));
                                          });
  }
  done(std::move(created));
}

absl::Status LocalFileSystem::EraseOrphan(InodeId ino, const InodeRecord& record, bool marked) {
  // What is to be taken out of it on the backend is found by its record.
  if (record.IsDirectory() && !record.backend_identity.empty()) {
    return absl::OkStatus();
  }
  Shard::Update update(shard_.get());
  InodeRecord erased = record;
  // What is another node's to free is not doomed here.
  if (erased.home != node_) erased.backing = kNoBacking;
  CFS_RETURN_IF_ERROR(names_->EraseInode(ino, erased, marked, &update));
  update.DeleteQueue(QueueKind::kOrphan, ino);
  return update.Commit();
}

void LocalFileSystem::Unpin(InodeId ino, OpenInode* inode, bool writer) {
  CFS_CHECK((writer ? inode->writers : inode->readers) > 0);
  if (writer) {
    --inode->writers;
  } else {
    --inode->readers;
  }
  if (!inode->open()) {
    if (inode->ghost || inode->foreign) return open_.Erase(ino);
    const auto record = shard_->GetInode(ino);
    if (record.ok() && record->nlink == 0) {
      if (keep_orphans_.load(std::memory_order_relaxed)) return open_.Erase(ino);
      if (in_cluster_) {
        NoteOrphan({ino, record->home, record->backing});
        return QueueSettle(ino, inode);
      }
      const absl::Status erased = EraseOrphan(ino, *record, inode->marked);
      if (!erased.ok()) {
        LogWarn("unlinked file stays until the next start ino=", Raw(ino),
                " error=", erased.ToString());
      } else {
        OnRemoved({ino, /*orphaned=*/false, *record});
      }
      return open_.Erase(ino);
    }
  }
  if (inode->writers > 0 || inode->foreign) return;
  if (!writer && !inode->marked && !inode->queued) {
    // All that a reader can leave behind is an access time.
    const auto record = shard_->GetInode(ino);
    if (record.ok() && !AccessTimeMoves(*record)) {
      if (!inode->open()) open_.Erase(ino);
      return;
    }
  }
  QueueSettle(ino, inode);
}

bool LocalFileSystem::AccessTimeMoves(const InodeRecord& record) const {
  // relatime: once after each change, and once a day.
  constexpr time_t kDay = 24 * 60 * 60;
  return !relatime_ || !(record.mtime < record.atime) || !(record.ctime < record.atime) ||
         clock_->Now().tv_sec - record.atime.tv_sec >= kDay || record.attr_epoch != attr_epoch_;
}

void LocalFileSystem::Release(HandleId handle) {
  OpenFile* const file = FileOf(handle);
  locks_.DropHandle(file->ino, handle);
  if (const int kept = file->kept.load(std::memory_order_acquire); kept >= 0) {
    close(kept);
    kept_descriptors_.fetch_sub(1, std::memory_order_relaxed);
  }
  if (fetcher_ != nullptr) NoteUse(file->ino);
  {
    StripeLocks::Hold hold(&shard_->locks(), {file->ino});
    Unpin(file->ino, file->inode, file->writes());
  }
  delete file;
}

void LocalFileSystem::Flush(HandleId handle, uint64_t owner, DoneStatus done) {
  locks_.DropOwner(FileOf(handle)->ino, owner);
  done(absl::OkStatus());
}

void LocalFileSystem::Sync(HandleId handle, bool data_only, DoneStatus done) {
  if (unsafe_sync_) return done(absl::OkStatus());
  io_->Run([this, file = FileOf(handle), data_only, done = std::move(done)]() mutable {
    const Descriptor fd(this, file, O_RDONLY);
    absl::Status status = fd.status();
    if (status.ok() && (data_only ? fdatasync(fd.get()) : fsync(fd.get())) != 0) {
      status = ErrnoStatus("sync of a file");
    }
    {
      StripeLocks::Hold hold(&shard_->locks(), {file->ino});
      // The kernel reports a lost write once; an application may ask again.
      if (!status.ok() && file->inode->data_error.ok()) {
        LogError("sync of a file failed ino=", Raw(file->ino), " error=", status.ToString());
        file->inode->data_error = status;
        MutexLock lock(&unsound_mutex_);
        if (fetcher_ != nullptr) unsound_.insert(file->ino);
      }
      if (status.ok()) status = file->inode->data_error;
    }
    if (!status.ok()) return done(std::move(status));
    syncer_->Sync([done = std::move(done)](absl::Status s) mutable { done(std::move(s)); });
  });
}

void LocalFileSystem::SyncDirectory(InodeId, DoneStatus done) {
  if (unsafe_sync_) return done(absl::OkStatus());
  syncer_->Sync([done = std::move(done)](absl::Status s) mutable { done(std::move(s)); });
}

// True if both ends of the range are in the page cache: readahead brings runs.
bool LocalFileSystem::IsResident(int fd, uint64_t offset, size_t size) const {
  if (chunks_->in_memory()) return true;
  char byte;
  iovec iov{&byte, 1};
  const uint64_t last = offset + size - 1;
  // Not the last one alone: behind the end of the file nothing has to be resident.
  if (preadv2(fd, &iov, 1, static_cast<off_t>(offset), RWF_NOWAIT) < 0) return false;
  return offset / kPageBytes == last / kPageBytes ||
         preadv2(fd, &iov, 1, static_cast<off_t>(last), RWF_NOWAIT) >= 0;
}

void LocalFileSystem::Read(HandleId handle, uint64_t offset, size_t size,
                           Done<ReadResult> done) {
  OpenFile* const file = FileOf(handle);
  if (size == 0) return done(ReadResult{});
  auto fd = Descriptor::ForData(this, file);
  if (!fd.status().ok()) return done(fd.status());
  if (IsResident(fd.get(), offset, size)) return done(ReadResult{fd.get(), offset, size});
  io_->Run([fd = std::move(fd), offset, size, done = std::move(done)]() mutable {
    done(ReadResult{fd.get(), offset, size});
  });
}

void LocalFileSystem::Write(HandleId handle, uint64_t offset, WriteMode mode,
                            WriteSource* source, Done<size_t> done) {
  OpenFile* const file = FileOf(handle);
  const Descriptor fd = mode.append ? Descriptor(this, file, O_RDWR | O_APPEND)
                                    : Descriptor::ForData(this, file);
  if (!fd.status().ok()) return done(fd.status());
  const bool later = file->slow || IsAtLimit();
  const absl::StatusOr<size_t> written =
      later ? PosixError(ENOSPC) : source->WriteTo(fd.get(), offset);
  if (later || IsFull(written.status())) {
    absl::StatusOr<std::shared_ptr<char[]>> bytes = source->Take();
    if (!bytes.ok()) return done(bytes.status());
    if (file->slow && !IsAtLimit()) {
      return WriteSlowly(handle, offset, mode, *std::move(bytes), source->size(), std::move(done));
    }
    return WriteWithRoom(handle, offset, mode, *std::move(bytes), source->size(), std::move(done));
  }
  if (!written.ok()) return done(written.status());
  EndWrite(handle, mode, *written, std::move(done));
}

void LocalFileSystem::EndWrite(HandleId handle, WriteMode mode, size_t written,
                               Done<size_t> done) {
  OpenFile* const file = FileOf(handle);
  if (mode.kill_privileges) {
    StripeLocks::Hold hold(&shard_->locks(), {file->ino});
    SetAttrRequest request;
    request.fields = kKillPrivileges;
    const absl::Status killed = ApplyAttr(file->ino, request, /*size_changed=*/true).status();
    if (!killed.ok()) return done(killed);
  }
  if (!(file->flags & O_DSYNC)) return done(written);
  Sync(handle, (file->flags & O_SYNC) != O_SYNC,
       [written, done = std::move(done)](absl::Status s) mutable {
         if (!s.ok()) return done(std::move(s));
         done(written);
       });
}

void LocalFileSystem::WriteSlowly(HandleId handle, uint64_t offset, WriteMode mode,
                                  std::shared_ptr<char[]> bytes, size_t size,
                                  Done<size_t> done) {
  io_->Run([this, handle, offset, mode, bytes = std::move(bytes), size,
            done = std::move(done)]() mutable {
    OpenFile* const file = FileOf(handle);
    const Descriptor fd(this, file, mode.append ? O_RDWR | O_APPEND : O_RDWR);
    if (!fd.status().ok()) return done(fd.status());
    const ssize_t written = pwrite(fd.get(), bytes.get(), size, static_cast<off_t>(offset));
    if (written >= 0) return EndWrite(handle, mode, static_cast<size_t>(written), std::move(done));
    const absl::Status failed = PosixError(errno);
    if (!IsFull(failed)) return done(failed);
    WriteWithRoom(handle, offset, mode, std::move(bytes), size, std::move(done));
  });
}

void LocalFileSystem::WriteWithRoom(HandleId handle, uint64_t offset, WriteMode mode,
                                    std::shared_ptr<char[]> bytes, size_t size,
                                    Done<size_t> done) {
  FetchFirst<Done<size_t>>(
      NeedsBackend({BackendNeed::kRoom}), std::move(done),
      [this, handle, offset, mode, bytes = std::move(bytes), size](Done<size_t> d) mutable {
        WriteSlowly(handle, offset, mode, std::move(bytes), size, std::move(d));
      });
}

absl::StatusOr<size_t> LocalFileSystem::ReadInto(HandleId handle, uint64_t offset, char* bytes,
                                                 size_t size, bool wait) {
  const Descriptor fd = Descriptor::ForData(this, FileOf(handle));
  if (!fd.status().ok()) return fd.status();
  // tmpfs refuses NOWAIT, and has nothing to wait for.
  const int flags = wait || chunks_->in_memory() ? 0 : RWF_NOWAIT;
  size_t have = 0;
  while (have < size) {
    iovec iov{bytes + have, size - have};
    const ssize_t n = preadv2(fd.get(), &iov, 1, static_cast<off_t>(offset + have), flags);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return PosixError(errno);
    if (n == 0) break;
    have += static_cast<size_t>(n);
  }
  return have;
}

bool LocalFileSystem::WriteNow(HandleId handle, uint64_t offset, absl::string_view bytes) {
  OpenFile* const file = FileOf(handle);
  // A part of it might be written, and others would see that; of a page, all or nothing.
  const bool in_page =
      !bytes.empty() && offset / kPageBytes == (offset + bytes.size() - 1) / kPageBytes;
  // XFS looks for space by writing back all there is, NOWAIT or not.
  if (!in_page || (file->flags & O_DSYNC) ||
      space_is_short_.load(std::memory_order_relaxed)) {
    return false;
  }
  const Descriptor fd = Descriptor::ForData(this, file);
  if (!fd.status().ok()) return false;
  iovec iov{const_cast<char*>(bytes.data()), bytes.size()};
  // Not without NOWAIT where nothing is to be waited for (tmpfs): whoever has the
  // file's lock may be waiting, in a page fault, for what this thread is to bring.
  return pwritev2(fd.get(), &iov, 1, static_cast<off_t>(offset), RWF_NOWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

void LocalFileSystem::Allocate(HandleId handle, int mode, uint64_t offset, uint64_t length,
                               bool kill_privileges, DoneStatus done) {
  io_->Run([this, file = FileOf(handle), mode, offset, length, kill_privileges,
            done = std::move(done)]() mutable {
    const Descriptor fd(this, file, O_RDWR);
    if (!fd.status().ok()) return done(fd.status());
    const bool full = IsAtLimit();
    if (full ||
        fallocate(fd.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) {
      const absl::Status failed = full ? PosixError(ENOSPC) : PosixError(errno);
      if (!IsFull(failed)) return done(failed);
      return FetchFirst<DoneStatus>(
          NeedsBackend({BackendNeed::kRoom}), std::move(done),
          [this, file, mode, offset, length, kill_privileges](DoneStatus d) {
            Allocate(HandleOf(file), mode, offset, length, kill_privileges, std::move(d));
          });
    }
    if (kill_privileges) {
      StripeLocks::Hold hold(&shard_->locks(), {file->ino});
      SetAttrRequest request;
      request.fields = kKillPrivileges;
      return done(ApplyAttr(file->ino, request, /*size_changed=*/true).status());
    }
    done(absl::OkStatus());
  });
}

void LocalFileSystem::CopyRange(HandleId from, uint64_t from_offset, HandleId to,
                                uint64_t to_offset, uint64_t length, Done<uint64_t> done) {
  io_->Run([this, from = FileOf(from), from_offset, to = FileOf(to), to_offset, length,
            done = std::move(done)]() mutable {
    const Descriptor in(this, from, O_RDONLY);
    const Descriptor out(this, to, O_RDWR);
    if (!in.status().ok()) return done(in.status());
    if (!out.status().ok()) return done(out.status());
    off64_t in_at = static_cast<off64_t>(from_offset);
    off64_t out_at = static_cast<off64_t>(to_offset);
    const ssize_t copied = copy_file_range(in.get(), &in_at, out.get(), &out_at, length, 0);
    if (const absl::Status failed = copied < 0 ? PosixError(errno) : absl::OkStatus();
        IsFull(failed)) {
      return FetchFirst<Done<uint64_t>>(
          NeedsBackend({BackendNeed::kRoom}), std::move(done),
          [this, from, from_offset, to, to_offset, length](Done<uint64_t> d) {
            CopyRange(HandleOf(from), from_offset, HandleOf(to), to_offset, length, std::move(d));
          });
    }
    if (copied < 0) return done(PosixError(errno));
    done(static_cast<uint64_t>(copied));
  });
}

void LocalFileSystem::Seek(HandleId handle, uint64_t offset, int whence, Done<uint64_t> done) {
  // A descriptor of its own: the kept one's position is not ours to move.
  const auto fd = chunks_->OpenFile(FileOf(handle)->backing, O_RDONLY);
  if (!fd.ok()) return done(PosixError(EIO));
  const off_t at = lseek(fd->get(), static_cast<off_t>(offset), whence);
  if (at < 0) return done(PosixError(errno));
  done(static_cast<uint64_t>(at));
}

absl::StatusOr<struct statvfs> LocalFileSystem::Space() const {
  CFS_ASSIGN_OR_RETURN(struct statvfs space, chunks_->Space());
  space.f_namemax = kNameBytesMax;
  return space;
}

uint64_t RoomForFiles(const struct statvfs& space) {
  const uint64_t unit = space.f_frsize;
  const uint64_t floor = std::min(kSpillBytesMax, space.f_blocks * unit / kSpillShare);
  const uint64_t free = space.f_bavail * unit;
  // Some file systems do not count inodes.
  const bool numbers = space.f_files == 0 || space.f_favail > kSpareInodes;
  return numbers && free > floor ? free - floor : 0;
}

bool LocalFileSystem::HasRoomForFiles() const {
  if (!space_is_short_.load(std::memory_order_relaxed)) return true;
  const absl::StatusOr<struct statvfs> space = chunks_->Space();
  return space.ok() && RoomForFiles(*space) > 0;
}

void LocalFileSystem::StatFs(Done<struct statvfs> done) { done(Space()); }

void LocalFileSystem::GetLock(HandleId handle, uint64_t owner, FileLock lock,
                              Done<FileLock> done) {
  done(locks_.Test(FileOf(handle)->ino, owner, lock));
}

void LocalFileSystem::SetLock(HandleId handle, uint64_t owner, FileLock lock, bool flock,
                              bool wait, LockRequestId id, DoneStatus done) {
  locks_.Set(flock ? LockTable::Space::kWholeFile : LockTable::Space::kRecord,
             FileOf(handle)->ino, handle, owner, lock, wait, id, std::move(done));
}

void LocalFileSystem::CancelLock(LockRequestId id) { locks_.Cancel(id); }

absl::StatusOr<UniqueFd> LocalFileSystem::OpenBacking(BackingId backing) {
  return chunks_->OpenFile(backing, O_RDONLY | O_NONBLOCK);
}

void LocalFileSystem::ForgetOpens() {
  for (const InodeId ino : open_.All()) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    OpenInode* const open = open_.Find(ino);
    if (open == nullptr || !open->open() || open->ghost || open->foreign) continue;
    open->readers = open->writers = 0;
    QueueSettle(ino, open);
  }
}

// ---------------------------------------------------------------- background

void LocalFileSystem::QueueSettle(InodeId ino, OpenInode* inode) {
  if (inode->queued) return;
  inode->queued = true;
  MutexLock lock(&background_mutex_);
  settle_.push_back(ino);
  if (background_waits_) background_wake_.Signal();
}

// Whether the inode can be settled now. If not, it is queued again where that
// is of use.
bool LocalFileSystem::ProbeLocked(InodeId ino) {
  OpenInode* const open = open_.Find(ino);
  if (open == nullptr) return false;
  if (open->writers > 0) {
    open->queued = false;  // Its release comes back here.
    return false;
  }
  if (!open->maybe_writer || open->probed) return true;
  const absl::StatusOr<bool> busy = chunks_->HasWriter(open->backing);
  open->probed = busy.ok() ? !*busy : ErrnoOf(busy.status()) == ENOENT;
  if (!open->probed) {
    // A mapping or a ghost: look again in a second.
    MutexLock lock(&background_mutex_);
    settle_busy_.push_back(ino);
  }
  return open->probed;
}

void LocalFileSystem::SettleBatch(absl::Span<const InodeId> batch, uint64_t settled) {
  struct Settling {
    InodeId ino;
    OpenInode* open;
    bool unmark;
  };
  std::vector<Settling> settling;
  settling.reserve(batch.size());
  StripeLocks::Hold hold(&shard_->locks(), batch);
  Shard::Update update(shard_.get());
  for (const InodeId ino : batch) {
    // The probe may be a moment old.
    if (!ProbeLocked(ino)) continue;
    OpenInode* const open = open_.Find(ino);
    const auto record = shard_->GetInode(ino);
    if (absl::IsNotFound(record.status()) || open->foreign) {
      // Unlinked meanwhile, its mark with it; or another node's by now.
      open->queued = false;
      if (!open->open()) open_.Erase(ino);
      continue;
    }
    InodeRecord merged = record.ok() ? *record : InodeRecord();
    if (!record.ok() || !MergeBacking(&merged).ok()) {
      MutexLock lock(&background_mutex_);
      settle_busy_.push_back(ino);
      continue;
    }
    merged.attr_epoch = attr_epoch_;
    if (merged.size != record->size || merged.blocks != record->blocks ||
        !(merged.mtime == record->mtime) || !(merged.atime == record->atime) ||
        !(merged.ctime == record->ctime) || merged.attr_epoch != record->attr_epoch) {
      update.PutInode(ino, std::move(merged));
    }
    const bool unmark = open->marked && Raw(open->backing) < settled;
    if (unmark) update.DeleteQueue(QueueKind::kOpen, ino);
    settling.push_back({ino, open, unmark});
  }
  const absl::Status status = update.Commit();
  for (const auto& [ino, open, unmark] : settling) {
    if (status.ok()) {
      open->maybe_writer = false;
      if (unmark) open->marked = false;
    }
    open->queued = !status.ok() || open->marked;
    if (open->queued) {
      MutexLock lock(&background_mutex_);
      settle_later_.push_back(ino);
    } else if (!open->open()) {
      open_.Erase(ino);
    }
  }
}

void LocalFileSystem::SettleSome() {
  std::deque<InodeId> queue;
  {
    MutexLock lock(&background_mutex_);
    queue.swap(settle_);
  }
  if (queue.empty()) return;
  // Written before any mark of a number below it goes.
  uint64_t settled = chunks_->settled();
  if (!state_->SetSettled(settled).ok()) settled = 0;
  std::vector<InodeId> batch;
  batch.reserve(StripeLocks::Hold::kMax);
  for (size_t i = 0; i < queue.size(); ++i) {
    {
      // The slow part one by one, so that nobody else waits for it.
      StripeLocks::Hold hold(&shard_->locks(), {queue[i]});
      if (ProbeLocked(queue[i])) batch.push_back(queue[i]);
    }
    if (batch.size() == StripeLocks::Hold::kMax || i + 1 == queue.size()) {
      SettleBatch(batch, settled);
      batch.clear();
    }
  }
}

void LocalFileSystem::ReapSome(bool all) {
  // Only for an evictor somebody else waits until it is done.
  const MutexLockMaybe reaping(fetcher_ != nullptr ? &reap_mutex_ : nullptr);
  std::vector<BackingId> doomed;
  {
    MutexLock lock(&background_mutex_);
    doomed.swap(doomed_);
  }
  if (doomed.empty()) return;
  // The record that named a file must be gone for good before the file is.
  Mutex mutex;
  CondVar synced;
  bool finished = false;
  absl::Status status;
  syncer_->Sync([&](absl::Status s) {
    MutexLock lock(&mutex);
    status = std::move(s);
    finished = true;
    synced.Signal();
  });
  {
    MutexLock lock(&mutex);
    while (!finished) synced.Wait(&mutex);
  }
  if (!status.ok()) {
    // They are in the store, too: the next start removes them.
    if (fetcher_ == nullptr) return;
    MutexLock lock(&background_mutex_);
    doomed_.insert(doomed_.end(), doomed.begin(), doomed.end());
    return;
  }
  constexpr size_t kBatch = 256;
  for (size_t i = 0; i < doomed.size(); i += kBatch) {
    Shard::Update update(shard_.get());
    for (size_t j = i; j < std::min(doomed.size(), i + kBatch); ++j) {
      const absl::Status removed = chunks_->Remove(doomed[j]);
      if (removed.ok() || ErrnoOf(removed) == ENOENT) update.DeleteDoomed(doomed[j]);
    }
    update.Commit().IgnoreError();  // Removing a file twice is no harm.
    if (!all) {
      // What waits for settling is more urgent than space.
      SettleSome();
    }
  }
}

void LocalFileSystem::RunBackground() {
  NameThread("cfs-background");
  using Clock = SteadyClock;
  constexpr auto kGather = std::chrono::milliseconds(5);
  constexpr auto kLater = std::chrono::milliseconds(100);
  constexpr auto kSecond = std::chrono::seconds(1);
  Clock::time_point next_later = Clock::now() + kLater;
  Clock::time_point next_second = Clock::now() + kSecond;
  for (;;) {
    {
      MutexLock lock(&background_mutex_);
      if (stopping_) return;
      if (settle_.empty()) {
        background_waits_ = true;
        background_wake_.WaitFor(&background_mutex_, kLater);
        background_waits_ = false;
      }
      // A little time lets one pass serve many.
      if (!settle_.empty() && !stopping_) background_wake_.WaitFor(&background_mutex_, kGather);
      if (stopping_) return;
    }
    SettleSome();
    const absl::Status reserved = state_->TopUp();
    if (!reserved.ok()) LogWarn("cannot reserve numbers, retrying error=", reserved.ToString());
    const Clock::time_point now = Clock::now();
    if (now >= next_later) {
      next_later = now + kLater;
      const absl::StatusOr<struct statvfs> space = chunks_->Space();
      space_is_short_.store(space.ok() && space->f_bavail < space->f_blocks / kShortSpaceShare,
                            std::memory_order_relaxed);
      MutexLock lock(&background_mutex_);
      settle_.insert(settle_.end(), settle_later_.begin(), settle_later_.end());
      settle_later_.clear();
    }
    bool reap = now >= next_second;
    {
      MutexLock lock(&background_mutex_);
      if (reap) {
        settle_.insert(settle_.end(), settle_busy_.begin(), settle_busy_.end());
        settle_busy_.clear();
      }
      reap |= doomed_.size() >= kDoomedFilesMax;
    }
    if (reap) {
      next_second = now + kSecond;
      store_->KeepReserve();
      EndOldGhosts();
      ReapSome(/*all=*/false);
    }
  }
}

absl::Status LocalFileSystem::Close() {
  CFS_CHECK(background_.joinable());
  {
    MutexLock lock(&background_mutex_);
    stopping_ = true;
    background_wake_.Signal();
  }
  background_.join();
  locks_.CancelAll();
  io_.reset();  // Runs what is queued.
  chunks_->StopPool();
  // The pool's numbers are settled now, so that marks can go; twice, for what
  // waits for its number.
  for (int pass = 0; pass < 2; ++pass) {
    {
      MutexLock lock(&background_mutex_);
      for (std::deque<InodeId>* waiting : {&settle_later_, &settle_busy_}) {
        settle_.insert(settle_.end(), waiting->begin(), waiting->end());
        waiting->clear();
      }
    }
    SettleSome();
  }
  std::vector<InodeId> ghosts;
  {
    MutexLock lock(&ghost_mutex_);
    for (const auto& [ino, record] : ghosts_) ghosts.push_back(ino);
  }
  for (InodeId ino : ghosts) EndGhost(ino);
  ReapSome(/*all=*/true);
  CFS_RETURN_IF_ERROR(chunks_->SyncAll());
  {
    // The next start takes what is on the backend from there.
    MutexLock lock(&unsound_mutex_);
    if (!unsound_.empty()) return absl::DataLossError("some files could not be synced");
  }
  return state_->MarkClean();
}

}  // namespace cfs
