#include "cfs/meta/namespace.h"

#include <dirent.h>
#include <linux/fs.h>

#include <cerrno>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/xattr.h"

namespace cfs {
namespace {

uint8_t TypeOf(uint32_t mode) { return static_cast<uint8_t>(IFTODT(mode)); }

}  // namespace

absl::Status CheckName(absl::string_view name) {
  if (name.size() > kNameBytesMax) return PosixError(ENAMETOOLONG);
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(absl::string_view("/\0", 2)) != absl::string_view::npos) {
    return PosixError(EINVAL);
  }
  return absl::OkStatus();
}

absl::Status Namespace::Format(uint32_t uid, uint32_t gid) {
  StripeLocks::Hold hold(&records_->locks(), {kRootInode});
  const timespec now = clock_->Now();
  InodeRecord root;
  root.mode = S_IFDIR | 0755;
  root.nlink = 1;
  root.uid = uid;
  root.gid = gid;
  root.atime = root.mtime = root.ctime = root.btime = now;
  root.parent = kRootInode;
  Records::Update update(records_, Records::Update::Purpose::kRequested);
  update.PutInode(kRootInode, root);
  return update.Commit();
}

absl::StatusOr<InodeRecord> Namespace::GetDirectory(InodeId dir) {
  CFS_ASSIGN_OR_RETURN(InodeRecord record, records_->GetInode(dir));
  if (!record.IsDirectory()) return PosixError(ENOTDIR);
  if (record.nlink == 0) return NotFound();  // Removed, but still somebody's.
  return record;
}

absl::StatusOr<InodeId> Namespace::Peek(InodeId dir, absl::string_view name) {
  StripeLocks::Hold hold(&records_->locks(), {dir});
  const auto dentry = records_->GetDentry(dir, name);
  if (dentry.ok()) return dentry->ino;
  if (absl::IsNotFound(dentry.status())) return kNoInode;
  return dentry.status();
}

absl::Status Namespace::ChangeBucket(InodeId dir, int entries, int subdirs, const timespec& now,
                                     Records::Update* update) {
  CFS_ASSIGN_OR_RETURN(BucketRecord bucket, records_->GetBucket(dir));
  if ((entries < 0 && bucket.entries == 0) || (subdirs < 0 && bucket.subdirs == 0)) {
    return absl::DataLossError("bucket counts fewer entries than there are");
  }
  bucket.entries += entries;
  bucket.subdirs += subdirs;
  bucket.mtime = bucket.ctime = now;
  update->PutBucket(dir, bucket);
  return absl::OkStatus();
}

absl::Status Namespace::Inherit(const Caller& caller, InodeId dir, const InodeRecord& parent,
                                NewInode* inode, Records::Update* update) {
  InodeRecord& r = inode->record;
  r.uid = caller.uid;
  r.gid = caller.gid;
  if (parent.mode & S_ISGID) {
    r.gid = parent.gid;
    if (r.IsDirectory()) r.mode |= S_ISGID;
  }
  if (r.IsDirectory() && parent.xattr_list_bytes > 0) {
    const auto placement = records_->GetXattr(dir, kPlacementXattr);
    if (!placement.ok() && !absl::IsNotFound(placement.status())) return placement.status();
    if (placement.ok()) AddXattr(inode->ino, kPlacementXattr, *placement, &r, update);
  }
  if (S_ISLNK(r.mode)) return absl::OkStatus();
  if (!(parent.flags & kHasDefaultAcl)) {
    r.mode &= ~(caller.umask & 0777u);
    return absl::OkStatus();
  }
  CFS_ASSIGN_OR_RETURN(const std::string xattr, records_->GetXattr(dir, kDefaultAclXattr));
  CFS_ASSIGN_OR_RETURN(Acl acl, Acl::Parse(xattr));
  if (r.IsDirectory()) {
    AddXattr(inode->ino, kDefaultAclXattr, xattr, &r, update);
    r.flags |= kHasDefaultAcl;
  }
  r.mode = acl.InheritInto(r.mode);
  if (!acl.IsMinimal()) {
    AddXattr(inode->ino, kAccessAclXattr, acl.Encode(), &r, update);
    r.flags |= kHasAccessAcl;
  }
  return absl::OkStatus();
}

