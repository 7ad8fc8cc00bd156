// Space set aside for metadata, so that RocksDB never meets a full device.
#ifndef CFS_META_RESERVE_H_
#define CFS_META_RESERVE_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "cfs/base/mutex.h"

namespace cfs {

// A file of allocated blocks beside the metadata, of which parts are given up
// to writes that find no space. Thread-safe.
class Reserve {
 public:
  // `path`: the file. Its directory decides on the size: 1/32 of the device.
  explicit Reserve(std::string path);

  uint64_t full_bytes() const { return full_bytes_; }
  // Makes the file whole again if there is a lot of room. To be called now and then.
  void Keep();
  // Frees a part of the file. False if there is none left for this purpose:
  // tables leave the last quarter to the log.
  bool Give(bool for_log);
  // The device is full, and only what RocksDB needs to write out what it has in
  // memory is left.
  bool Exhausted();

 private:
  const std::string path_;
  const std::string directory_;
  uint64_t full_bytes_ = 0;
  Mutex mutex_;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> low_{false};  // Relaxed: read for each write.
};

}  // namespace cfs

#endif  // CFS_META_RESERVE_H_
