// What ThreadSanitizer can't see: the kernel orders requests.
#ifndef CFS_FUSE_KERNEL_ORDER_H_
#define CFS_FUSE_KERNEL_ORDER_H_

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace cfs {

// A request that needs the answer to another one, such as a read of what was
// opened, comes after it. Through read(2) and write(2) on /dev/fuse the
// sanitizer notices by itself; requests over io_uring go past it.
#ifdef __SANITIZE_THREAD__
inline char kernel_order;
inline void BeforeReply() { __tsan_release(&kernel_order); }
inline void AfterRequest() { __tsan_acquire(&kernel_order); }
#else
inline void BeforeReply() {}
inline void AfterRequest() {}
#endif

}  // namespace cfs

#endif  // CFS_FUSE_KERNEL_ORDER_H_
