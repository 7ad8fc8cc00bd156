#include "cfs/meta/snapshot.h"

#include <memory>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"

namespace cfs {

BucketRecord EmptyBucket(const InodeRecord& dir) {
  BucketRecord bucket;
  bucket.mtime = bucket.ctime = dir.btime;
  return bucket;
}

void Snapshot::Begin() {
  read_.clear();
  missing_.clear();
  writes_ = WriteSet();
}

StripeLocks& Snapshot::locks() {
  // Of nobody's interest: snapshots share nothing. One for each thread, so that nobody
  // waits for what another transaction has locked.
  thread_local const auto locks = std::make_unique<StripeLocks>();
  return *locks;
}

Snapshot::Values Snapshot::Read() const {
  Values read;
  for (const std::string& key : read_) read.emplace(key, values_.at(key));
  return read;
}

absl::StatusOr<std::optional<std::string>> Snapshot::Read(std::string key) {
  const auto it = values_.find(key);
  if (it == values_.end()) {
    missing_.insert(std::move(key));
    return absl::UnavailableError("not read yet");
  }
  read_.insert(std::move(key));
  return it->second;
}

absl::StatusOr<std::string> Snapshot::ReadPresent(std::string key) {
  CFS_ASSIGN_OR_RETURN(std::optional<std::string> value, Read(std::move(key)));
  if (!value) return NotFound();
  return *std::move(value);
}

absl::StatusOr<InodeRecord> Snapshot::GetInode(InodeId ino) {
  CFS_ASSIGN_OR_RETURN(const std::string value, ReadPresent(InodeKey(ino)));
  return DecodeInode(value);
}

absl::StatusOr<DentryRecord> Snapshot::GetDentry(InodeId dir, absl::string_view name) {
  CFS_ASSIGN_OR_RETURN(const std::string value, ReadPresent(DentryKey(dir, name)));
  return DecodeDentry(value);
}

absl::StatusOr<BucketRecord> Snapshot::GetBucket(InodeId dir) {
  CFS_ASSIGN_OR_RETURN(const std::optional<std::string> value, Read(BucketKey(dir, 0)));
  if (value) return DecodeBucket(*value);
  CFS_ASSIGN_OR_RETURN(const InodeRecord inode, GetInode(dir));
  return EmptyBucket(inode);
}

absl::StatusOr<std::string> Snapshot::GetXattr(InodeId ino, absl::string_view name) {
  return ReadPresent(XattrKey(ino, name));
}

absl::StatusOr<std::vector<std::string>> Snapshot::ListXattrs(InodeId) {
  return absl::UnimplementedError("names of xattrs in a transaction");
}

absl::Status Snapshot::Apply(Update* update) {
  writes_ = update->writes();
  return absl::OkStatus();
}

void Snapshot::Divide(absl::FunctionRef<TransactionPart&(Slot)> part_of) const {
  std::set<std::string> counted;
  for (const WriteSet::Write& write : writes_.writes()) {
    TransactionPart& part = part_of(SlotOfKey(write.key));
    if (write.family == Family::kRecords && IsBucketKey(write.key) && !write.is_delete) {
      // Both were written by us, the one that was read by Encode of another.
      const InodeId dir = InodeOfKey(write.key);
      const auto was = values_.find(write.key);
      CFS_CHECK(was != values_.end());
      BucketRecord before;
      if (was->second) before = DecodeBucket(*was->second).value();
      const BucketRecord after = DecodeBucket(write.value).value();
      part.counts.push_back({dir, static_cast<int64_t>(after.entries - before.entries),
                             static_cast<int64_t>(after.subdirs - before.subdirs), after.mtime});
      counted.insert(write.key);
    } else if (write.is_delete) {
      part.writes.Delete(write.family, write.key);
    } else {
      part.writes.Put(write.family, write.key, write.value);
    }
  }
  for (const std::string& key : read_) {
    if (counted.contains(key)) continue;
    part_of(SlotOfKey(key)).compares.push_back({key, values_.at(key)});
  }
}

}  // namespace cfs
