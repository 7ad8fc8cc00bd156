// What libfuse calls: decode, call the FileSystem, reply.
//
// A handler starts an operation and returns; the completion, which may run in
// another thread, owns the Reply. Names and fuse_file_info die with the handler.
#include <sys/file.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/fuse/kernel_order.h"
#include "cfs/fuse/mount.h"
#include "cfs/fuse/reply.h"

namespace cfs {
namespace {

Caller CallerOf(fuse_req_t req) {
  const fuse_ctx* ctx = fuse_req_ctx(req);
  return {ctx->uid, ctx->gid, ctx->pid, ctx->umask};
}

HandleId HandleOf(const fuse_file_info* info) { return HandleId(info->fh); }

// The kernel's own bit for "drop setuid and setgid" (FATTR_KILL_SUIDGID).
constexpr int kSetAttrKillPrivileges = 1 << 11;

uint32_t SetAttrFieldsOf(int to_set, uid_t uid) {
  // A write by somebody without CAP_FSETID to a setuid file comes as a SETATTR
  // that sets nothing, and so does anybody's to a file with capabilities.
  if (to_set == 0) return uid == 0 ? kKillCapability : kKillPrivileges;
  uint32_t fields = 0;
  if (to_set & FUSE_SET_ATTR_MODE) fields |= kSetMode;
  if (to_set & FUSE_SET_ATTR_UID) fields |= kSetUid;
  if (to_set & FUSE_SET_ATTR_GID) fields |= kSetGid;
  if (to_set & FUSE_SET_ATTR_SIZE) fields |= kSetSize;
  if (to_set & FUSE_SET_ATTR_ATIME) fields |= kSetAtime;
  if (to_set & FUSE_SET_ATTR_MTIME) fields |= kSetMtime;
  if (to_set & FUSE_SET_ATTR_ATIME_NOW) fields |= kSetAtime | kSetAtimeNow;
  if (to_set & FUSE_SET_ATTR_MTIME_NOW) fields |= kSetMtime | kSetMtimeNow;
  if (to_set & kSetAttrKillPrivileges) fields |= kKillPrivileges;
  return fields;
}

Done<Attr> ReplyEntry(fuse_req_t req) {
  return [reply = Reply(req)](absl::StatusOr<Attr> attr) mutable {
    if (!attr.ok()) return reply.Status(attr.status());
    reply.Entry(*attr);
  };
}

Done<Attr> ReplyAttributes(fuse_req_t req) {
  return [reply = Reply(req)](absl::StatusOr<Attr> attr) mutable {
    if (!attr.ok()) return reply.Status(attr.status());
    reply.Attributes(*attr);
  };
}

DoneStatus ReplyStatus(fuse_req_t req) {
  return [reply = Reply(req)](absl::Status status) mutable { reply.Status(status); };
}

FileLock LockOf(const struct flock& lock, int32_t pid) {
  FileLock result;
  result.start = static_cast<uint64_t>(lock.l_start);
  result.end = lock.l_len == 0 ? static_cast<uint64_t>(INT64_MAX)
                               : static_cast<uint64_t>(lock.l_start + lock.l_len - 1);
  result.type = lock.l_type;
  result.pid = pid;
  return result;
}

// The data of a WRITE, wherever libfuse has it.
class RequestData final : public WriteSource {
 public:
  // `buffer`, if any, is that of the thread, in which the request may be.
  RequestData(fuse_bufvec* source, fuse_buf* buffer) : source_(source), buffer_(buffer) {}

  size_t size() const override { return fuse_buf_size(source_); }
  absl::StatusOr<size_t> WriteTo(int fd, uint64_t offset) override {
    fuse_bufvec target = FUSE_BUFVEC_INIT(size());
    target.buf[0].flags = static_cast<fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
    target.buf[0].fd = fd;
    target.buf[0].pos = static_cast<off_t>(offset);
    return Copy(&target);
  }
  absl::StatusOr<std::shared_ptr<char[]>> Take() override {
    // libfuse makes itself another one, of 1 MiB and a page.
    constexpr size_t kTakenMin = 512 << 10;
    char* const mem = static_cast<char*>(source_->buf[0].mem);
    if (buffer_ != nullptr && source_->count == 1 && size() >= kTakenMin &&
        !(source_->buf[0].flags & FUSE_BUF_IS_FD) && mem >= buffer_->mem &&
        mem + size() <= static_cast<char*>(buffer_->mem) + buffer_->size) {
      const std::shared_ptr<void> whole(std::exchange(buffer_->mem, nullptr), free);
      return std::shared_ptr<char[]>(whole, mem);
    }
    std::shared_ptr<char[]> bytes(new char[size()]);
    fuse_bufvec target = FUSE_BUFVEC_INIT(size());
    target.buf[0].mem = bytes.get();
    const absl::StatusOr<size_t> copied = Copy(&target);
    if (!copied.ok()) return copied.status();
    if (*copied != size()) return PosixError(EIO);
    return bytes;
  }

