// Copies of large files, past the page cache.
#ifndef CFS_TIER_IO_URING_H_
#define CFS_TIER_IO_URING_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"

namespace cfs {

// Reads and writes several pieces at once through io_uring, with O_DIRECT and registered
// buffers; what of the source is in the page cache is taken from there, since reading it with
// O_DIRECT would first write it to the device.
//
// Thread-safe. Memory: kLargeCopiesMax times kLargeCopyBytes; who comes then waits. What is
// written has not come through the device's cache yet: fsync(2) as ever.
class LargeCopier {
 public:
  // What O_DIRECT wants at most, of any device in use.
  static constexpr off_t kAligned = 4096;

  LargeCopier();
  ~LargeCopier();

  // Copies [begin, end), which is no hole, to the same place of `to`, which is as long already;
  // adds to `copied`. False: it cannot be done like that here, and what `to` has there now is
  // not said. EAGAIN: the file has become shorter. EINTR: `stop` is set.
  // REQUIRES: `begin` and `end` are multiples of kAligned.
  absl::StatusOr<bool> Copy(int from, int to, off_t begin, off_t end, const std::atomic<bool>& stop,
                            uint64_t* copied);

 private:
  class Ring;

  std::unique_ptr<Ring> TakeRing();
  void GiveBack(std::unique_ptr<Ring> ring);

  // Relaxed: seen soon enough.
  std::atomic<bool> refused_{false};  // There is no io_uring here.
  Mutex mutex_;
  CondVar given_back_;
  int taken_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::unique_ptr<Ring>> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_TIER_IO_URING_H_
