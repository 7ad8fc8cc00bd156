// What nodes ask of each other's file system, as bytes. A change here is a new
// kProtocolVersion (net/wire_format.h).
//
// Integers are little-endian; text is length(4) bytes. The header of a request
// is a PeerHeader and then the arguments, in the order in which PeerService reads
// them; arguments that do not fit a call's header go as its payload. That of an
// answer is a PeerAnswerHeader and then the result.
#ifndef CFS_SERVER_PEER_FORMAT_H_
#define CFS_SERVER_PEER_FORMAT_H_

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/string_view.h"
#include "cfs/base/coding.h"
#include "cfs/base/types.h"
#include "cfs/server/file_system.h"
#include "cfs/server/lock_table.h"

namespace cfs {

// Numbers of the transport's methods.
enum class PeerOp : uint16_t {
  kLookup = 0x0200,
  kGetAttr,
  kSetAttr,
  kReadLink,
  kMakeNode,
  kMakeDirectory,
  kMakeSymlink,
  kCreate,
  kLink,
  kUnlink,
  kRemoveDirectory,
  kRename,
  kList,
  kGetXattr,
  kListXattrs,
  kSetXattr,
  kRemoveXattr,
  kCreateAway,
  kSyncMeta,
  kDescribe,
  kStatFs,
  kGetLock,
  kSetLock,
  kCancelLock,
  kDropLocks,
  kDropOwner,
  kReasserted,
  // To the nodes of a transaction.
  kReserveInodes,
  kReadRecords,
  kPrepare,
  kCommit,
  kAbort,
  kOutcome,
  kWasCommitted,
  kSyncAll,
  // To the node that takes slots.
  kTakeBegin,
  kTakePiece,
  kTake,
  kHasTaken,
  kTakeEnd,
  kCountLost,
  // To the home of a file.
  kOpen,
  kRelease,
  kRead,
  kWrite,
  kAllocate,
  kCopyRange,
  kSeek,
  kSync,
  kStatData,
  kTruncateData,
  kSetDataTimes,
  kRemoveData,
  kMakeData,
  kEnd,
};
inline constexpr size_t kPeerOps =
    static_cast<size_t>(PeerOp::kEnd) - static_cast<size_t>(PeerOp::kLookup);

// Answers that are no errno.
enum PeerError : uint32_t {
  kPeerNotServing = 100'000,  // Not yet, or no more: ask again.
  kPeerBusy,                  // The same request is being executed: ask again.
  kPeerStale,                 // Its answer has arrived long ago: nobody waits.
  kPeerUnknownHandle,         // Open it again.
  kPeerNotOwner,              // See a newer map.
  kPeerUnknownClient,         // This process of the node is not in the map (yet).
  kPeerLocked,                // A transaction has it: ask again, but not for ever.
  kPeerForgotten,             // It may have been executed: nobody can say.
};

struct PeerHeader {
  uint64_t epoch = 0;        // Of the map by which the peer was chosen.
  uint64_t incarnation = 0;  // Of the asking process.
  uint64_t session = 0;      // With the peer when this was first sent; 0: none yet.
  uint64_t sequence = 0;     // Its number of the request; the same when asked again.
  uint64_t answered = 0;     // All below have been answered.
  bool again = false;        // It may have been executed already.
  bool in_payload = false;   // The arguments.
};

struct PeerAnswerHeader {
  uint32_t error = 0;       // An errno or a PeerError.
  bool in_payload = false;  // The result.
  // Of what the peer knows of us. Another one than before: it has forgotten what
  // we have open and locked.
  uint64_t session = 0;
  // LocalFileSystem::storage_epoch.
  uint64_t storage = 0;
};

// A lock that goes with its slot to another node.
struct MovedLock {
  NodeId node{0};  // Whose it is: the process.
  uint64_t incarnation = 0;
  LockTable::HeldLock held;
};

class Packer {
 public:
  std::string Take() { return std::move(out_); }

  template <typename... T>
  Packer& Add(const T&... values) {
    (Put(values), ...);
    return *this;
  }