 private:
  absl::StatusOr<size_t> Copy(fuse_bufvec* target) {
    const ssize_t copied = fuse_buf_copy(target, source_, static_cast<fuse_buf_copy_flags>(0));
    if (copied < 0) return PosixError(static_cast<int>(-copied));
    return static_cast<size_t>(copied);
  }

  fuse_bufvec* const source_;
  fuse_buf* const buffer_;
};

}  // namespace

struct Handlers {
  static Mount* Of(fuse_req_t req) {
    AfterRequest();
    return static_cast<Mount*>(fuse_req_userdata(req));
  }
  static FileSystem* Begin(fuse_req_t req, FuseOp op) {
    Mount* const mount = Of(req);
    mount->counters_.Count(op);
    return mount->fs_;
  }

  // For a request that changes names of `dir`.
  static FileSystem* BeginIn(fuse_req_t req, FuseOp op, fuse_ino_t dir) {
    Of(req)->ListingChanges(InodeId(dir));
    return Begin(req, op);
  }

  static void Init(void* userdata, fuse_conn_info* conn) {
    static_cast<Mount*>(userdata)->Init(conn);
  }

  // ------------------------------------------------------------------- names

  static void Lookup(fuse_req_t req, fuse_ino_t dir, const char* name) {
    Begin(req, FuseOp::lookup)
        ->Lookup(InodeId(dir), name, [reply = Reply(req)](absl::StatusOr<Attr> attr) mutable {
          if (attr.ok()) return reply.Entry(*attr);
          if (absl::IsNotFound(attr.status())) return reply.NoEntry();
          reply.Status(attr.status());
        });
  }

  static void ForgetOne(Mount* mount, fuse_ino_t ino) {
    mount->counters_.Count(FuseOp::forget);
    // By now the kernel may know the inode anew, and have listed it.
    mount->ListingChanges(InodeId(ino));
    mount->fs_->Forget(InodeId(ino));
  }

  static void Forget(fuse_req_t req, fuse_ino_t ino, uint64_t) {
    ForgetOne(Of(req), ino);
    fuse_reply_none(req);
  }

  static void ForgetMulti(fuse_req_t req, size_t count, fuse_forget_data* forgets) {
    for (size_t i = 0; i < count; ++i) ForgetOne(Of(req), forgets[i].ino);
    fuse_reply_none(req);
  }

  static void Mknod(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode, dev_t rdev) {
    BeginIn(req, FuseOp::mknod, dir)
        ->MakeNode(CallerOf(req), InodeId(dir), name, mode, rdev, ReplyEntry(req));
  }

  static void Mkdir(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode) {
    BeginIn(req, FuseOp::mkdir, dir)
        ->MakeDirectory(CallerOf(req), InodeId(dir), name, mode, ReplyEntry(req));
  }

  static void Symlink(fuse_req_t req, const char* target, fuse_ino_t dir, const char* name) {
    BeginIn(req, FuseOp::symlink, dir)
        ->MakeSymlink(CallerOf(req), InodeId(dir), name, target, ReplyEntry(req));
  }

  static void Link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t dir, const char* name) {
    BeginIn(req, FuseOp::link, dir)->Link(InodeId(ino), InodeId(dir), name, ReplyEntry(req));
  }

  static void Unlink(fuse_req_t req, fuse_ino_t dir, const char* name) {
    BeginIn(req, FuseOp::unlink, dir)->Unlink(InodeId(dir), name, ReplyStatus(req));
  }

