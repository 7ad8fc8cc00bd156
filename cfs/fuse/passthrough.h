// Which way an open file's data goes: the kernel's rules for I/O modes in one
// place.
#ifndef CFS_FUSE_PASSTHROUGH_H_
#define CFS_FUSE_PASSTHROUGH_H_

#include <array>
#include <atomic>
#include <list>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

// Registers backing files with the kernel; FUSE_DEV_IOC_BACKING_OPEN and _CLOSE
// in life, a fake in tests. Thread-safe.
class BackingRegistry {
 public:
  virtual ~BackingRegistry() = default;
  // An id above 0. The descriptor may be closed afterwards.
  virtual absl::StatusOr<int> Register(int fd) = 0;
  virtual void Unregister(int id) = 0;
};

// An inode has one I/O mode at a time, and in passthrough mode one backing id:
// any other combination of opens gets EIO from the kernel. So the mode is chosen
// when the open count goes from 0 to 1, under the inode's lock, registration
// included, and kept until it is 0 again.
//
// An id stays registered after the last release, for the next open, until the
// file is gone or kIdleBackingsMax others were used later. It holds the backing
// file open in the kernel (about 1.5 KiB there; read-only: no writer to the
// lease probe), but no descriptor of ours.
//
// Thread-safe. Cost: one lock and one hash probe; with a registration 2 us.
class Passthrough {
 public:
  // `registry` outlives the last call. Ids end with the connection.
  explicit Passthrough(BackingRegistry* registry) : registry_(registry) {}

  // Relaxed: switched off at most once, before an open was answered with an id.
  bool enabled() const { return enabled_.load(std::memory_order_relaxed); }
  // The kernel refuses registrations: the daemon does all I/O.
  void Disable() { enabled_.store(false, std::memory_order_relaxed); }

  // One more open: the id to answer with, or 0 for I/O through the daemon.
  // `registered` is an id that the file has already (ownership passes), or 0,
  // and then `open` gives a descriptor to register if one is needed. Without `wanted`,
  // a file that is not open goes through the daemon.
  int Acquire(InodeId ino, int registered, bool wanted,
              absl::FunctionRef<absl::StatusOr<UniqueFd>()> open);
  // One less. The kernel has ended the I/O of that open before it says so.
  void Release(InodeId ino);
  // Gives back the id of a file that is gone, if need be after its last release.
  // Unknown ones are no error.
  void Drop(InodeId ino);

  size_t registered();

 private:
  static constexpr size_t kParts = 16;
  struct Inode {
    int id = 0;  // 0: through the daemon.
    int opens = 0;
    bool dropped = false;  // The id goes with the last release.
    std::list<InodeId>::iterator idle;  // Valid while opens is 0.
  };
  struct Part {
    Mutex mutex;
    absl::flat_hash_map<InodeId, Inode> inodes ABSL_GUARDED_BY(mutex);
    std::list<InodeId> idle ABSL_GUARDED_BY(mutex);  // Front: longest ago.
  };
  Part& PartOf(InodeId ino) { return parts_[Raw(ino) % kParts]; }

  BackingRegistry* const registry_;
  std::atomic<bool> enabled_{true};
  std::array<Part, kParts> parts_;
};

// The kernel's registry behind a FUSE device descriptor.
std::unique_ptr<BackingRegistry> KernelBackingRegistry(int fuse_fd);

}  // namespace cfs

#endif  // CFS_FUSE_PASSTHROUGH_H_