 private:
  template <typename T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>)
  void Put(T value) {
    using Wide = std::conditional_t<std::is_same_v<T, bool>, uint8_t, uint64_t>;
    AppendLittle(&out_, static_cast<Wide>(value));
  }
  void Put(absl::string_view text) { AppendSized<uint32_t>(&out_, text); }
  void Put(const std::string& text) { Put(absl::string_view(text)); }
  void Put(const timespec& t) { Add(t.tv_sec, t.tv_nsec); }
  void Put(const PeerHeader& h) {
    Add(h.epoch, h.incarnation, h.session, h.sequence, h.answered, h.again, h.in_payload);
  }
  void Put(const PeerAnswerHeader& h) { Add(h.error, h.in_payload, h.session, h.storage); }
  void Put(const Caller& c) { Add(c.uid, c.gid, c.pid, c.umask); }
  void Put(const SetAttrRequest& r) {
    Add(r.fields, r.mode, r.uid, r.gid, r.size, r.atime, r.mtime);
  }
  void Put(const FileLock& l) { Add(l.start, l.end, l.type, l.pid); }
  void Put(const MovedLock& m) {
    Add(m.node, m.incarnation, m.held.space == LockTable::Space::kWholeFile, m.held.ino,
        m.held.handle, m.held.owner, m.held.lock);
  }
  void Put(const struct stat& s) {
    Add(s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, s.st_blocks,
        s.st_blksize, s.st_atim, s.st_mtim, s.st_ctim);
  }
  void Put(const Attr& a) {
    Add(a.st, a.btime, a.stable, a.fresh, a.elsewhere, a.home, a.backing);
  }
  void Put(const struct statvfs& s) {
    Add(s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_favail,
        s.f_namemax);
  }
  void Put(const FreshData& f) { Add(f.backing, f.now); }
  void Put(const ListedEntry& e) {
    Add(e.entry.name, e.entry.ino, e.entry.type, e.entry.next, e.has_attr);
    if (e.has_attr) Put(e.attr);
  }
  template <typename T>
  void Put(const std::vector<T>& values) {
    Put(values.size());
    for (const T& value : values) Put(value);
  }

  std::string out_;
};

// Reads what a Packer wrote. Bounded by the bytes that there are, whatever they
// say. Values are as the peer says: whoever uses them checks them.
class Unpacker {
 public:
  explicit Unpacker(absl::string_view in) : in_(in) {}

  // False when the bytes end too soon or are malformed; then all later ones are.
  template <typename... T>
  [[nodiscard]] bool Take(T*... values) {
    ok_ = ok_ && (Get(values) && ...);
    return ok_;
  }
  absl::string_view rest() const { return in_; }

 private:
  template <typename T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>)
  bool Get(T* value) {
    using Wide = std::conditional_t<std::is_same_v<T, bool>, uint8_t, uint64_t>;
    Wide wide;
    if (!ConsumeLittle(&in_, &wide)) return false;
    if (std::is_same_v<T, bool> && wide > 1) return false;
    *value = static_cast<T>(wide);
    return static_cast<Wide>(*value) == wide;
  }
  bool Get(std::string* text) { return ConsumeSized<uint32_t>(&in_, text); }
  bool Get(timespec* t) {
    return Take(&t->tv_sec, &t->tv_nsec) && t->tv_nsec >= 0 && t->tv_nsec < 1'000'000'000;
  }
  bool Get(PeerHeader* h) {
    return Take(&h->epoch, &h->incarnation, &h->session, &h->sequence, &h->answered, &h->again,
                &h->in_payload);
  }
  bool Get(PeerAnswerHeader* h) {
    return Take(&h->error, &h->in_payload, &h->session, &h->storage);
  }
  bool Get(Caller* c) { return Take(&c->uid, &c->gid, &c->pid, &c->umask); }
  bool Get(SetAttrRequest* r) {
    return Take(&r->fields, &r->mode, &r->uid, &r->gid, &r->size, &r->atime, &r->mtime);
  }
  bool Get(FileLock* l) { return Take(&l->start, &l->end, &l->type, &l->pid); }
  bool Get(MovedLock* m) {
    bool whole;
    if (!Take(&m->node, &m->incarnation, &whole, &m->held.ino, &m->held.handle, &m->held.owner,
              &m->held.lock)) {
      return false;
    }
    m->held.space = whole ? LockTable::Space::kWholeFile : LockTable::Space::kRecord;
    return true;
  }
  bool Get(struct stat* s) {
    return Take(&s->st_ino, &s->st_mode, &s->st_nlink, &s->st_uid, &s->st_gid, &s->st_rdev,
                &s->st_size, &s->st_blocks, &s->st_blksize, &s->st_atim, &s->st_mtim, &s->st_ctim);
  }
  bool Get(Attr* a) {
    return Take(&a->st, &a->btime, &a->stable, &a->fresh, &a->elsewhere, &a->home, &a->backing);
  }
  bool Get(struct statvfs* s) {
    *s = {};
    return Take(&s->f_bsize, &s->f_frsize, &s->f_blocks, &s->f_bfree, &s->f_bavail, &s->f_files,
                &s->f_ffree, &s->f_favail, &s->f_namemax);
  }
  bool Get(FreshData* f) { return Take(&f->backing, &f->now); }
  bool Get(ListedEntry* e) {
    return Take(&e->entry.name, &e->entry.ino, &e->entry.type, &e->entry.next, &e->has_attr) &&
           (!e->has_attr || Get(&e->attr));
  }
  template <typename T>
  bool Get(std::vector<T>* values) {
    size_t count;
    if (!Get(&count)) return false;
    // One at a time: a count that lies costs nothing.
    for (; count > 0; --count) {
      if (!Get(&values->emplace_back())) return false;
    }
    return true;
  }

  absl::string_view in_;
  bool ok_ = true;
};

}  // namespace cfs

#endif  // CFS_SERVER_PEER_FORMAT_H_