  static void Rmdir(fuse_req_t req, fuse_ino_t dir, const char* name) {
    BeginIn(req, FuseOp::rmdir, dir)->RemoveDirectory(InodeId(dir), name, ReplyStatus(req));
  }

  static void Rename(fuse_req_t req, fuse_ino_t from_dir, const char* from_name,
                     fuse_ino_t to_dir, const char* to_name, unsigned flags) {
    Of(req)->ListingChanges(InodeId(to_dir));
    BeginIn(req, FuseOp::rename, from_dir)
        ->Rename(InodeId(from_dir), from_name, InodeId(to_dir), to_name, flags, ReplyStatus(req));
  }

  static void ReadLink(fuse_req_t req, fuse_ino_t ino) {
    Begin(req, FuseOp::readlink)
        ->ReadLink(InodeId(ino), [reply = Reply(req)](absl::StatusOr<std::string> target) mutable {
          if (!target.ok()) return reply.Status(target.status());
          reply.Link(*target);
        });
  }

  // -------------------------------------------------------------- attributes

  static void GetAttr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    Begin(req, FuseOp::getattr)->GetAttr(InodeId(ino), ReplyAttributes(req));
  }

  static void SetAttr(fuse_req_t req, fuse_ino_t ino, struct stat* st, int to_set,
                      fuse_file_info*) {
    SetAttrRequest request;
    request.fields = SetAttrFieldsOf(to_set, fuse_req_ctx(req)->uid);
    request.mode = st->st_mode;
    request.uid = st->st_uid;
    request.gid = st->st_gid;
    request.size = static_cast<uint64_t>(st->st_size);
    request.atime = st->st_atim;
    request.mtime = st->st_mtim;
    Begin(req, FuseOp::setattr)->SetAttr(InodeId(ino), request, ReplyAttributes(req));
  }

#ifdef CFS_FUSE_HAS_STATX
  static void Statx(fuse_req_t req, fuse_ino_t ino, int, int, fuse_file_info*) {
    Begin(req, FuseOp::statx)
        ->GetAttr(InodeId(ino), [reply = Reply(req)](absl::StatusOr<Attr> attr) mutable {
          if (!attr.ok()) return reply.Status(attr.status());
          const struct stat& st = attr->st;
          struct statx stx {};
          stx.stx_mask = STATX_BASIC_STATS | STATX_BTIME;
          stx.stx_blksize = static_cast<uint32_t>(st.st_blksize);
          stx.stx_nlink = static_cast<uint32_t>(st.st_nlink);
          stx.stx_uid = st.st_uid;
          stx.stx_gid = st.st_gid;
          stx.stx_mode = static_cast<uint16_t>(st.st_mode);
          stx.stx_ino = st.st_ino;
          stx.stx_size = static_cast<uint64_t>(st.st_size);
          stx.stx_blocks = static_cast<uint64_t>(st.st_blocks);
          const auto stamp = [](const timespec& t) {
            return statx_timestamp{t.tv_sec, static_cast<uint32_t>(t.tv_nsec), 0};
          };
          stx.stx_atime = stamp(st.st_atim);
          stx.stx_mtime = stamp(st.st_mtim);
          stx.stx_ctime = stamp(st.st_ctim);
          stx.stx_btime = stamp(attr->btime);
          stx.stx_rdev_major = major(st.st_rdev);
          stx.stx_rdev_minor = minor(st.st_rdev);
          reply.Statx(&stx, *attr);
        });
  }
