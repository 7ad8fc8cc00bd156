// Names of threads, as top(1), perf(1) and debuggers show them.
#ifndef CFS_BASE_THREAD_NAME_H_
#define CFS_BASE_THREAD_NAME_H_

#include <sys/prctl.h>

namespace cfs {

// Names the calling thread; at most 15 bytes of `name` count.
inline void NameThread(const char* name) { prctl(PR_SET_NAME, name); }

}  // namespace cfs

#endif  // CFS_BASE_THREAD_NAME_H_
