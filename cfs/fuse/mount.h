// One FUSE mount of a FileSystem.
#ifndef CFS_FUSE_MOUNT_H_
#define CFS_FUSE_MOUNT_H_

#include <fuse_lowlevel.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/mutex.h"
#include "cfs/fuse/counters.h"
#include "cfs/fuse/listed_directories.h"
#include "cfs/fuse/passthrough.h"
#include "cfs/server/file_system.h"
#include "cfs/server/node_config.h"

namespace cfs {

// How long the kernel may keep what only we can change: for ever.
inline constexpr double kForeverSeconds = 1e9;

// Life: Start mounts; Serve starts the threads, which end when the mount is gone;
// Wait returns then. With FUSE-over-io_uring requests come as soon as Start has
// mounted. Thread-safe but for Start, Serve and Wait, which one thread calls.
class Mount final : public KernelCache {
 public:
  // What the kernel and the privileges give here.
  struct Abilities {
    bool passthrough = false;
    bool io_uring = false;
    bool daemon_locks = false;
  };

  // `fs` outlives the mount.
  Mount(const NodeConfig& config, FileSystem* fs)
      : config_(config),
        fs_(fs),
        shared_(fs->IsShared()),
        cache_seconds_(config.backend_ttl > absl::ZeroDuration()
                           ? absl::ToDoubleSeconds(config.backend_ttl) / 2
                           : kForeverSeconds) {}
  ~Mount() override;

  // Mounts, and finds out what the kernel gives. UNAVAILABLE for a feature that
  // was set `on` and is not there.
  absl::Status Start();
  const Abilities& abilities() const { return abilities_; }
  // Registers a pool file for passthrough; 0 when that can't be.
  int RegisterFresh(int fd);
  void Serve();
  // Until unmounted. OK unless the connection broke. No operation is in a
  // handler afterwards, and after `drain` none has a reply to give.
  absl::Status Wait(absl::FunctionRef<void()> drain);
  // Takes the mount out of the name space; it ends when its last user does.
  void DetachLazily();
  // Ends it now: users get ENOTCONN.
  void Abort();

  // The kernel keeps nothing for longer than an operation.
  bool shared() const { return shared_; }
  // How long the kernel may keep what is not shared, and does not change by itself.
  double cache_seconds() const { return cache_seconds_; }

  nlohmann::json Status();

  void AttrUnstable(InodeId ino) override;
  void RegistrationUnused(int registration) override;
  void BackingGone(InodeId ino) override;
  void ListingChanged(InodeId dir) override;
  void NameChanged(InodeId dir, absl::string_view name) override;
  bool NamesTold() override;

 private:
  friend struct Handlers;  // ops.cc: what libfuse calls.

  void Work();
  void AwaitSoon();
  void TellNames();
  void Init(fuse_conn_info* conn);
  // Before names of `dir` change.
  void ListingChanges(InodeId dir) {
    if (listed_.Remove(dir)) ListingChanged(dir);
  }
  // Passes on one more open, in the mode that Passthrough chooses.
  void FillOpen(const OpenResult& open, fuse_file_info* info);

  const NodeConfig config_;
  Abilities abilities_;
  fuse_session* session_ = nullptr;
  FileSystem* const fs_;
  const bool shared_;
  const double cache_seconds_;
  bool initialized_ = false;
  std::unique_ptr<BackingRegistry> registry_;
  // Held while a pool file is registered, so that the device is not closed (and
  // its number used again) under it.
  Mutex registry_mutex_;
  bool gone_ ABSL_GUARDED_BY(registry_mutex_) = false;
  std::unique_ptr<Passthrough> passthrough_;
  ListedDirectories listed_;
  FuseCounters counters_;
  std::vector<std::thread> threads_;
  // Names that the kernel is to be told of. It takes the directory's lock for that, which
  // an operation has that may be waiting for who calls NameChanged.
  Mutex names_mutex_;
  CondVar names_wake_;
  std::deque<std::pair<InodeId, std::string>> names_ ABSL_GUARDED_BY(names_mutex_);
  bool telling_ ABSL_GUARDED_BY(names_mutex_) = false;
  bool names_end_ ABSL_GUARDED_BY(names_mutex_) = false;
  std::thread names_thread_;
  // What the calling thread reads requests into; null on ring threads. Whoever
  // takes its memory leaves null there.
  static thread_local fuse_buf* request_buffer_;
  std::atomic<int> error_{0};
  std::atomic<bool> spinning_{false};
  std::atomic<int> spin_skips_{0};  // Relaxed: how often AwaitSoon does nothing.
  int spin_misses_ = 0;             // Of whoever is spinning.

  // Requests for locks that wait, by id, and those of them that were
  // interrupted before they began to.
  std::atomic<uint64_t> next_lock_request_{1};
  std::atomic<size_t> lock_waits_{0};
  Mutex interrupted_mutex_;
  absl::flat_hash_set<uint64_t> interrupted_ ABSL_GUARDED_BY(interrupted_mutex_);
};

// The table of operations, for fuse_session_new.
const fuse_lowlevel_ops& FuseOperations();

}  // namespace cfs

#endif  // CFS_FUSE_MOUNT_H_
