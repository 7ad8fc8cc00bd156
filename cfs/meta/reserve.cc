#include "cfs/meta/reserve.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/unique_fd.h"

namespace cfs {
namespace {

constexpr uint64_t kParts = 32;    // That a reserve is given up in.
constexpr uint64_t kLogShare = 4;  // 1/4 is for the log.
constexpr uint64_t kLowShare = 2;  // Below 1/2 nothing new is written.

bool FreeBytes(const std::string& directory, uint64_t* free, uint64_t* all) {
  struct statvfs space;
  if (statvfs(directory.c_str(), &space) != 0) return false;
  *free = uint64_t{space.f_bavail} * space.f_frsize;
  *all = uint64_t{space.f_blocks} * space.f_frsize;
  return true;
}

}  // namespace

Reserve::Reserve(std::string path)
    : path_(std::move(path)), directory_(path_.substr(0, path_.rfind('/'))) {
  uint64_t free, all = 0;
  FreeBytes(directory_, &free, &all);
  full_bytes_ = std::min(kReserveBytesMax, all / kReserveShare);
  struct stat st;
  if (stat(path_.c_str(), &st) == 0) {
    MutexLock lock(&mutex_);
    bytes_ = std::min<uint64_t>(static_cast<uint64_t>(st.st_size), full_bytes_);
  }
  Keep();
}

void Reserve::Keep() {
  MutexLock lock(&mutex_);
  uint64_t free, all;
  if (bytes_ < full_bytes_ && FreeBytes(directory_, &free, &all) && free >= 4 * full_bytes_) {
    const UniqueFd fd(open(path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    // Without a reserve the store works too, until it is full.
    if (fd.valid() && fallocate(fd.get(), 0, 0, static_cast<off_t>(full_bytes_)) == 0) {
      bytes_ = full_bytes_;
    }
  }
  low_.store(bytes_ < full_bytes_ / kLowShare, std::memory_order_relaxed);
}

bool Reserve::Give(bool for_log) {
  MutexLock lock(&mutex_);
  const uint64_t keep = for_log ? 0 : full_bytes_ / kLogShare;
  if (bytes_ <= keep) return false;
  if (bytes_ == full_bytes_) LogWarn("store is full, the metadata's reserve is in use");
  const uint64_t part = full_bytes_ / kParts + 1;
  bytes_ = std::max(keep, bytes_ > part ? bytes_ - part : 0);
  low_.store(bytes_ < full_bytes_ / kLowShare, std::memory_order_relaxed);
  return truncate(path_.c_str(), static_cast<off_t>(bytes_)) == 0;
}

bool Reserve::Exhausted() {
  if (!low_.load(std::memory_order_relaxed)) return false;
  uint64_t free, all;
  return FreeBytes(directory_, &free, &all) && free < full_bytes_ / kLogShare;
}

}  // namespace cfs
