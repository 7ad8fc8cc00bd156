// Exactly one reply a request, by construction.
#ifndef CFS_FUSE_REPLY_H_
#define CFS_FUSE_REPLY_H_

#include <fuse_lowlevel.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/fuse/kernel_order.h"
#include "cfs/fuse/mount.h"
#include "cfs/server/file_system.h"

namespace cfs {

// One tick, the granularity of time stamps. Spares a new file's first write a
// GETATTR.
inline constexpr double kTickSeconds = 0.004;

// Owns a request until it is answered. Move-only; each answer consumes it, and
// a request that is dropped without one stops the process in a test.
//
// Whether the kernel takes an answer is not our concern: it refuses those to
// requests that were interrupted.
class Reply {
 public:
  explicit Reply(fuse_req_t req) : req_(req) {}
  Reply(Reply&& other) noexcept : req_(std::exchange(other.req_, nullptr)) {}
  Reply& operator=(Reply&&) = delete;
  ~Reply() { CFS_CHECK(req_ == nullptr); }

  // Not consumed: for what libfuse offers on a request in flight.
  fuse_req_t request() const { return req_; }

  // Of an entry that is replied, alone or in a listing.
  fuse_entry_param EntryOf(const Attr& attr) const {
    fuse_entry_param entry{};
    entry.ino = attr.st.st_ino;
    // Inode numbers are never used again.
    entry.generation = 1;
    entry.attr = attr.st;
    entry.attr_timeout = AttrSeconds(attr);
    entry.entry_timeout = EntrySeconds();
    return entry;
  }

  void Errno(int err) { fuse_reply_err(Take(), err); }
  void Status(const absl::Status& status) { fuse_reply_err(Take(), ErrnoOf(status)); }
  // The name does not exist, and the kernel may remember that.
  void NoEntry() {
    fuse_entry_param entry{};
    entry.entry_timeout = EntrySeconds();
    fuse_reply_entry(Take(), &entry);
  }
  void Entry(const Attr& attr) {
    const fuse_entry_param entry = EntryOf(attr);
    fuse_reply_entry(Take(), &entry);
  }
  void Attributes(const Attr& attr) {
    const double seconds = AttrSeconds(attr);
    fuse_reply_attr(Take(), &attr.st, seconds);
  }
  void Open(const fuse_file_info& info) { fuse_reply_open(Take(), &info); }
  void Create(const Attr& attr, const fuse_file_info& info) {
    const fuse_entry_param entry = EntryOf(attr);
    fuse_reply_create(Take(), &entry, &info);
  }
  void Link(const std::string& target) { fuse_reply_readlink(Take(), target.c_str()); }
  void Bytes(absl::string_view bytes) { fuse_reply_buf(Take(), bytes.data(), bytes.size()); }
  void Data(fuse_bufvec* data) {
    fuse_reply_data(Take(), data, static_cast<fuse_buf_copy_flags>(FUSE_BUF_SPLICE_MOVE));
  }
  void Written(size_t bytes) { fuse_reply_write(Take(), bytes); }
  void XattrSize(size_t bytes) { fuse_reply_xattr(Take(), bytes); }
  void StatFs(const struct statvfs& st) { fuse_reply_statfs(Take(), &st); }
  void Offset(uint64_t offset) { fuse_reply_lseek(Take(), static_cast<off_t>(offset)); }
  void Lock(const struct flock& lock) { fuse_reply_lock(Take(), &lock); }
#ifdef CFS_FUSE_HAS_STATX
  void Statx(struct statx* stx, const Attr& attr) {
    const double seconds = AttrSeconds(attr);
    fuse_reply_statx(Take(), 0, stx, seconds);
  }
#endif

 private:
  const Mount* mount() const { return static_cast<const Mount*>(fuse_req_userdata(req_)); }
  double EntrySeconds() const { return mount()->shared() ? 0 : mount()->cache_seconds(); }
  double AttrSeconds(const Attr& attr) const {
    if (mount()->shared()) return 0;
    return attr.stable ? mount()->cache_seconds() : attr.fresh ? kTickSeconds : 0;
  }

  fuse_req_t Take() {
    CFS_CHECK(req_ != nullptr);
    BeforeReply();
    return std::exchange(req_, nullptr);
  }

  fuse_req_t req_;
};

}  // namespace cfs

#endif  // CFS_FUSE_REPLY_H_
