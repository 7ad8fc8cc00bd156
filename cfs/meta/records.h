// What the operations of a file system read and write of the metadata: records
// by what they are about, wherever they are.
#ifndef CFS_META_RECORDS_H_
#define CFS_META_RECORDS_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/stripe_locks.h"
#include "cfs/base/types.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/store.h"

namespace cfs {

// Guarantees: a read returns what the last Update committed.
// Thread-safety: the caller holds the stripe lock of each inode (for dentries
// and buckets: of the directory) that it reads or updates.
// Errors: NOT_FOUND for what is not there; DATA_LOSS for a malformed record;
// IsNotOwned and IsBusy as below.
class Records {
 public:
  virtual ~Records() = default;

  virtual StripeLocks& locks() = 0;

  virtual absl::StatusOr<InodeRecord> GetInode(InodeId ino) = 0;
  virtual absl::StatusOr<DentryRecord> GetDentry(InodeId dir, absl::string_view name) = 0;
  // `dir` is a directory.
  virtual absl::StatusOr<BucketRecord> GetBucket(InodeId dir) = 0;
  virtual absl::StatusOr<std::string> GetXattr(InodeId ino, absl::string_view name) = 0;
  virtual absl::StatusOr<std::vector<std::string>> ListXattrs(InodeId ino) = 0;

  // One operation's writes. Commit applies them atomically and brings the
  // caches up to date; without Commit nothing happens. See RequestScope for what
  // it adds to them.
  class Update {
   public:
    // What the update is for. kRequested: it is what somebody asked for, and what
    // a RequestScope has to record; kUpkeep: our own, however it came to be now.
    // kAgreed: what the backend says, or what is there as well.
    enum class Purpose { kUpkeep, kRequested, kAgreed };

    explicit Update(Records* records, Purpose purpose = Purpose::kUpkeep)
        : records_(records), purpose_(purpose) {}
    Update(const Update&) = delete;
    Update& operator=(const Update&) = delete;

    void PutInode(InodeId ino, InodeRecord record);
    void DeleteInode(InodeId ino);
    void PutDentry(InodeId dir, absl::string_view name, DentryRecord record);
    void DeleteDentry(InodeId dir, absl::string_view name);
    void PutBucket(InodeId dir, BucketRecord record);
    void DeleteBucket(InodeId dir);
    void PutXattr(InodeId ino, absl::string_view name, absl::string_view value);
    void DeleteXattr(InodeId ino, absl::string_view name);
    void PutQueue(QueueKind kind, InodeId ino, BackingId backing);
    void DeleteQueue(QueueKind kind, InodeId ino);
    void PutDoomed(BackingId backing);
    void DeleteDoomed(BackingId backing);
    void PutForeign(BackingId backing, InodeId ino);
    void DeleteForeign(BackingId backing);
    void DeleteReply(Slot slot, const RequestId& request);
    void PutStoreState(const StoreState& state);
    // As it is, for what is no record of a kind above.
    void PutRaw(Family family, std::string key, std::string value) {
      writes_.Put(family, std::move(key), std::move(value));
    }
    void DeleteRaw(Family family, std::string key) { writes_.Delete(family, std::move(key)); }

    bool empty() const { return writes_.empty(); }
    const WriteSet& writes() const { return writes_; }
    absl::Status Commit() { return writes_.empty() ? absl::OkStatus() : records_->Apply(this); }

   private:
    friend class Shard;

    Records* const records_;
    const Purpose purpose_;
    WriteSet writes_;
    std::vector<std::pair<InodeId, std::optional<InodeRecord>>> inodes_;
    std::vector<std::pair<InodeId, std::optional<BucketRecord>>> buckets_;
    std::vector<std::pair<std::pair<InodeId, std::string>, std::optional<DentryRecord>>> dentries_;
    std::vector<InodeId> xattrs_;  // Whose have changed.
  };

 protected:
  virtual absl::Status Apply(Update* update) = 0;
};

// The records are another node's. No errno is meant by it, nor by Busy.
inline constexpr absl::string_view kNotOwned = "another node owns it";
inline absl::Status NotOwned() { return absl::Status(absl::StatusCode::kOutOfRange, kNotOwned); }
inline bool IsNotOwned(const absl::Status& status) {
  return absl::IsOutOfRange(status) && status.message() == kNotOwned;
}
// A transaction has them: try again in a moment.
inline constexpr absl::string_view kBusy = "a transaction has it";
inline absl::Status Busy() { return absl::Status(absl::StatusCode::kAborted, kBusy); }
inline bool IsBusy(const absl::Status& status) {
  return absl::IsAborted(status) && status.message() == kBusy;
}

// What is only on the backend has to be brought from there first: what a directory
// has, or what is in a file. Or something has to go there, for the store is full.
struct BackendNeed {
  enum Kind : uint8_t { kNames, kData, kRoom } kind = kNames;
  InodeId ino = kNoInode;  // Not of kRoom.
};
absl::Status NeedsBackend(const BackendNeed& need);
// Nothing where a status says something else.
std::optional<BackendNeed> BackendNeedOf(const absl::Status& status);

}  // namespace cfs

#endif  // CFS_META_RECORDS_H_
