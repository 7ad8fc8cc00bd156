// What a transaction has read of the records of several nodes, as far as it has
// come; and what it wants to write.
#ifndef CFS_META_SNAPSHOT_H_
#define CFS_META_SNAPSHOT_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cfs/meta/records.h"
#include "cfs/meta/transaction_format.h"

namespace cfs {

// Records that an operation of Namespace runs over without anybody waiting: what
// it reads and is not there is noted, and the operation fails; it is run again
// when that was fetched, until it has all it needs. It commits nothing: what it
// would have written is then in the parts.
// Thread-compatible.
class Snapshot final : public Records {
 public:
  // Nothing: there is no such record.
  void Add(const std::string& key, std::optional<std::string> value) {
    values_[key] = std::move(value);
  }
  // Forgets what was read, for it has changed.
  void Clear() { values_.clear(); }

  // Before the operation is run.
  void Begin();
  const std::set<std::string>& missing() const { return missing_; }
  // What the operation has read.
  using Values = std::map<std::string, std::optional<std::string>>;
  Values Read() const;
  // What the operation has read and written. By slots, which `owner` gives nodes.
  // REQUIRES: it has committed.
  template <typename OwnerFn>
  std::map<NodeId, TransactionPart> Parts(OwnerFn owner) const {
    std::map<NodeId, TransactionPart> parts;
    Divide([&](Slot slot) -> TransactionPart& { return parts[owner(slot)]; });
    return parts;
  }

  StripeLocks& locks() override;
  absl::StatusOr<InodeRecord> GetInode(InodeId ino) override;
  absl::StatusOr<DentryRecord> GetDentry(InodeId dir, absl::string_view name) override;
  absl::StatusOr<BucketRecord> GetBucket(InodeId dir) override;
  absl::StatusOr<std::string> GetXattr(InodeId ino, absl::string_view name) override;
  // Not to be had: UNIMPLEMENTED.
  absl::StatusOr<std::vector<std::string>> ListXattrs(InodeId ino) override;

 private:
  absl::Status Apply(Update* update) override;
  absl::StatusOr<std::optional<std::string>> Read(std::string key);
  absl::StatusOr<std::string> ReadPresent(std::string key);
  void Divide(absl::FunctionRef<TransactionPart&(Slot)> part_of) const;

  Values values_;
  std::set<std::string> read_, missing_;
  WriteSet writes_;
};

// What a directory's bucket is that has no record.
BucketRecord EmptyBucket(const InodeRecord& dir);

}  // namespace cfs

#endif  // CFS_META_SNAPSHOT_H_