absl::StatusOr<InodeRecord> Namespace::Create(const Caller& caller, InodeId dir,
                                              absl::string_view name, NewInode inode) {
  CFS_RETURN_IF_ERROR(CheckName(name));
  StripeLocks::Hold hold(&records_->locks(), {dir, inode.ino});
  CFS_ASSIGN_OR_RETURN(const InodeRecord parent, GetDirectory(dir));
  const auto existing = records_->GetDentry(dir, name);
  if (existing.ok()) return PosixError(EEXIST);
  if (!absl::IsNotFound(existing.status())) return existing.status();

  const timespec now = inode.now.value_or(clock_->Now());
  Records::Update update(records_, Records::Update::Purpose::kRequested);
  CFS_RETURN_IF_ERROR(Inherit(caller, dir, parent, &inode, &update));
  InodeRecord& r = inode.record;
  const bool is_directory = r.IsDirectory();
  r.nlink = 1;
  r.atime = r.mtime = r.ctime = r.btime = now;
  if (is_directory) r.parent = dir;
  update.PutInode(inode.ino, r);
  update.PutDentry(dir, name, {inode.ino, TypeOf(r.mode)});
  CFS_RETURN_IF_ERROR(ChangeBucket(dir, 1, is_directory ? 1 : 0, now, &update));
  if (inode.open_mark) update.PutQueue(QueueKind::kOpen, inode.ino, r.backing);
  CFS_RETURN_IF_ERROR(update.Commit());
  return r;
}

absl::StatusOr<InodeRecord> Namespace::CreateOrphan(const Caller& caller, InodeId dir,
                                                    NewInode inode) {
  StripeLocks::Hold hold(&records_->locks(), {dir, inode.ino});
  CFS_ASSIGN_OR_RETURN(const InodeRecord parent, GetDirectory(dir));
  Records::Update update(records_, Records::Update::Purpose::kRequested);
  CFS_RETURN_IF_ERROR(Inherit(caller, dir, parent, &inode, &update));
  InodeRecord& r = inode.record;
  r.nlink = 0;
  r.atime = r.mtime = r.ctime = r.btime = inode.now.value_or(clock_->Now());
  update.PutInode(inode.ino, r);
  update.PutQueue(QueueKind::kOrphan, inode.ino, r.backing);
  if (inode.open_mark) update.PutQueue(QueueKind::kOpen, inode.ino, r.backing);
  CFS_RETURN_IF_ERROR(update.Commit());
  return r;
}

absl::StatusOr<InodeRecord> Namespace::Link(InodeId ino, InodeId dir, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckName(name));
  StripeLocks::Hold hold(&records_->locks(), {dir, ino});
  CFS_RETURN_IF_ERROR(GetDirectory(dir).status());
  CFS_ASSIGN_OR_RETURN(InodeRecord record, records_->GetInode(ino));
  if (record.IsDirectory()) return PosixError(EPERM);
  if (record.nlink >= kLinksMax) return PosixError(EMLINK);
  // Only what O_TMPFILE made may get a name again; the kernel of another node may
  // not know yet that there is none.
  if (record.nlink == 0 && !record.IsRegular()) return NotFound();
  if (record.nlink == 0 && !uses_->MayLink(ino)) return Busy();
  const auto existing = records_->GetDentry(dir, name);
  if (existing.ok()) return PosixError(EEXIST);
  if (!absl::IsNotFound(existing.status())) return existing.status();

  const timespec now = clock_->Now();
  Records::Update update(records_, Records::Update::Purpose::kRequested);
  // The kernel lets only O_TMPFILE files come back from no link at all.
  if (record.nlink == 0) update.DeleteQueue(QueueKind::kOrphan, ino);
  ++record.nlink;
  record.ctime = now;
  update.PutInode(ino, record);
  update.PutDentry(dir, name, {ino, TypeOf(record.mode)});
  CFS_RETURN_IF_ERROR(ChangeBucket(dir, 1, 0, now, &update));
  CFS_RETURN_IF_ERROR(update.Commit());
  return record;
}

absl::Status Namespace::EraseInode(InodeId ino, const InodeRecord& record, bool marked,
                                   Records::Update* update) {
  update->DeleteInode(ino);
  if (record.xattr_list_bytes > 0) {
    CFS_ASSIGN_OR_RETURN(const std::vector<std::string> names, records_->ListXattrs(ino));
    for (const std::string& name : names) update->DeleteXattr(ino, name);
  }
  if (record.IsDirectory()) update->DeleteBucket(ino);
  if (marked) update->DeleteQueue(QueueKind::kOpen, ino);
  if (record.backing != kNoBacking) update->PutDoomed(record.backing);
  return absl::OkStatus();
}

