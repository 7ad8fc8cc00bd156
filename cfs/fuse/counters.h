// What a mount was asked for.
#ifndef CFS_FUSE_COUNTERS_H_
#define CFS_FUSE_COUNTERS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace cfs {

#define CFS_FUSE_OPERATIONS(X)                                                              \
  X(lookup) X(forget) X(getattr) X(setattr) X(readlink) X(mknod) X(mkdir) X(unlink) X(rmdir) \
  X(symlink) X(rename) X(link) X(open) X(read) X(write) X(flush) X(release) X(fsync)         \
  X(readdir) X(readdirplus) X(fsyncdir) X(statfs) X(setxattr) X(getxattr) X(listxattr)       \
  X(removexattr) X(create) X(tmpfile) X(getlk) X(setlk) X(flock) X(fallocate)                \
  X(copy_file_range) X(lseek) X(statx)

enum class FuseOp : size_t {
#define X(name) name,
  CFS_FUSE_OPERATIONS(X)
#undef X
      kCount
};

inline constexpr const char* kFuseOpNames[] = {
#define X(name) #name,
    CFS_FUSE_OPERATIONS(X)
#undef X
};

// Relaxed: numbers for people, in no order with anything.
struct FuseCounters {
  std::array<std::atomic<uint64_t>, static_cast<size_t>(FuseOp::kCount)> requests{};
  std::atomic<uint64_t> read_bytes{0};   // Data that went through the daemon.
  std::atomic<uint64_t> write_bytes{0};

  void Count(FuseOp op) {
    requests[static_cast<size_t>(op)].fetch_add(1, std::memory_order_relaxed);
  }
};

}  // namespace cfs

#endif  // CFS_FUSE_COUNTERS_H_
