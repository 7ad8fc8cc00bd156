// Brings what was changed here to the backend.
#ifndef CFS_SERVER_FLUSHER_H_
#define CFS_SERVER_FLUSHER_H_

#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/mutex.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"
#include "cfs/base/types.h"
#include "cfs/meta/xattr.h"
#include "cfs/server/backend_directories.h"
#include "cfs/server/local_file_system.h"
#include "cfs/tier/io_pool.h"
#include "cfs/tier/io_uring.h"

namespace cfs {

// Makes the backend equal to what is here, name by name and inode by inode, over and over.
//
// Guarantees: what it has done and not noted when the process ends is recognized, and not
// done twice, but for the copying of data. A file there is replaced by one that is whole and on
// the device, or (if it has several names, or is large and there is no room for another)
// written in place while the copy here is on the device. What
// others have changed or made on the backend is neither overwritten nor removed. A mark
// goes only when what it stands for is on the backend's devices.
//
// Thread-safe. One thread works, and some that copy.
class Flusher {
 public:
  // Told what came to the backend and is not on the device here: Harden is for others to call.
  using OnSoft = std::function<void(const std::vector<InodeId>& inodes)>;

  // All outlive it.
  Flusher(LocalFileSystem* fs, BackendDirectories* directories, LargeCopier* large, OnSoft on_soft);
  // Stops.
  ~Flusher();

  // REQUIRES: before the first operation on `fs`.
  absl::Status Prepare();
  // Conflicts are said to the kernel: there is a mount by now, if there is going to be one.
  void Start();
  // Stop is to flush everything first: nobody changes anything then any more.
  void FinishAtStop();
  // Ends what is on its way; what is dirty stays so.
  void Stop();

  // Everything that is dirty now is to be flushed at once. The number to ask with.
  uint64_t BeginSync();
  // The same of what nobody is writing, and has not just failed.
  uint64_t BeginFlush();
  // Rises with whatever is done on the backend, and with each file that becomes clean.
  uint64_t activity() const { return activity_.load(std::memory_order_relaxed); }
  uint64_t cleaned() const { return cleaned_.load(std::memory_order_relaxed); }
  // Everything that was dirty at BeginSync has been tried.
  bool HasSynced(uint64_t number) {
    MutexLock lock(&mutex_);
    return synced_ >= number;
  }
  // Of what is dirty, so much stays dirty because user.cfs.flush says so.
  uint64_t staying() const { return staying_marks_.load(std::memory_order_relaxed); }
  nlohmann::json SyncStatus(uint64_t number);
  // Of the last pass, of the inode or a name of it; "" if there was none.
  std::string ErrorOf(InodeId ino);
  nlohmann::json Status();

  // Another name of an object that has several is where it is found from now on. False:
  // none is known.
  absl::StatusOr<bool> FindLink(InodeId ino, const BackendIdentity& identity);

 private:
  using DirtyPlace = LocalFileSystem::DirtyPlace;
  using Outgoing = LocalFileSystem::Outgoing;
  using Object = std::optional<struct statx>;

  // More are synced with all of the backend.
  static constexpr size_t kSyncedOneByOne = 16;
  // Of no file system.
  static constexpr int kNotOurs = ENOTUNIQ;

  enum class Outcome {
    kDone,
    kLater,   // Something else has to be in its place first.
    kAgain,   // It has changed.
    kGone,    // Somebody has removed it here.
    kBirth,   // The object is to be made.
    kNotYet,  // It has a writer, or was changed just now.
  };
  // A file on its way to the backend.
  struct Copy {
    InodeId ino = kNoInode;
    InodeId dir = kNoInode;
    std::string name;
    DirtyPlace* place = nullptr;  // Where there is none yet; null: one is replaced.
    Outgoing out;
    uint64_t number = 0;  // Of the new object.
    bool in_place = false;
    bool synced = false;  // What is new there is on the backend's devices.
    bool landing = false;
    Outcome outcome = Outcome::kDone;
    absl::Status status;
  };
  struct Trouble {
    std::string path;
    absl::Status status;
    int tries = 0;
    SteadyClock::time_point next;
    bool old = false;  // Tried again in this pass.
  };
  // What user.cfs.flush says of what is dirty.
  class Policies {
   public:
    explicit Policies(LocalFileSystem* fs) : fs_(fs) {}
    // When it is to go there, after a change; nothing: it stays here.
    std::optional<uint64_t> DelayOf(const DirtyPlace& place);
    std::optional<uint64_t> DelayOf(InodeId ino);
    // How many marks stay, and of how many files.
    uint64_t marks() const { return marks_; }
    uint64_t files() const { return files_; }

