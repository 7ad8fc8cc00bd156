#include "cfs/server/backend_import.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <utility>

#include "cfs/base/clock.h"
#include "cfs/meta/acl.h"

namespace cfs {

timespec TimeOf(const statx_timestamp& time) {
  return {static_cast<time_t>(time.tv_sec), static_cast<long>(time.tv_nsec)};
}

BackendStamp StampOf(const struct statx& st) {
  return {st.stx_ino, S_ISREG(st.stx_mode) ? st.stx_size : 0, TimeOf(st.stx_mtime),
          TimeOf(st.stx_ctime)};
}

// What the object has of its own, but its identity.
void FillRecord(const struct statx& st, InodeRecord* record) {
  record->mode = st.stx_mode;
  record->uid = st.stx_uid;
  record->gid = st.stx_gid;
  record->rdev = makedev(st.stx_rdev_major, st.stx_rdev_minor);
  record->size = S_ISREG(st.stx_mode) ? st.stx_size : 0;
  record->blocks = S_ISREG(st.stx_mode) ? st.stx_blocks : 0;
  record->atime = TimeOf(st.stx_atime);
  record->mtime = TimeOf(st.stx_mtime);
  record->ctime = TimeOf(st.stx_ctime);
}

uint32_t AclFlags(const Xattrs& xattrs) {
  uint32_t flags = 0;
  for (const auto& [name, value] : xattrs) {
    if (name == kAccessAclXattr) flags |= kHasAccessAcl;
    if (name == kDefaultAclXattr) flags |= kHasDefaultAcl;
  }
  return flags;
}

LocalFileSystem::Imported ToImported(InodeId dir, std::string name, BackendObject object) {
  LocalFileSystem::Imported entry;
  const struct statx& st = object.st;
  InodeRecord& record = entry.record;
  FillRecord(st, &record);
  record.btime = st.stx_mask & STATX_BTIME     ? TimeOf(st.stx_btime)
                 : record.mtime < record.ctime ? record.mtime
                                               : record.ctime;
  record.nlink = record.IsDirectory() ? 1 : std::max<uint32_t>(1, st.stx_nlink);
  if (record.IsRegular()) record.layout = Layout::kBackend;
  if (record.IsDirectory()) {
    record.flags |= kNotImported;
    // Until it is: file systems that count subdirectories do so in the links.
    entry.bucket = {0, st.stx_nlink > 2 ? st.stx_nlink - 2 : 0, record.mtime, record.ctime};
  }
  record.target = std::move(object.target);
  BackendIdentity identity{dir, name, StampOf(st), {}};
  if (record.IsDirectory() && (st.stx_mask & STATX_BTIME)) identity.clean_ctime = record.btime;
  record.backend_identity = Encode(identity);
  record.flags |= AclFlags(object.xattrs);
  entry.xattrs = std::move(object.xattrs);
  entry.name = std::move(name);
  return entry;
}

}  // namespace cfs
