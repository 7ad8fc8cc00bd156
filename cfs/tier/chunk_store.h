// The backing files of a node: STORE/data/xxx/yyy/<number>.
#ifndef CFS_TIER_CHUNK_STORE_H_
#define CFS_TIER_CHUNK_STORE_H_

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/mutex.h"
#include "cfs/base/thread.h"
#include "cfs/base/types.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

// A fresh, empty backing file that no record names yet.
struct FreshFile {
  BackingId backing = kNoBacking;
  // What the registrar gave for it; 0: not registered.
  int registration = 0;
};

// Guarantees: a backing file is created exclusively, under a number that was
// never used; 1,024 numbers share a directory. No descriptor stays open.
// Thread-safe. Cost: a path walk of three names for each call, about 1 us.
class ChunkStore {
 public:
  using NextNumber = std::function<absl::StatusOr<uint64_t>()>;
  // Called with each file of the pool while it is open, to prepare its first
  // open (kernel passthrough); what it returns comes back in FreshFile.
  using Registrar = std::function<int(int fd)>;

  static absl::StatusOr<std::unique_ptr<ChunkStore>> Open(const std::string& directory,
                                                          NextNumber next_number);
  ~ChunkStore();

  // Keeps up to kPoolFiles fresh files ready, made by a thread of its own, so
  // that a create costs no file system call.
  void StartPool(Registrar registrar);
  // Ends the thread; removes the files that were not taken.
  void StopPool();

  // A fresh file. After the record that names it is committed (or the file is
  // removed again) the caller says Settle.
  absl::StatusOr<FreshFile> TakeFresh();
  void Settle(BackingId backing);
  // All numbers below are settled.
  uint64_t settled() const { return settled_.load(std::memory_order_acquire); }
  // The first number that this run may hand out.
  void SetFirst(uint64_t number);

  absl::StatusOr<UniqueFd> OpenFile(BackingId backing, int flags) const;
  absl::Status Stat(BackingId backing, struct stat* st) const;
  absl::Status SetTimes(BackingId backing, const timespec times[2]) const;
  // NOT_FOUND if it is not there.
  absl::Status Remove(BackingId backing) const;
  // Those with a number in [first, end) that are there and not to be kept; returns
  // how many.
  size_t RemoveAll(uint64_t first, uint64_t end,
                   absl::FunctionRef<bool(BackingId backing)> kept) const;
  // Makes the file again, empty, where power loss took an unsynced one.
  absl::Status CreateEmpty(BackingId backing) const;
  // The lease probe: true while any process, ghosts of an earlier run too, has
  // the file open for writing or mapped writable. REQUIRES: the caller sees to
  // it that nobody opens the file meanwhile.
  absl::StatusOr<bool> HasWriter(BackingId backing) const;
  // True while anybody has the file open, in whatever way, or mapped. The same.
  absl::StatusOr<bool> IsUsed(BackingId backing) const;
  absl::StatusOr<struct statvfs> Space() const;
  // Nothing waits for a device (on tmpfs, whose reads cannot be asked not to).
  bool in_memory() const { return in_memory_; }
  // Everything in the store's file system is on the device.
  absl::Status SyncAll() const;
  std::string PathOf(BackingId backing) const;

  size_t pool_size() const { return pool_size_.load(std::memory_order_relaxed); }

 private:
  ChunkStore(UniqueFd directory, std::string path, NextNumber next_number);

  // Creates a file, and its directories when they are missing. The descriptor is
  // read-only: a passthrough registration keeps what it was made from open, and
  // a writable one would be a writer to the lease probe for ever.
  absl::StatusOr<UniqueFd> Create(BackingId backing) const;
  absl::StatusOr<bool> LeaseRefused(BackingId backing, int lease) const;
  // Gets a number and makes its file.
  absl::StatusOr<FreshFile> MakeFresh(const Registrar& registrar);
  void Fill();

  const UniqueFd directory_;
  const bool in_memory_;
  const std::string path_;
  const NextNumber next_number_;
  Registrar registrar_;  // Of the filler.

  Mutex pool_mutex_;
  CondVar pool_wake_;
  std::deque<FreshFile> pool_ ABSL_GUARDED_BY(pool_mutex_);
  bool stopping_ ABSL_GUARDED_BY(pool_mutex_) = false;
  std::atomic<size_t> pool_size_{0};
  Thread filler_;

  // Which numbers from settled_ on are settled: a window over a rising counter.
  Mutex settle_mutex_;
  std::deque<bool> window_ ABSL_GUARDED_BY(settle_mutex_);
  // Release on write, so that a reader sees the commits before it.
  std::atomic<uint64_t> settled_{0};
};

// "xxx/yyy/0123456789ab": where a backing file is in the data directory.
std::string BackingPath(BackingId backing);

// Calls `visit` for each file in a data directory, in no order, with its path in
// there; kNoBacking for one that is no backing file.
absl::Status WalkBackingFiles(
    const std::string& directory,
    const std::function<void(absl::string_view path, BackingId backing)>& visit);

}  // namespace cfs

#endif  // CFS_TIER_CHUNK_STORE_H_
