// The inodes of this node that are open, or that somebody may still write.
#ifndef CFS_SERVER_OPEN_TABLE_H_
#define CFS_SERVER_OPEN_TABLE_H_

#include <array>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"

namespace cfs {

// State of one inode. Fields are guarded by the stripe lock of the inode.
//
//   open for write -> maybe_writer, marked
//   last writer released, lease probe passes -> probed
//   attributes pushed -> !maybe_writer
//   the number of its backing file is settled -> !marked
struct OpenInode {
  BackingId backing = kNoBacking;
  int readers = 0;
  int writers = 0;            // Handles and operations of ours that write.
  bool maybe_writer = false;  // The file *has a writer*, for all that is known.
  bool probed = false;        // Nobody writes any more; the attributes are to be pushed.
  bool marked = false;        // The open mark is in the store.
  bool queued = false;        // The settler will look at it.
  bool ghost = false;         // Has no record any more: opened after its last unlink.
  bool foreign = false;       // Its record is another node's: neither marked nor settled.
  absl::Status data_error;    // The first failed sync; it stays.

  bool open() const { return readers + writers > 0; }
};

// A map with stable addresses. Thread-safe; an entry is looked at, changed and
// erased only under the inode's stripe lock.
class OpenTable {
 public:
  OpenInode* Find(InodeId ino) {
    Part& part = PartOf(ino);
    MutexLock lock(&part.mutex);
    const auto it = part.inodes.find(ino);
    return it == part.inodes.end() ? nullptr : it->second.get();
  }

  OpenInode* FindOrAdd(InodeId ino, BackingId backing) {
    Part& part = PartOf(ino);
    MutexLock lock(&part.mutex);
    std::unique_ptr<OpenInode>& inode = part.inodes[ino];
    if (inode == nullptr) {
      inode = std::make_unique<OpenInode>();
      inode->backing = backing;
    }
    return inode.get();
  }

  void Erase(InodeId ino) {
    Part& part = PartOf(ino);
    MutexLock lock(&part.mutex);
    part.inodes.erase(ino);
  }

  std::vector<InodeId> All() {
    std::vector<InodeId> all;
    for (Part& part : parts_) {
      MutexLock lock(&part.mutex);
      for (const auto& [ino, inode] : part.inodes) all.push_back(ino);
    }
    return all;
  }

  size_t size() {
    size_t sum = 0;
    for (Part& part : parts_) {
      MutexLock lock(&part.mutex);
      sum += part.inodes.size();
    }
    return sum;
  }

 private:
  static constexpr size_t kParts = 16;
  struct Part {
    Mutex mutex;
    absl::flat_hash_map<InodeId, std::unique_ptr<OpenInode>> inodes ABSL_GUARDED_BY(mutex);
  };
  Part& PartOf(InodeId ino) { return parts_[Raw(ino) % kParts]; }

  std::array<Part, kParts> parts_;
};

}  // namespace cfs

#endif  // CFS_SERVER_OPEN_TABLE_H_
