// Takes over what others have changed on the backend.
#ifndef CFS_SERVER_BACKEND_REFRESH_H_
#define CFS_SERVER_BACKEND_REFRESH_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/lru_cache.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/base/types.h"
#include "cfs/server/backend_directories.h"
#include "cfs/server/local_file_system.h"
#include "cfs/tier/io_pool.h"

namespace cfs {

// Looks again at what was imported, name by name: first what is known here, and then, at
// what each name stands for there; last, what is here as it was known (or it is left alone).
//
// Guarantees: nothing is removed here because of an error of the backend, nor anything that
// is dirty. Each name is changed in one batch, so that it can end anywhere and be begun again.
// Thread-safe. One thread works, and some that look at names.
class BackendRefresh {
 public:
  // Returns when no import of the directory that began before is under way.
  using AwaitImport = absl::AnyInvocable<void(InodeId dir)>;
  // Called before a stamp is recorded that was not known. Thread-safe.
  using NoteStamp = absl::AnyInvocable<void() const>;

  // The backend is at `path`. `fs` and `directories` outlive it.
  BackendRefresh(std::string path, LocalFileSystem* fs, BackendDirectories* directories,
                 absl::Duration ttl, AwaitImport await_import, NoteStamp note_stamp);
  ~BackendRefresh();
  // Ends what is on its way.
  void Stop();

  // Begins to look at what the names lead to from `top`, and what is below it. The number
  // to ask with.
  uint64_t Begin(InodeId top, std::vector<std::string> way);
  nlohmann::json Progress(uint64_t number);
  nlohmann::json Status();

  // Of --backend-ttl. Whether the name, or (without one) what the directory has, was looked
  // at so long ago that it has to be looked at before it is used. Half of the ttl, for the
  // kernel keeps it for the other half.
  bool IsDue(InodeId dir, absl::string_view name);
  // Looks at it. REQUIRES: several at a time for different names only.
  void LookOnUse(InodeId dir, const std::string& name);
  // All that the directory has was looked at after that time.
  void NoteListed(InodeId dir, SteadyClock::time_point began);

 private:
  using Known = LocalFileSystem::Known;
  struct Said {
    std::string path;
    std::string error;
  };
  // Has another content there, and may be open here.
  struct Busy {
    InodeId dir = kNoInode;
    std::string name;
    InodeId ino = kNoInode;
    std::string path;
  };
  // Of one call of Begin.
  struct Work {
    uint64_t number = 0;
    InodeId top = kNoInode;
    std::vector<std::string> way;
    absl::Status status;
    uint64_t added = 0, gone = 0, changed = 0, left = 0, open = 0, failed = 0;
    std::vector<Said> said;  // Of what is open, or could not be looked at.
    std::vector<Busy> busy;
    // Somebody waits in the kernel, perhaps with a lock, which forgets names by itself.
    bool on_use = false;
  };
  // How a directory was when all that it has was looked at, if its times are of use.
  struct Listed {
    SteadyClock::time_point at{};
    BackendStamp stamp;
  };
  struct Subdirectory {
    InodeId dir = kNoInode;  // Where it has the name.
    std::string name;
    InodeId ino = kNoInode;
    std::string path;
    int tries = 0;
  };
  struct Look {
    Known known;
    absl::StatusOr<struct statx> there;
    const struct statx* st() const { return there.ok() ? &*there : nullptr; }
  };

  void Run();
  void RunOne(Work* work);
  // The backend is what, and where, it was when it was mounted.
  absl::Status CheckTop() const;
  // The directory that is open is the one that is known.
  absl::Status CheckDirectory(InodeId dir, int fd);
  absl::Status RefreshName(Work* work, InodeId dir, const std::string& name,
                           const std::string& path, std::vector<Subdirectory>* below);
  void RefreshTree(Work* work, Subdirectory top);
  void RefreshDirectory(Work* work, Subdirectory at, std::vector<Subdirectory>* below);
  absl::Status RefreshKnown(Work* work, const Subdirectory& at, int fd,
                            std::vector<Subdirectory>* below);
  absl::Status RefreshNew(Work* work, const Subdirectory& at, int fd);
  absl::Status RefreshSelf(Work* work, const Subdirectory& at, int fd, const struct statx& before);
  void LookAt(int fd, std::vector<Look>* looks);
  // REQUIRES: CheckDirectory since it was looked.
  absl::Status Agree(Work* work, int fd, const Look& look, const std::string& path,
                     std::vector<Subdirectory>* below);
  absl::StatusOr<bool> IsOfAnother(InodeId ino, const BackendStamp& stamp);
  absl::Status TakeOver(Work* work, const Known& known, const BackendObject& object,
                        const std::string& path);
  absl::StatusOr<std::optional<uint32_t>> LinksThere(const Known& known);
  absl::Status Replace(Work* work, const Known& known, BackendObject object,
                       const std::string& path);
  // False: something that is dirty stays.
  absl::StatusOr<bool> DropTree(Work* work, Known known, const std::string& path);
  // `path` is the directory's.
  absl::Status Add(Work* work, InodeId dir, const std::string& path,
                   std::vector<LocalFileSystem::Imported> entries);
  absl::Status LookAtNames(Work* work, InodeId dir);
  void CountUnseen(const absl::Status& status);
  void Fail(Work* work, const std::string& path, const absl::Status& status);
  void AwaitClosed(Work* work);
  void RetryOpen();
  nlohmann::json ToJson(const Work& work, bool done) const;

  const std::string path_;
  LocalFileSystem* const fs_;
  BackendDirectories* const directories_;
  const SteadyClock::duration look_after_;  // 0: never.
  AwaitImport await_import_;
  const NoteStamp note_stamp_;
  // When names were looked at, and what directories have.
  LruCache<uint64_t, SteadyClock::time_point> looked_at_;
  LruCache<InodeId, Listed> listed_;
  // Relaxed: seen soon enough.
  std::atomic<bool> ending_{false};
  std::atomic<uint64_t> looked_{0};
  LineLimit failure_lines_;
  // Until they are closed; of the thread.
  std::map<std::pair<InodeId, std::string>, Busy> waiting_;

  Mutex mutex_;
  CondVar wake_;
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Work> asked_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Work> results_ ABSL_GUARDED_BY(mutex_);  // Of the latest.
  uint64_t waiting_count_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t unseen_ ABSL_GUARDED_BY(mutex_) = 0;  // Looks on use that failed.
  uint64_t added_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t gone_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t changed_ ABSL_GUARDED_BY(mutex_) = 0;

  IoPool pool_;
  Thread thread_;
};

}  // namespace cfs

#endif  // CFS_SERVER_BACKEND_REFRESH_H_