absl::Status Namespace::DropLink(InodeId ino, InodeRecord record, const timespec& now,
                                 Records::Update* update, Removed* removed) {
  if (record.nlink == 0) return absl::DataLossError("name of an inode without links");
  --record.nlink;
  record.ctime = now;
  if (record.nlink > 0) {
    update->PutInode(ino, std::move(record));
    return absl::OkStatus();
  }
  const InodeUse use = uses_->UseOf(ino, record);
  removed->ino = ino;
  removed->record = record;
  // Nobody tells us of opens of FIFOs and the like: they stay until forgotten.
  removed->orphaned = use.open || !record.IsRegular();
  if (removed->orphaned) {
    update->PutQueue(QueueKind::kOrphan, ino, record.backing);
    update->PutInode(ino, std::move(record));
    return absl::OkStatus();
  }
  return EraseInode(ino, record, use.marked, update);
}

void Namespace::OrphanDirectory(InodeId ino, InodeRecord record, const timespec& now,
                                Records::Update* update, Removed* removed) {
  record.nlink = 0;
  record.ctime = now;
  *removed = {ino, /*orphaned=*/true, record};
  update->PutQueue(QueueKind::kOrphan, ino, kNoBacking);
  update->PutInode(ino, std::move(record));
}

absl::Status Namespace::Commit(const Removed& removed, Records::Update* update) {
  CFS_RETURN_IF_ERROR(update->Commit());
  if (removed.ino != kNoInode) uses_->OnRemoved(removed);
  return absl::OkStatus();
}

absl::StatusOr<Removed> Namespace::Unlink(InodeId dir, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckName(name));
  for (;;) {
    CFS_ASSIGN_OR_RETURN(const InodeId ino, Peek(dir, name));
    if (ino == kNoInode) return NotFound();
    StripeLocks::Hold hold(&records_->locks(), {dir, ino});
    const auto dentry = records_->GetDentry(dir, name);
    if (!dentry.ok()) return dentry.status();
    if (dentry->ino != ino) continue;  // Replaced between Peek and the lock.
    absl::StatusOr<InodeRecord> record = records_->GetInode(ino);
    const bool lost = absl::IsNotFound(record.status());
    if (!lost) CFS_RETURN_IF_ERROR(record.status());
    if (lost ? dentry->type == DT_DIR : record->IsDirectory()) return PosixError(EISDIR);
    const timespec now = clock_->Now();
    Records::Update update(records_, Records::Update::Purpose::kRequested);
    Removed removed;
    update.DeleteDentry(dir, name);
    CFS_RETURN_IF_ERROR(ChangeBucket(dir, -1, 0, now, &update));
    if (!lost) CFS_RETURN_IF_ERROR(DropLink(ino, *std::move(record), now, &update, &removed));
    CFS_RETURN_IF_ERROR(Commit(removed, &update));
    return removed;
  }
}

absl::StatusOr<Removed> Namespace::RemoveDirectory(InodeId dir, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckName(name));
  for (;;) {
    CFS_ASSIGN_OR_RETURN(const InodeId ino, Peek(dir, name));
    if (ino == kNoInode) return NotFound();
    StripeLocks::Hold hold(&records_->locks(), {dir, ino});
    const auto dentry = records_->GetDentry(dir, name);
    if (!dentry.ok()) return dentry.status();
    if (dentry->ino != ino) continue;
    const bool lost = absl::IsNotFound(records_->GetInode(ino).status());
    if (lost && dentry->type != DT_DIR) return PosixError(ENOTDIR);
    InodeRecord record;
    if (!lost) {
      CFS_ASSIGN_OR_RETURN(record, GetDirectory(ino));
      if (record.flags & kNotImported) return NeedsBackend({BackendNeed::kNames, ino});
      CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, records_->GetBucket(ino));
      if (bucket.entries > 0) return PosixError(ENOTEMPTY);
    }
    const timespec now = clock_->Now();
    Records::Update update(records_, Records::Update::Purpose::kRequested);
    Removed removed;
    update.DeleteDentry(dir, name);
    CFS_RETURN_IF_ERROR(ChangeBucket(dir, -1, -1, now, &update));
    if (!lost) OrphanDirectory(ino, std::move(record), now, &update, &removed);
    CFS_RETURN_IF_ERROR(Commit(removed, &update));
    return removed;
  }
}

