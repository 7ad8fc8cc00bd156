#include "cfs/fuse/passthrough.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"

namespace cfs {
namespace {

// From the kernel's fuse.h, which older distributions have without these.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

class KernelRegistry final : public BackingRegistry {
 public:
  explicit KernelRegistry(int fuse_fd) : fuse_fd_(fuse_fd) {}

  absl::StatusOr<int> Register(int fd) override {
    BackingMap map{fd, 0, 0};
    const int id = ioctl(fuse_fd_, kBackingOpen, &map);
    if (id <= 0) return ErrnoStatus("register backing file");
    return id;
  }

  void Unregister(int id) override {
    uint32_t raw = static_cast<uint32_t>(id);
    // Fails only when the mount is gone, and the id with it.
    if (ioctl(fuse_fd_, kBackingClose, &raw) != 0 && errno != ENOTCONN && errno != EPERM) {
      LogWarn("backing id not released, it stays until unmount errno=", errno);
    }
  }

 private:
  const int fuse_fd_;
};

}  // namespace

std::unique_ptr<BackingRegistry> KernelBackingRegistry(int fuse_fd) {
  return std::make_unique<KernelRegistry>(fuse_fd);
}

int Passthrough::Acquire(InodeId ino, int registered, bool wanted,
                         absl::FunctionRef<absl::StatusOr<UniqueFd>()> open) {
  if (!enabled()) return 0;
  Part& part = PartOf(ino);
  MutexLock lock(&part.mutex);
  const auto [it, added] = part.inodes.try_emplace(ino);
  Inode& inode = it->second;
  if (!added) {
    // A fresh file has no earlier open.
    CFS_CHECK(registered == 0);
    if (inode.opens++ == 0) {
      part.idle.erase(inode.idle);
      if (!wanted) registry_->Unregister(std::exchange(inode.id, 0));
    }
    return inode.id;
  }
  inode.opens = 1;
  if (!wanted) {
    if (registered != 0) registry_->Unregister(registered);
    return 0;
  }
  inode.id = registered;
  if (registered == 0) {
    const absl::StatusOr<UniqueFd> fd = open();
    absl::StatusOr<int> id = fd.ok() ? registry_->Register(fd->get()) : fd.status();
    if (id.ok()) {
      inode.id = *id;
    } else {
      LogWarn("passthrough refused, the daemon does this file's I/O ino=", Raw(ino),
              " error=", id.status().ToString());
    }
  }
  return inode.id;
}

void Passthrough::Release(InodeId ino) {
  if (!enabled()) return;
  Part& part = PartOf(ino);
  MutexLock lock(&part.mutex);
  const auto it = part.inodes.find(ino);
  CFS_CHECK(it != part.inodes.end() && it->second.opens > 0);
  if (--it->second.opens > 0) return;
  if (it->second.id == 0 || it->second.dropped) {
    // Without an id the next open may have more luck.
    if (it->second.id != 0) registry_->Unregister(it->second.id);
    part.inodes.erase(it);
    return;
  }
  it->second.idle = part.idle.insert(part.idle.end(), ino);
  if (part.idle.size() > kIdleBackingsMax / kParts) {
    const auto oldest = part.inodes.find(part.idle.front());
    registry_->Unregister(oldest->second.id);
    part.inodes.erase(oldest);
    part.idle.pop_front();
  }
}

void Passthrough::Drop(InodeId ino) {
  if (!enabled()) return;
  Part& part = PartOf(ino);
  MutexLock lock(&part.mutex);
  const auto it = part.inodes.find(ino);
  if (it == part.inodes.end()) return;
  if (it->second.opens > 0) {
    it->second.dropped = true;
    return;
  }
  registry_->Unregister(it->second.id);
  part.idle.erase(it->second.idle);
  part.inodes.erase(it);
}

size_t Passthrough::registered() {
  size_t sum = 0;
  for (Part& part : parts_) {
    MutexLock lock(&part.mutex);
    sum += part.inodes.size();
  }
  return sum;
}

}  // namespace cfs
