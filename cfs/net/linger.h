// Looking for work a little while before sleeping until it comes.
//
// To wake a sleeping thread takes an interrupt to another CPU, which on a virtual
// machine is longer than most answers take, and whoever wakes it pays for that.
#ifndef CFS_NET_LINGER_H_
#define CFS_NET_LINGER_H_

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace cfs {

// Of one thread at a time.
class Linger {
 public:
  // Calls `found` again and again for up to 100 us, and yields the CPU in between.
  // True as soon as that is true. Does not look, for up to 64 times, after it was
  // in vain, nor for the next 1,000 times where another thread computes on this
  // CPU, from which only being woken takes it.
  template <typename Found>
  bool Until(Found&& found) {
    using Clock = std::chrono::steady_clock;
    if (skips_ > 0) {
      --skips_;
      return false;
    }
    Clock::time_point now = Clock::now();
    const Clock::time_point end = now + std::chrono::microseconds(100);
    while (now < end) {
      // A look may take locks that others need to bring something.
      for (int i = 0; i < 20; ++i) Pause();
      const Clock::time_point before = Clock::now();
      sched_yield();
      now = Clock::now();
      const bool taken = now - before > std::chrono::microseconds(300);
      if (taken) skips_ = 1000;
      if (found()) {
        misses_ = 0;
        return true;
      }
      if (taken) return false;
    }
    misses_ = std::min(misses_ * 2 + 1, 64);
    skips_ = misses_;
    return false;
  }

 private:
  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }

  int skips_ = 0;
  int misses_ = 0;
};

}  // namespace cfs

#endif  // CFS_NET_LINGER_H_