absl::StatusOr<Removed> Namespace::Drop(
    InodeId dir, absl::string_view name, InodeId ino, std::optional<uint32_t> instead,
    absl::FunctionRef<absl::Status(InodeRecord* record, Records::Update* update)> also) {
  StripeLocks::Hold hold(&records_->locks(), {dir, ino});
  const auto dentry = records_->GetDentry(dir, name);
  if (!dentry.ok() && !absl::IsNotFound(dentry.status())) return dentry.status();
  if (!dentry.ok() || dentry->ino != ino) return PosixError(EAGAIN, "the name has changed");
  CFS_ASSIGN_OR_RETURN(InodeRecord record, records_->GetInode(ino));
  const bool is_directory = record.IsDirectory();
  if (is_directory && !(record.flags & kNotImported)) {
    CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, records_->GetBucket(ino));
    if (bucket.entries > 0) return PosixError(ENOTEMPTY);
  }
  const timespec now = clock_->Now();
  Records::Update update(records_, Records::Update::Purpose::kAgreed);
  Removed removed;
  update.DeleteDentry(dir, name);
  CFS_RETURN_IF_ERROR(also(&record, &update));
  const int subdirs = (instead && S_ISDIR(*instead) ? 1 : 0) - (is_directory ? 1 : 0);
  CFS_RETURN_IF_ERROR(ChangeBucket(dir, instead ? 0 : -1, subdirs, now, &update));
  if (is_directory) {
    OrphanDirectory(ino, std::move(record), now, &update, &removed);
  } else {
    // What has other names has the times of the backend.
    const timespec ctime = record.ctime;
    CFS_RETURN_IF_ERROR(DropLink(ino, std::move(record), ctime, &update, &removed));
  }
  CFS_RETURN_IF_ERROR(Commit(removed, &update));
  return removed;
}

absl::StatusOr<bool> Namespace::IsBelow(InodeId dir, InodeId ancestor) {
  // directory_moves_ is held: no parent changes on the way up. But what a
  // transaction has read one after the other, while others moved them, may go
  // round for ever; it finds out that this was never so (Brent's cycle detection).
  InodeId seen = kNoInode;
  uint64_t steps = 0, steps_max = 1;
  for (InodeId at = dir; at != kRootInode;) {
    if (at == ancestor) return true;
    if (at == seen) return absl::DataLossError("directories are below each other");
    if (++steps == steps_max) {
      seen = at;
      steps = 0;
      steps_max *= 2;
    }
    StripeLocks::Hold hold(&records_->locks(), {at});
    CFS_ASSIGN_OR_RETURN(const InodeRecord record, GetDirectory(at));
    at = record.parent;
  }
  return ancestor == kRootInode;
}

absl::StatusOr<Renamed> Namespace::Rename(InodeId from_dir, absl::string_view from_name,
                                          InodeId to_dir, absl::string_view to_name,
                                          uint32_t flags) {
  CFS_RETURN_IF_ERROR(CheckName(from_name));
  CFS_RETURN_IF_ERROR(CheckName(to_name));
  if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0 ||
      flags == (RENAME_NOREPLACE | RENAME_EXCHANGE)) {
    return PosixError(EINVAL);
  }
  for (;;) {
    CFS_ASSIGN_OR_RETURN(const InodeId from_ino, Peek(from_dir, from_name));
    CFS_ASSIGN_OR_RETURN(const InodeId to_ino, Peek(to_dir, to_name));
    if (from_ino == kNoInode) return NotFound();
    bool changed = false;
    absl::StatusOr<Renamed> result =
        RenameLocked(from_dir, from_name, to_dir, to_name, flags, from_ino, to_ino, &changed);
    if (!changed) return result;
  }
}

