#include "cfs/meta/records.h"

#include "absl/strings/cord.h"
#include "cfs/base/check.h"
#include "cfs/base/coding.h"

namespace cfs {
namespace {

constexpr char kNeedUrl[] = "cfs/backend-need";

}  // namespace

absl::Status NeedsBackend(const BackendNeed& need) {
  std::string bytes(1, static_cast<char>(need.kind));
  AppendLittle(&bytes, Raw(need.ino));
  absl::Status status = absl::UnavailableError("only on the backend");
  status.SetPayload(kNeedUrl, absl::Cord(bytes));
  return status;
}

std::optional<BackendNeed> BackendNeedOf(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return std::nullopt;
  const auto payload = status.GetPayload(kNeedUrl);
  if (!payload) return std::nullopt;
  const std::string bytes(*payload);
  absl::string_view in = bytes;
  uint8_t kind;
  uint64_t ino;
  CFS_CHECK(ConsumeLittle(&in, &kind) && ConsumeLittle(&in, &ino));
  return BackendNeed{static_cast<BackendNeed::Kind>(kind), InodeId(ino)};
}

void Records::Update::PutInode(InodeId ino, InodeRecord record) {
  writes_.Put(Family::kRecords, InodeKey(ino), Encode(record));
  inodes_.emplace_back(ino, std::move(record));
}

void Records::Update::DeleteInode(InodeId ino) {
  writes_.Delete(Family::kRecords, InodeKey(ino));
  inodes_.emplace_back(ino, std::nullopt);
}

void Records::Update::PutDentry(InodeId dir, absl::string_view name, DentryRecord record) {
  CFS_CHECK(record.ino != kNoInode);
  writes_.Put(Family::kRecords, DentryKey(dir, name), Encode(record));
  dentries_.emplace_back(std::make_pair(dir, std::string(name)), record);
}

void Records::Update::DeleteDentry(InodeId dir, absl::string_view name) {
  writes_.Delete(Family::kRecords, DentryKey(dir, name));
  dentries_.emplace_back(std::make_pair(dir, std::string(name)), std::nullopt);
}

void Records::Update::PutBucket(InodeId dir, BucketRecord record) {
  writes_.Put(Family::kRecords, BucketKey(dir, 0), Encode(record));
  buckets_.emplace_back(dir, record);
}

void Records::Update::DeleteBucket(InodeId dir) {
  writes_.Delete(Family::kRecords, BucketKey(dir, 0));
  buckets_.emplace_back(dir, std::nullopt);
}

void Records::Update::PutXattr(InodeId ino, absl::string_view name, absl::string_view value) {
  writes_.Put(Family::kRecords, XattrKey(ino, name), std::string(value));
  xattrs_.push_back(ino);
}

void Records::Update::DeleteXattr(InodeId ino, absl::string_view name) {
  writes_.Delete(Family::kRecords, XattrKey(ino, name));
  xattrs_.push_back(ino);
}

void Records::Update::PutQueue(QueueKind kind, InodeId ino, BackingId backing) {
  writes_.Put(Family::kQueue, QueueKey(kind, ino), EncodeBacking(backing));
}

void Records::Update::DeleteQueue(QueueKind kind, InodeId ino) {
  writes_.Delete(Family::kQueue, QueueKey(kind, ino));
}

void Records::Update::PutDoomed(BackingId backing) {
  writes_.Put(Family::kLocal, DoomedKey(backing), EncodeBacking(backing));
}

void Records::Update::DeleteDoomed(BackingId backing) {
  writes_.Delete(Family::kLocal, DoomedKey(backing));
}

void Records::Update::PutForeign(BackingId backing, InodeId ino) {
  writes_.Put(Family::kLocal, ForeignKey(backing), EncodeInodeNumber(ino));
}

void Records::Update::DeleteForeign(BackingId backing) {
  writes_.Delete(Family::kLocal, ForeignKey(backing));
}

void Records::Update::DeleteReply(Slot slot, const RequestId& request) {
  writes_.Delete(Family::kQueue, ReplyKey(slot, request));
}

void Records::Update::PutStoreState(const StoreState& state) {
  writes_.Put(Family::kLocal, kStoreStateKey, Encode(state));
}

}  // namespace cfs
