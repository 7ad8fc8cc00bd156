// Keeps room in a store that is in front of a backend.
#ifndef CFS_SERVER_EVICTOR_H_
#define CFS_SERVER_EVICTOR_H_

#include <atomic>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/server/flusher.h"
#include "cfs/server/local_file_system.h"

namespace cfs {

// Drops copies of what is on the backend when the store gets full: of files that nobody
// has open or pinned, those first whose size times the time since their last use is
// greatest.
//
// Guarantees: what is not on the backend as it is here stays. Who waits for room gets it
// when something could be dropped or was removed, and waits for as long as files become
// clean.
//
// Thread-safe. One thread works.
class Evictor {
 public:
  // No `flusher`: all is on the backend already. `bytes_max`: how much files may take
  // here, 0: as much as there is. Both outlive it.
  Evictor(LocalFileSystem* fs, Flusher* flusher, uint64_t bytes_max);
  // Stops.
  ~Evictor();

  void Start();
  // Who waits gets EINTR.
  void Stop();

  // ENOSPC: nothing that is here can go.
  void MakeRoom(DoneStatus done);
  // How much a file may have at most.
  uint64_t total() const { return total_.load(std::memory_order_relaxed); }
  absl::Status MakeRoomNow();
  nlohmann::json Status();

 private:
  // Of what files may take.
  struct Fill {
    uint64_t total = 0;
    uint64_t free = 0;
    bool at_limit = false;  // It is `bytes_max` that is used up.
  };

  void Run();
  // What the device says, and since the last count has taken or given.
  absl::StatusOr<Fill> Look();
  // Drops files of as much together, if there are as many. How much it was.
  absl::StatusOr<uint64_t> Evict(uint64_t bytes);
  // The best ones of as much together, but for those that are known not to go; with those
  // that may be open if `open`.
  absl::StatusOr<std::vector<LocalFileSystem::Resident>> Choose(
      uint64_t bytes, bool open, const absl::flat_hash_set<InodeId>& staying);
  absl::Status Serve();
  // Until a flush has ended, or brings nothing, or there is more free than `free`.
  void AwaitFlush(uint64_t free);
  bool IsFreer(uint64_t free);
  // False: all ends.
  bool Pause();
  void Publish(const Fill& fill);

  LocalFileSystem* const fs_;
  Flusher* const flusher_;
  const uint64_t bytes_max_;
  LineLimit lines_;
  // Of the thread: what files took when they were counted, and the device then.
  bool counted_ = false;
  bool again_ = false;  // Once more, even if nothing changes.
  uint64_t counted_bytes_ = 0;
  uint64_t counted_used_ = 0;
  SteadyClock::time_point counted_at_;
  SteadyClock::duration count_took_{};
  // What is here cannot go; not before then is it looked at again.
  SteadyClock::time_point idle_until_;

  std::atomic<uint64_t> evicted_files_{0}, evicted_bytes_{0}, total_{0}, free_{0};

  Mutex mutex_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<DoneStatus> waiting_ ABSL_GUARDED_BY(mutex_);
  Thread thread_;
};

}  // namespace cfs

#endif  // CFS_SERVER_EVICTOR_H_