absl::StatusOr<Renamed> Namespace::RenameLocked(InodeId from_dir, absl::string_view from_name,
                                                InodeId to_dir, absl::string_view to_name,
                                                uint32_t flags, InodeId from_ino, InodeId to_ino,
                                                bool* changed) {
  const bool exchange = flags & RENAME_EXCHANGE;
  const bool across = from_dir != to_dir;
  // Only a move of a directory to another parent can make a cycle; whether it
  // is one is known once the inode is read, so every move across looks.
  bool moves_directory = false;
  if (across) {
    for (InodeId ino : {from_ino, exchange ? to_ino : kNoInode}) {
      if (ino == kNoInode) continue;
      StripeLocks::Hold hold(&records_->locks(), {ino});
      const auto record = records_->GetInode(ino);
      if (record.ok() && record->IsDirectory()) moves_directory = true;
    }
  }
  if (moves_directory && !alone_) return NotOwned();
  const MutexLockMaybe moves(moves_directory ? &directory_moves_ : nullptr);
  if (moves_directory) {
    CFS_ASSIGN_OR_RETURN(const bool into_itself, IsBelow(to_dir, from_ino));
    if (into_itself) return PosixError(EINVAL);
    if (exchange && to_ino != kNoInode) {
      CFS_ASSIGN_OR_RETURN(const bool other, IsBelow(from_dir, to_ino));
      if (other) return PosixError(EINVAL);
    }
  }

  StripeLocks::Hold hold(&records_->locks(), {from_dir, to_dir, from_ino, to_ino});
  const auto from = records_->GetDentry(from_dir, from_name);
  const auto to = records_->GetDentry(to_dir, to_name);
  if (!from.ok() && !absl::IsNotFound(from.status())) return from.status();
  if (!to.ok() && !absl::IsNotFound(to.status())) return to.status();
  if ((from.ok() ? from->ino : kNoInode) != from_ino || (to.ok() ? to->ino : kNoInode) != to_ino) {
    *changed = true;
    return Renamed{};
  }
  CFS_RETURN_IF_ERROR(GetDirectory(to_dir).status());
  absl::StatusOr<InodeRecord> moved = records_->GetInode(from_ino);
  if (absl::IsNotFound(moved.status())) return PosixError(EIO, "the inode is lost");
  CFS_ASSIGN_OR_RETURN(InodeRecord source, std::move(moved));
  if (!across) CFS_CHECK(!moves_directory);

  const timespec now = clock_->Now();
  Records::Update update(records_, Records::Update::Purpose::kRequested);
  Renamed renamed;
  Removed& removed = renamed.removed;
  const int source_dir = source.IsDirectory() ? 1 : 0;
  if (to_ino == kNoInode) {
    if (exchange) return NotFound();
    update.DeleteDentry(from_dir, from_name);
    update.PutDentry(to_dir, to_name, {from_ino, TypeOf(source.mode)});
    if (across) {
      CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, -1, -source_dir, now, &update));
      CFS_RETURN_IF_ERROR(ChangeBucket(to_dir, 1, source_dir, now, &update));
    } else {
      CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, 0, 0, now, &update));
    }
  } else {
    if (flags & RENAME_NOREPLACE) return PosixError(EEXIST);
    // Two names of one inode: POSIX says to do nothing.
    if (to_ino == from_ino) return renamed;
    absl::StatusOr<InodeRecord> replaced = records_->GetInode(to_ino);
    const bool lost = absl::IsNotFound(replaced.status());
    if (!lost) CFS_RETURN_IF_ERROR(replaced.status());
    if (lost && exchange) return PosixError(EIO, "the inode is lost");
    InodeRecord target = lost ? InodeRecord() : *std::move(replaced);
    if (lost) target.mode = DTTOIF(to->type);
    const int target_dir = target.IsDirectory() ? 1 : 0;
    if (exchange) {
      update.PutDentry(from_dir, from_name, {to_ino, TypeOf(target.mode)});
      update.PutDentry(to_dir, to_name, {from_ino, TypeOf(source.mode)});
      if (across) {
        CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, 0, target_dir - source_dir, now, &update));
        CFS_RETURN_IF_ERROR(ChangeBucket(to_dir, 0, source_dir - target_dir, now, &update));
        if (target_dir) {
          target.parent = from_dir;
          renamed.moved[1] = to_ino;
        }
      } else {
        CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, 0, 0, now, &update));
      }
      target.ctime = now;
      update.PutInode(to_ino, std::move(target));
    } else {
      if (source_dir && !target_dir) return PosixError(ENOTDIR);
      if (!source_dir && target_dir) return PosixError(EISDIR);
      update.DeleteDentry(from_dir, from_name);
      update.PutDentry(to_dir, to_name, {from_ino, TypeOf(source.mode)});
      if (across) {
        CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, -1, -source_dir, now, &update));
        CFS_RETURN_IF_ERROR(ChangeBucket(to_dir, 0, source_dir - target_dir, now, &update));
      } else {
        CFS_RETURN_IF_ERROR(ChangeBucket(from_dir, -1, -target_dir, now, &update));
      }
      if (lost) {
        // Its name was all that was left.
      } else if (target_dir) {
        if (target.flags & kNotImported) return NeedsBackend({BackendNeed::kNames, to_ino});
        CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, records_->GetBucket(to_ino));
        if (bucket.entries > 0) return PosixError(ENOTEMPTY);
        OrphanDirectory(to_ino, std::move(target), now, &update, &removed);
      } else {
        CFS_RETURN_IF_ERROR(DropLink(to_ino, std::move(target), now, &update, &removed));
      }
    }
  }
  source.ctime = now;
  if (source_dir && across) {
    source.parent = to_dir;
    renamed.moved[0] = from_ino;
  }
  update.PutInode(from_ino, std::move(source));
  CFS_RETURN_IF_ERROR(Commit(removed, &update));
  return renamed;
}

}  // namespace cfs