#endif

  static void GetXattr(fuse_req_t req, fuse_ino_t ino, const char* name, size_t size) {
    Begin(req, FuseOp::getxattr)
        ->GetXattr(InodeId(ino), name,
                   [reply = Reply(req), size](absl::StatusOr<std::string> value) mutable {
                     if (!value.ok()) return reply.Status(value.status());
                     if (size == 0) return reply.XattrSize(value->size());
                     if (value->size() > size) return reply.Errno(ERANGE);
                     reply.Bytes(*value);
                   });
  }

  static void ListXattr(fuse_req_t req, fuse_ino_t ino, size_t size) {
    Begin(req, FuseOp::listxattr)
        ->ListXattrs(InodeId(ino),
                     // Only root may know of trusted attributes.
                     [reply = Reply(req), size,
                      trusted = fuse_req_ctx(req)->uid == 0](absl::StatusOr<std::vector<std::string>> names) mutable {
                       if (!names.ok()) return reply.Status(names.status());
                       std::string list;
                       for (const std::string& name : *names) {
                         if (!trusted && absl::StartsWith(name, "trusted.")) continue;
                         list.append(name).push_back('\0');
                       }
                       if (size == 0) return reply.XattrSize(list.size());
                       if (list.size() > size) return reply.Errno(ERANGE);
                       reply.Bytes(list);
                     });
  }

  static void SetXattr(fuse_req_t req, fuse_ino_t ino, const char* name, const char* value,
                       size_t size, int flags) {
    FileSystem* const fs = Begin(req, FuseOp::setxattr);
    const Caller caller = CallerOf(req);
    const absl::string_view bytes(value, size);
    if (caller.uid == 0 || absl::string_view(name) != "system.posix_acl_access") {
      return fs->SetXattr(InodeId(ino), name, bytes, flags, false, ReplyStatus(req));
    }
    // A setgid bit stays only with members of the file's group.
    std::vector<gid_t> groups(NGROUPS_MAX > 1024 ? 1024 : NGROUPS_MAX);
    const int count = fuse_req_getgroups(req, static_cast<int>(groups.size()), groups.data());
    groups.resize(count < 0 ? 0 : std::min<size_t>(static_cast<size_t>(count), groups.size()));
    groups.push_back(caller.gid);
    fs->GetAttr(InodeId(ino),
                [fs, ino, name = std::string(name), bytes = std::string(bytes), flags,
                 groups = std::move(groups),
                 done = ReplyStatus(req)](absl::StatusOr<Attr> attr) mutable {
                  if (!attr.ok()) return done(attr.status());
                  bool member = false;
                  for (const gid_t gid : groups) member |= gid == attr->st.st_gid;
                  fs->SetXattr(InodeId(ino), name, bytes, flags, !member, std::move(done));
                });
  }

  static void RemoveXattr(fuse_req_t req, fuse_ino_t ino, const char* name) {
    Begin(req, FuseOp::removexattr)->RemoveXattr(InodeId(ino), name, ReplyStatus(req));
  }

  static void StatFs(fuse_req_t req, fuse_ino_t) {
    Begin(req, FuseOp::statfs)
        ->StatFs([reply = Reply(req)](absl::StatusOr<struct statvfs> st) mutable {
          if (!st.ok()) return reply.Status(st.status());
          reply.StatFs(*st);
        });
  }

  // ------------------------------------------------------------- directories

  // ENOSYS: the kernel needs no handle of a directory, here or ever after, and
  // caches what it lists.
  static void OpenDir(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
    if (Of(req)->shared()) return Reply(req).Open(*info);
    Reply(req).Errno(ENOSYS);
  }

  static void List(fuse_req_t req, fuse_ino_t dir, size_t size, off_t offset, bool plus) {
    // What libfuse puts before a name, with and without attributes.
    constexpr size_t kDirentBytes = 24;
    constexpr size_t kDirentPlusBytes = 152;
    size = std::min(size, kRequestBytesMax);
    Begin(req, plus ? FuseOp::readdirplus : FuseOp::readdir)
        ->List(InodeId(dir), static_cast<uint64_t>(offset), size,
               plus ? kDirentPlusBytes : kDirentBytes, plus,
               [reply = Reply(req), size, plus, dir,
                mount = Of(req)](absl::StatusOr<std::vector<ListedEntry>> entries) mutable {
                 if (!entries.ok()) return reply.Status(entries.status());
                 mount->listed_.Add(InodeId(dir));
                 std::string buffer(size, '\0');
                 size_t used = 0;
                 for (const ListedEntry& listed : *entries) {
                   const DirectoryEntry& e = listed.entry;
                   const off_t next = static_cast<off_t>(e.next);
                   fuse_entry_param entry{};
                   const bool dots = e.name == "." || e.name == "..";
                   // The kernel counts no lookup for the dots, and takes nodeid
                   // 0 for "no attributes".
                   if (listed.has_attr && !dots) entry = reply.EntryOf(listed.attr);
                   entry.attr.st_ino = Raw(e.ino);
                   entry.attr.st_mode = static_cast<mode_t>(e.type) << 12;
                   if (listed.has_attr) entry.attr.st_mode = listed.attr.st.st_mode;
                   const size_t bytes =
                       plus ? fuse_add_direntry_plus(reply.request(), buffer.data() + used,
                                                     size - used, e.name.c_str(), &entry, next)
                            : fuse_add_direntry(reply.request(), buffer.data() + used,
                                                size - used, e.name.c_str(), &entry.attr, next);
                   if (bytes > size - used) break;
                   used += bytes;
                 }
                 reply.Bytes({buffer.data(), used});
               });
  }

  static void ReadDir(fuse_req_t req, fuse_ino_t dir, size_t size, off_t offset,
                      fuse_file_info*) {
    List(req, dir, size, offset, /*plus=*/false);
  }
  static void ReadDirPlus(fuse_req_t req, fuse_ino_t dir, size_t size, off_t offset,
                          fuse_file_info*) {
    List(req, dir, size, offset, /*plus=*/true);
  }

  static void FsyncDir(fuse_req_t req, fuse_ino_t dir, int, fuse_file_info*) {
    Begin(req, FuseOp::fsyncdir)->SyncDirectory(InodeId(dir), ReplyStatus(req));
  }

  // ------------------------------------------------------------------- files

  static void Open(fuse_req_t req, fuse_ino_t ino, fuse_file_info* info) {
    Begin(req, FuseOp::open)
        ->Open(InodeId(ino), info->flags, info->kill_suidgid,
               [mount = Of(req), info = *info,
                reply = Reply(req)](absl::StatusOr<OpenResult> open) mutable {
                 if (!open.ok()) return reply.Status(open.status());
                 mount->FillOpen(*open, &info);
                 reply.Open(info);
               });
  }

  static Done<CreateResult> ReplyCreate(fuse_req_t req, const fuse_file_info* info) {
    return [mount = Of(req), info = *info,
            reply = Reply(req)](absl::StatusOr<CreateResult> created) mutable {
      if (!created.ok()) return reply.Status(created.status());
      mount->FillOpen(created->open, &info);
      reply.Create(created->attr, info);
    };
  }

  static void Create(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode,
                     fuse_file_info* info) {
    BeginIn(req, FuseOp::create, dir)
        ->Create(CallerOf(req), InodeId(dir), name, mode, info->flags, ReplyCreate(req, info));
  }

  static void TmpFile(fuse_req_t req, fuse_ino_t dir, mode_t mode, fuse_file_info* info) {
    Begin(req, FuseOp::tmpfile)
        ->CreateUnnamed(CallerOf(req), InodeId(dir), mode, info->flags, ReplyCreate(req, info));
  }

  static void Release(fuse_req_t req, fuse_ino_t ino, fuse_file_info* info) {
    FileSystem* const fs = Begin(req, FuseOp::release);
    // The mode first: once the file system lets go, the inode may be opened in
    // another.
    if (!fs->IsRemote(HandleOf(info))) Of(req)->passthrough_->Release(InodeId(ino));
    fs->Release(HandleOf(info));
    Reply(req).Errno(0);
  }

  static void Flush(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
    Begin(req, FuseOp::flush)->Flush(HandleOf(info), info->lock_owner, ReplyStatus(req));
  }

  static void Fsync(fuse_req_t req, fuse_ino_t, int data_only, fuse_file_info* info) {
    Begin(req, FuseOp::fsync)->Sync(HandleOf(info), data_only != 0, ReplyStatus(req));
  }

  static void Read(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* info) {
    Begin(req, FuseOp::read)
        ->Read(HandleOf(info), static_cast<uint64_t>(offset), size,
               [mount = Of(req), reply = Reply(req)](absl::StatusOr<ReadResult> read) mutable {
                 if (!read.ok()) return reply.Status(read.status());
                 if (read->bytes != nullptr || read->size == 0) {
                   mount->counters_.read_bytes.fetch_add(read->size, std::memory_order_relaxed);
                   return reply.Bytes({read->bytes, read->size});
                 }
                 fuse_bufvec data = FUSE_BUFVEC_INIT(read->size);
                 data.buf[0].flags =
                     static_cast<fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
                 data.buf[0].fd = read->fd;
                 data.buf[0].pos = static_cast<off_t>(read->offset);
                 mount->counters_.read_bytes.fetch_add(read->size, std::memory_order_relaxed);
                 reply.Data(&data);
               });
  }

  static void WriteBuf(fuse_req_t req, fuse_ino_t, fuse_bufvec* source, off_t offset,
                       fuse_file_info* info) {
    RequestData data(source, Mount::request_buffer_);
    // What the kernel has in its cache it writes to where it belongs, whatever the
    // descriptor says.
    const WriteMode mode{.append = (info->flags & O_APPEND) != 0 && !info->writepage,
                         .kill_privileges = info->kill_suidgid != 0};
    Begin(req, FuseOp::write)
        ->Write(HandleOf(info), static_cast<uint64_t>(offset), mode, &data,
                [mount = Of(req), reply = Reply(req)](absl::StatusOr<size_t> written) mutable {
                  if (!written.ok()) return reply.Status(written.status());
                  mount->counters_.write_bytes.fetch_add(*written, std::memory_order_relaxed);
                  reply.Written(*written);
                });
  }

  static void Fallocate(fuse_req_t req, fuse_ino_t, int mode, off_t offset, off_t length,
                        fuse_file_info* info) {
    Begin(req, FuseOp::fallocate)
        ->Allocate(HandleOf(info), mode, static_cast<uint64_t>(offset),
                   static_cast<uint64_t>(length), fuse_req_ctx(req)->uid != 0, ReplyStatus(req));
  }

  static void CopyFileRange(fuse_req_t req, fuse_ino_t, off_t from_offset, fuse_file_info* from,
                            fuse_ino_t, off_t to_offset, fuse_file_info* to, size_t length, int) {
    Begin(req, FuseOp::copy_file_range)
        ->CopyRange(HandleOf(from), static_cast<uint64_t>(from_offset), HandleOf(to),
                    static_cast<uint64_t>(to_offset), length,
                    [reply = Reply(req)](absl::StatusOr<uint64_t> copied) mutable {
                      if (!copied.ok()) return reply.Status(copied.status());
                      reply.Written(*copied);
                    });
  }

  static void Seek(fuse_req_t req, fuse_ino_t, off_t offset, int whence, fuse_file_info* info) {
    Begin(req, FuseOp::lseek)
        ->Seek(HandleOf(info), static_cast<uint64_t>(offset), whence,
               [reply = Reply(req)](absl::StatusOr<uint64_t> at) mutable {
                 if (!at.ok()) return reply.Status(at.status());
                 reply.Offset(*at);
               });
  }

  // ------------------------------------------------------------------- locks

  static void GetLock(fuse_req_t req, fuse_ino_t, fuse_file_info* info, struct flock* lock) {
    Begin(req, FuseOp::getlk)
        ->GetLock(HandleOf(info), info->lock_owner, LockOf(*lock, lock->l_pid),
                  [reply = Reply(req)](absl::StatusOr<FileLock> found) mutable {
                    if (!found.ok()) return reply.Status(found.status());
                    struct flock lock {};
                    lock.l_whence = SEEK_SET;
                    lock.l_type = static_cast<short>(found->type);
                    lock.l_start = static_cast<off_t>(found->start);
                    lock.l_len = found->end >= static_cast<uint64_t>(INT64_MAX)
                                     ? 0
                                     : static_cast<off_t>(found->end - found->start + 1);
                    lock.l_pid = found->pid;
                    reply.Lock(lock);
                  });
  }

  // The waiter's process got a signal.
  static void Interrupted(fuse_req_t req, void* id) {
    Mount* const mount = Of(req);
    const uint64_t raw = reinterpret_cast<uint64_t>(id);
    {
      // It may not have begun to wait: SetLock looks here when it has.
      MutexLock lock(&mount->interrupted_mutex_);
      mount->interrupted_.insert(raw);
    }
    mount->fs_->CancelLock(LockRequestId(raw));
  }

  static void SetLock(fuse_req_t req, FuseOp op, const fuse_file_info* info, FileLock lock,
                      bool flock, bool wait) {
    FileSystem* const fs = Begin(req, op);
    Mount* const mount = Of(req);
    if (!wait || lock.type == F_UNLCK) {
      return fs->SetLock(HandleOf(info), info->lock_owner, lock, flock, false, LockRequestId{0},
                         ReplyStatus(req));
    }
    if (mount->abilities_.io_uring &&
        mount->lock_waits_.load(std::memory_order_relaxed) >= kRingLockWaitersMax) {
      // More waiters would leave the ring without entries for anybody else.
      return Reply(req).Errno(ENOLCK);
    }
    mount->lock_waits_.fetch_add(1, std::memory_order_relaxed);
    const uint64_t id = mount->next_lock_request_.fetch_add(1, std::memory_order_relaxed);
    fuse_req_interrupt_func(req, Interrupted, reinterpret_cast<void*>(id));
    fs->SetLock(HandleOf(info), info->lock_owner, lock, flock, true, LockRequestId(id),
                [mount, id, reply = Reply(req)](absl::Status status) mutable {
                  mount->lock_waits_.fetch_sub(1, std::memory_order_relaxed);
                  reply.Status(status);
                  MutexLock lock(&mount->interrupted_mutex_);
                  mount->interrupted_.erase(id);
                });
    bool interrupted;
    {
      MutexLock lock(&mount->interrupted_mutex_);
      interrupted = mount->interrupted_.contains(id);
    }
    if (interrupted) fs->CancelLock(LockRequestId(id));
  }

  static void SetRecordLock(fuse_req_t req, fuse_ino_t, fuse_file_info* info, struct flock* lock,
                            int sleep) {
    SetLock(req, FuseOp::setlk, info, LockOf(*lock, lock->l_pid), /*flock=*/false, sleep != 0);
  }

  static void Flock(fuse_req_t req, fuse_ino_t, fuse_file_info* info, int op) {
    FileLock lock;
    lock.end = static_cast<uint64_t>(INT64_MAX);
    lock.type = op & LOCK_EX ? F_WRLCK : op & LOCK_SH ? F_RDLCK : F_UNLCK;
    lock.pid = fuse_req_ctx(req)->pid;
    SetLock(req, FuseOp::flock, info, lock, /*flock=*/true, !(op & LOCK_NB));
  }
};