   private:
    FlushPolicy Of(InodeId ino, const absl::StatusOr<InodeRecord>& record, InodeId dir);

    LocalFileSystem* const fs_;
    LocalFileSystem::KnownPolicies known_;
    absl::flat_hash_set<InodeId> unborn_;  // Of the places.
    uint64_t marks_ = 0;
    uint64_t files_ = 0;
  };
  // One time through all that is dirty.
  struct Pass {
    bool now = false;       // Also what was changed just now,
    bool all = false;       // and what has a writer.
    uint64_t due = 0;       // When the first of what is left out, for it is young, is due.
    uint64_t young = 0;     // How much that is.
    uint64_t time = 0;      // ns since the epoch.
    bool left = true;       // Something is dirty afterwards.
    bool restless = false;  // Something was changed meanwhile.
    bool again = false;     // Something is left that another pass can do.
    // Something was done that only a sync of all of the backend makes last.
    bool wide = false;
    std::deque<DirtyPlace> places;
    std::vector<LocalFileSystem::DirtyInode> inodes;
    absl::flat_hash_set<InodeId> ending;  // The same.
    // What is to be said to be clean when all is synced.
    std::vector<DirtyPlace*> placed;
    std::vector<LocalFileSystem::DirtyInode> written;
    absl::flat_hash_map<InodeId, uint64_t> born;  // At which version.
    absl::flat_hash_map<InodeId, timespec> soft;  // With which ctime of the backing file.
    absl::flat_hash_set<InodeId> touched;         // Directories.
    absl::flat_hash_map<std::string, Trouble> troubles;
    // Whose directories were not found where they were.
    absl::flat_hash_map<const DirtyPlace*, absl::Status> lost;
  };

  void Run();
  absl::Status RunPass(Pass* pass);
  absl::Status IntendAll(Pass* pass, std::deque<DirtyPlace*>* round);
  void PlaceAll(Pass* pass);
  bool TakeBackFull(Pass* pass, std::deque<DirtyPlace*>* round);
  absl::StatusOr<bool> TakeBack(Pass* pass, DirtyPlace* place);
  void WriteAll(Pass* pass);
  void SyncTouched(Pass* pass);
  absl::Status EndAll(Pass* pass);
  absl::Status EndWritten(Pass* pass, const LocalFileSystem::DirtyInode& inode,
                          std::vector<InodeId>* soft);
  absl::Status CleanOwn(const std::vector<InodeId>& pending);

  absl::Status Repair();
  absl::Status RepairStamp(InodeId ino);
  absl::Status Intend(DirtyPlace* place, bool* noted);
  absl::StatusOr<Outcome> Place(Pass* pass, DirtyPlace* place);
  absl::Status PlaceIn(Pass* pass, int fd, DirtyPlace* place, Outcome* outcome);
  absl::StatusOr<bool> IsHalfDone(const DirtyName& mark, const struct statx& there) const;
  absl::Status Recognize(DirtyPlace* place, const Object& there);
  absl::Status Agree(DirtyPlace* place, InodeId ino, const Object& there);
  absl::Status NoteLinks(InodeId ino, const BackendIdentity& identity, const DirtyPlace& place);
  absl::Status LoseLink(int fd, const std::string& name, InodeId ino);
  absl::Status Merge(InodeId dir);
  absl::StatusOr<Outcome> Clear(int fd, DirtyPlace* place, bool replaced, Object* there);
  absl::StatusOr<Outcome> Move(Pass* pass, int fd, DirtyPlace* place, InodeId ino,
                               const InodeRecord& record, bool replace);
  absl::StatusOr<Outcome> Conflict(Pass* pass, int fd, DirtyPlace* place, InodeId ino,
                                   const struct statx& there);

