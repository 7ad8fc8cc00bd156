// The backing files of null_daemon: where the data is, one file on the store for each regular file.

#ifndef TESTS_BENCH_BACKING_STORE_H_
#define TESTS_BENCH_BACKING_STORE_H_

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace null_daemon {

// From <linux/fuse.h>, which Debian 12 has without passthrough.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

[[noreturn]] inline void Die(const char* what) {
  std::fprintf(stderr, "null_daemon: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

// A file in the backing directory, named by its number, and the id under which the kernel knows it
// (0: none).
struct Backing {
  uint64_t number = 0;
  int32_t id = 0;
};

// Makes backing files ahead of need and deletes them late, both in the background while no request
// needs either: what the daemon has to do at some time, but at no time that somebody waits for.
// Thread-safe.
class BackingStore {
 public:
  BackingStore(const std::string& directory, size_t pool, bool passthrough)
      : directory_(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
        pool_size_(pool),
        passthrough_(passthrough) {
    if (directory_ < 0) Die(directory.c_str());
  }

  // `fuse_device` must have finished FUSE_INIT: the kernel registers nothing before it.
  void Start(int fuse_device) {
    fuse_device_ = fuse_device;
    while (FillOne()) {
    }
    worker_ = std::thread([this] { Work(); });
  }

  void Stop() {
    stopping_ = true;
    if (worker_.joinable()) worker_.join();
  }

  Backing Take() {
    {
      std::lock_guard lock(mutex_);
      ++requests_;
      if (!pool_.empty()) {
        const Backing backing = pool_.back();
        pool_.pop_back();
        return backing;
      }
    }
    return Make();
  }

  void Discard(const Backing& backing) {
    std::lock_guard lock(mutex_);
    ++requests_;
    trash_.push_back(backing);
  }

  // A descriptor of the backing file, or -1 with errno set.
  int Open(const Backing& backing, int flags) const {
    return openat(directory_, Name(backing).c_str(), flags | O_CLOEXEC, 0600);
  }
  int Stat(const Backing& backing, struct stat* attr) const {
    return fstatat(directory_, Name(backing).c_str(), attr, 0);
  }
  int SetTimes(const Backing& backing, const timespec times[2]) const {
    return utimensat(directory_, Name(backing).c_str(), times, 0);
  }
  int StatFs(struct statvfs* result) const { return fstatvfs(directory_, result); }

 private:
  static std::string Name(const Backing& backing) { return std::to_string(backing.number); }

  Backing Make() {
    Backing backing{++last_number_};
    const int fd = Open(backing, O_RDWR | O_CREAT | O_EXCL);
    if (fd < 0) Die("cannot create a backing file");
    if (passthrough_) {
      BackingMap map = {fd, 0, 0};
      backing.id = ioctl(fuse_device_, kBackingOpen, &map);
      if (backing.id < 0) Die("the kernel refuses passthrough");
    }
    close(fd);  // The id keeps the file.
    return backing;
  }

  bool FillOne() {
    {
      std::lock_guard lock(mutex_);
      if (pool_.size() >= pool_size_) return false;
    }
    const Backing backing = Make();
    std::lock_guard lock(mutex_);
    pool_.push_back(backing);
    return true;
  }

  bool DeleteOne() {
    Backing backing;
    {
      std::lock_guard lock(mutex_);
      if (trash_.empty()) return false;
      backing = trash_.back();
      trash_.pop_back();
    }
    if (backing.id > 0) ioctl(fuse_device_, kBackingClose, &backing.id);
    unlinkat(directory_, Name(backing).c_str(), 0);
    return true;
  }

  // Whether nothing was taken or discarded since the last call.
  bool Idle() {
    std::lock_guard lock(mutex_);
    return std::exchange(requests_seen_, requests_) == requests_;
  }

  void Work() {
    setpriority(PRIO_PROCESS, 0, 19);  // Of this thread only.
    while (!stopping_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      while (Idle() && (DeleteOne() || FillOne())) {
      }
    }
  }

  const int directory_;
  const size_t pool_size_;
  const bool passthrough_;
  int fuse_device_ = -1;
  std::atomic<uint64_t> last_number_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread worker_;
  std::mutex mutex_;
  std::vector<Backing> pool_;  // Guarded by mutex_, as is all below.
  std::vector<Backing> trash_;
  uint64_t requests_ = 0;
  uint64_t requests_seen_ = 0;
};

}  // namespace null_daemon

#endif  // TESTS_BENCH_BACKING_STORE_H_
