#include "cfs/meta/store_rocksdb_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "cfs/base/unique_fd.h"

namespace cfs {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

IOStatus FromErrno(const std::string& what, int error) {
  if (error == 0) return IOStatus::OK();
  if (error == ENOSPC) return IOStatus::NoSpace(what, strerror(error));
  return IOStatus::IOError(what, strerror(error));
}

// Not thread-safe but for Sync and Fsync, as RocksDB wants it.
class WritableFile final : public rocksdb::FSWritableFile {
 public:
  WritableFile(std::string name, UniqueFd fd, Reserve* reserve, const FileOptions& options)
      : FSWritableFile(options),
        name_(std::move(name)),
        fd_(std::move(fd)),
        reserve_(reserve),
        is_log_(absl::EndsWith(name_, ".log")) {}

  using FSWritableFile::Append;
  IOStatus Append(const Slice& data, const IOOptions&, IODebugContext*) override {
    const char* from = data.data();
    size_t left = data.size();
    while (left > 0) {
      const ssize_t written = pwrite(fd_.get(), from, left, static_cast<off_t>(size_));
      if (written < 0) {
        const int error = errno;
        if (error == EINTR || (error == ENOSPC && reserve_->Give(is_log_))) continue;
        return FromErrno("append to " + name_, error);
      }
      from += written;
      left -= static_cast<size_t>(written);
      size_ += static_cast<uint64_t>(written);
    }
    return IOStatus::OK();
  }

  IOStatus Truncate(uint64_t size, const IOOptions&, IODebugContext*) override {
    if (ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) {
      return FromErrno("truncate " + name_, errno);
    }
    size_ = size;
    return IOStatus::OK();
  }

  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    if (!fd_.valid()) return IOStatus::OK();
    // Frees what was allocated behind the end.
    IOStatus status = Truncate(size_, options, debug);
    fd_.reset();
    return status;
  }

  IOStatus Flush(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    return FromErrno("sync " + name_, fdatasync(fd_.get()) == 0 ? 0 : errno);
  }
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return FromErrno("sync " + name_, fsync(fd_.get()) == 0 ? 0 : errno);
  }
  bool IsSyncThreadSafe() const override { return true; }
  uint64_t GetFileSize(const IOOptions&, IODebugContext*) override { return size_; }
  IOStatus InvalidateCache(size_t, size_t) override { return IOStatus::OK(); }

  // Only hints: what is not allocated now is when it is written.
  IOStatus Allocate(uint64_t offset, uint64_t bytes, const IOOptions&, IODebugContext*) override {
    fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(bytes));
    return IOStatus::OK();
  }
  IOStatus RangeSync(uint64_t offset, uint64_t bytes, const IOOptions&, IODebugContext*) override {
    sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                    SYNC_FILE_RANGE_WRITE);
    return IOStatus::OK();
  }

 private:
  const std::string name_;
  UniqueFd fd_;
  Reserve* const reserve_;
  const bool is_log_;
  uint64_t size_ = 0;
};

class Files final : public rocksdb::FileSystemWrapper {
 public:
  explicit Files(Reserve* reserve)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), reserve_(reserve) {}
  const char* Name() const override { return "cfs.Files"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext*) override {
    // A file needs space too, for an inode or a larger directory. Twice at most:
    // what is short may be the number of inodes.
    UniqueFd fd;
    int error = 0;
    for (int attempt = 0; attempt < 2 && !fd.valid(); ++attempt) {
      fd.reset(open(name.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600));
      if (fd.valid()) break;
      error = errno;
      if (error != ENOSPC || !reserve_->Give(/*for_log=*/true)) break;
    }
    if (!fd.valid()) return FromErrno("create " + name, error);
    *file = std::make_unique<WritableFile>(name, std::move(fd), reserve_, options);
    return IOStatus::OK();
  }

 private:
  Reserve* const reserve_;
};

}  // namespace

std::shared_ptr<rocksdb::FileSystem> FilesWithReserve(Reserve* reserve) {
  return std::make_shared<Files>(reserve);
}

}  // namespace cfs