  absl::StatusOr<Outcome> Write(Pass* pass, const LocalFileSystem::DirtyInode& dirty,
                                std::vector<Copy>* copies);
  absl::Status WriteDirectory(InodeId dir);
  absl::Status Disown(InodeId ino);
  absl::Status WriteMetadata(InodeId ino, const Outgoing& out);
  absl::StatusOr<struct statx> FindObject(int fd, const Outgoing& out,
                                          const BackendIdentity& identity) const;
  void ForEach(std::vector<Copy>* copies, size_t begin, size_t end,
               absl::FunctionRef<void(Copy*)> work);
  void CopyAll(Pass* pass, std::vector<Copy>* copies);
  // Of a file that has a writer.
  bool IsDue(const Pass& pass, InodeId ino, const Outgoing& out) const;
  // With `sync`, it is synced by itself.
  absl::Status CopyOne(const Pass& pass, bool sync, Copy* copy);
  bool HasRoom(uint64_t bytes) const;
  absl::Status WillCopyInPlace(uint64_t number, Copy* copy);
  absl::Status Land(Copy* copy);
  void NoteLanded(Pass* pass, Copy* copy);
  absl::Status LandBirth(int fd, int own, Copy* copy);
  absl::Status LandRewrite(int fd, int own, Copy* copy, const BackendIdentity& identity);

  void FailInode(Pass* pass, InodeId ino, const absl::Status& status);
  // What is due then is left for later.
  static bool IsYoung(Pass* pass, uint64_t due);
  bool IsHeldBack(const Pass& pass, const std::string& key) const;
  void Fail(Pass* pass, const std::string& key, std::string path, const absl::Status& status);
  std::string PathOf(InodeId dir, const std::string& name);
  std::string PathOf(InodeId ino);
  void CountLeft(const Pass& pass);
  absl::flat_hash_map<InodeId, std::string> ErrorsOf(const Pass& pass);
  nlohmann::json Failed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LocalFileSystem* const fs_;
  BackendDirectories* const directories_;
  LargeCopier* const large_;
  const OnSoft on_soft_;
  // When files that have a writer were brought there last.
  absl::flat_hash_map<InodeId, uint64_t> brought_;
  // Of the pass: directories that others have put something into.
  absl::flat_hash_set<const DirtyPlace*> full_;
  Trouble cleaning_;     // CleanOwn as it went last.
  bool fsyncs_ = false;  // The backend does not know how to sync all of it.
  // Relaxed: seen soon enough.
  std::atomic<bool> ending_{false};
  std::atomic<uint64_t> flushed_files_{0}, flushed_bytes_{0}, conflicts_{0};
  std::atomic<uint64_t> activity_{0}, cleaned_{0};
  std::atomic<uint64_t> left_{0};  // In this pass.
  // By the last one: what stays here because that is wanted.
  std::atomic<uint64_t> staying_marks_{0}, staying_files_{0};
  LineLimit failure_lines_;

  Mutex mutex_;
  CondVar wake_;
  uint64_t asked_ ABSL_GUARDED_BY(mutex_) = 0;   // The last sync that was begun,
  uint64_t synced_ ABSL_GUARDED_BY(mutex_) = 0;  // and that ended.
  bool asked_all_ ABSL_GUARDED_BY(mutex_) = false;  // One of those between is of all.
  CondVar synced_one_;
  bool finishes_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<std::string, Trouble> troubles_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<InodeId, std::string> errors_ ABSL_GUARDED_BY(mutex_);
  absl::Status pass_failure_ ABSL_GUARDED_BY(mutex_);

  IoPool pool_;
  Thread thread_;
};

}  // namespace cfs

#endif  // CFS_SERVER_FLUSHER_H_