const fuse_lowlevel_ops& FuseOperations() {
  static const fuse_lowlevel_ops kOperations = [] {
    fuse_lowlevel_ops ops{};
    ops.init = Handlers::Init;
    ops.lookup = Handlers::Lookup;
    ops.forget = Handlers::Forget;
    ops.forget_multi = Handlers::ForgetMulti;
    ops.getattr = Handlers::GetAttr;
    ops.setattr = Handlers::SetAttr;
    ops.readlink = Handlers::ReadLink;
    ops.mknod = Handlers::Mknod;
    ops.mkdir = Handlers::Mkdir;
    ops.unlink = Handlers::Unlink;
    ops.rmdir = Handlers::Rmdir;
    ops.symlink = Handlers::Symlink;
    ops.rename = Handlers::Rename;
    ops.link = Handlers::Link;
    ops.open = Handlers::Open;
    ops.read = Handlers::Read;
    ops.write_buf = Handlers::WriteBuf;
    ops.flush = Handlers::Flush;
    ops.release = Handlers::Release;
    ops.fsync = Handlers::Fsync;
    ops.opendir = Handlers::OpenDir;
    ops.readdir = Handlers::ReadDir;
    ops.readdirplus = Handlers::ReadDirPlus;
    ops.fsyncdir = Handlers::FsyncDir;
    ops.statfs = Handlers::StatFs;
    ops.setxattr = Handlers::SetXattr;
    ops.getxattr = Handlers::GetXattr;
    ops.listxattr = Handlers::ListXattr;
    ops.removexattr = Handlers::RemoveXattr;
    ops.create = Handlers::Create;
    ops.tmpfile = Handlers::TmpFile;
    ops.getlk = Handlers::GetLock;
    ops.setlk = Handlers::SetRecordLock;
    ops.flock = Handlers::Flock;
    ops.fallocate = Handlers::Fallocate;
    ops.copy_file_range = Handlers::CopyFileRange;
    ops.lseek = Handlers::Seek;
#ifdef CFS_FUSE_HAS_STATX
    ops.statx = Handlers::Statx;
#endif
    return ops;
  }();
  return kOperations;
}

}  // namespace cfs
