// The backend of a node: brings names and data from there when they are needed.
#ifndef CFS_SERVER_BACKEND_TIER_H_
#define CFS_SERVER_BACKEND_TIER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "cfs/base/clock.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/base/unique_fd.h"
#include "cfs/server/backend_directories.h"
#include "cfs/server/backend_refresh.h"
#include "cfs/server/evictor.h"
#include "cfs/server/flusher.h"
#include "cfs/server/local_file_system.h"
#include "cfs/tier/io_pool.h"
#include "cfs/tier/io_uring.h"

namespace cfs {

// Guarantees: a directory is imported whole or not at all; what a file has here is
// what it had on the backend at some moment since it was asked for. Whoever asks for
// what is on its way waits for the same. What is on the backend is changed by the Flusher
// only, if there is one.
// A backend that does not answer holds up only what needs it.
// Thread-safe.
class BackendTier final : public LocalFileSystem::Fetcher {
 public:
  struct Options {
    std::string path;
    bool writes_back = false;
    uint64_t store_bytes = 0;  // How much files may take here; 0: as much as there is.
    std::string own_name;      // Of the store, and no other's.
    absl::Duration ttl;        // How long what was looked at there is used; zero: for ever.
  };
  // The root of `fs` becomes the directory `path`, or has been it before. `fs` and `clock`
  // outlive the tier.
  static absl::StatusOr<std::unique_ptr<BackendTier>> Open(const Options& options,
                                                           LocalFileSystem* fs, Clock* clock);
  // REQUIRES: nobody calls Fetch any more. Waits for what is on its way.
  ~BackendTier() override;

  // There is a mount by now, if there is going to be one: what is to be said to the kernel
  // can be.
  void Start();
  void Fetch(const BackendNeed& need, DoneStatus done) override;
  std::string FlushError(InodeId ino) override {
    return flusher_ == nullptr ? "" : flusher_->ErrorOf(ino);
  }
  bool IsDue(InodeId dir, absl::string_view name) override;
  // Once for all who ask. After an error, what is known is used.
  void Look(InodeId dir, absl::string_view name, absl::AnyInvocable<void()> done) override;
  // Ends what is on its way, with EINTR; returns when every completion has run.
  void Drain();
  // What the mount needs, that nobody may do more than on the backend.
  absl::StatusOr<std::vector<std::string>> MountOptions() const;
  nlohmann::json Status();
  // Null where the backend is only read.
  Flusher* flusher() { return flusher_.get(); }
  BackendRefresh* refresh() { return refresh_.get(); }

 private:
  using Key = std::pair<int, InodeId>;

  BackendTier(const Options& options, LocalFileSystem* fs, Clock* clock, UniqueFd top);

  IoPool* PoolOf(const BackendNeed& need) {
    return need.kind == BackendNeed::kNames ? names_pool_.get() : pool_.get();
  }
  // False if it all ends.
  bool Pause(std::chrono::nanoseconds duration);
  absl::Status FetchNow(const BackendNeed& need);
  absl::Status ImportNow(InodeId dir);
  // EAGAIN: it was moved meanwhile.
  absl::Status ImportOnce(InodeId dir);
  // Returns when an import of it that was under way has ended.
  void AwaitImport(InodeId dir);
  absl::Status StageNow(InodeId ino);
  // One try. False: the object changed meanwhile.
  absl::StatusOr<bool> StageOnce(InodeId ino);
  void RunUpkeep();
  // What could not be written to the device is dropped, as soon as nobody reads it.
  void DropUnsound(std::vector<InodeId>* unsound);

  const std::string path_;
  LocalFileSystem* const fs_;
  Clock* const clock_;
  BackendDirectories directories_;
  LargeCopier large_;
  // Relaxed: seen soon enough.
  std::atomic<bool> ending_{false};
  LineLimit failure_lines_;
  // When an object was last looked at whose stamp was not known.
  std::atomic<SteadyClock::time_point> newest_stamp_{SteadyClock::time_point::min()};

  Mutex mutex_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<Key, std::vector<DoneStatus>> fetching_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::pair<InodeId, std::string>, std::vector<absl::AnyInvocable<void()>>>
      looking_ ABSL_GUARDED_BY(mutex_);
  std::vector<InodeId> soft_ ABSL_GUARDED_BY(mutex_);  // Staged, or flushed, and not hardened yet.
  uint64_t imported_directories_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t imported_entries_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t staged_files_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t staged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t failures_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status last_failure_ ABSL_GUARDED_BY(mutex_);

  Thread upkeep_;
  // Nobody who needs a name waits for somebody else's data; looks wait for imports.
  std::unique_ptr<IoPool> pool_, names_pool_, looks_pool_;
  std::unique_ptr<Flusher> flusher_;
  std::unique_ptr<Evictor> evictor_;
  std::unique_ptr<BackendRefresh> refresh_;
};

}  // namespace cfs

#endif  // CFS_SERVER_BACKEND_TIER_H_
