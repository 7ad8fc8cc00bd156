#include "cfs/meta/record_format.h"

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

constexpr size_t kSlotBytes = 2;
constexpr size_t kDentryHeadBytes = kSlotBytes + 1 + 8 + 8;

std::string Prefix(InodeId ino, char kind, size_t reserve) {
  std::string key;
  key.reserve(kSlotBytes + 1 + 8 + reserve);
  AppendBig(&key, Raw(SlotOf(ino)));
  key.push_back(kind);
  AppendBig(&key, Raw(ino));
  return key;
}

absl::Status CheckVersion(absl::string_view* value, absl::string_view what) {
  if (value->empty()) return absl::DataLossError(absl::StrCat(what, ": empty record"));
  const uint8_t version = static_cast<uint8_t>(value->front());
  value->remove_prefix(1);
  if (version > kRecordVersion) {
    return absl::UnimplementedError(
        absl::StrCat(what, ": record version ", version, " is newer than this program"));
  }
  if (version == 0) return absl::DataLossError(absl::StrCat(what, ": record version 0"));
  return absl::OkStatus();
}

absl::Status Corrupt(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(what, ": malformed record"));
}

std::string Versioned() { return std::string(1, static_cast<char>(kRecordVersion)); }

std::string LocalKey(char kind, BackingId backing) {
  std::string key(1, kind);
  AppendBig(&key, Raw(backing));
  return key;
}

bool ParseLocalKey(char kind, absl::string_view key, BackingId* backing) {
  if (key.size() != 1 + 8 || key[0] != kind) return false;
  *backing = BackingId(ReadBig<uint64_t>(key.data() + 1));
  return true;
}

std::string EncodeNumber(uint64_t number) {
  std::string out = Versioned();
  AppendLittle(&out, number);
  return out;
}

absl::StatusOr<uint64_t> DecodeNumber(absl::string_view in, absl::string_view what) {
  const absl::Status version = CheckVersion(&in, what);
  if (!version.ok()) return version;
  uint64_t number;
  if (!ConsumeLittle(&in, &number) || !in.empty()) return Corrupt(what);
  return number;
}

}  // namespace

Slot SlotOfKey(absl::string_view key) {
  CFS_CHECK(key.size() > kSlotBytes);
  return Slot(ReadBig<uint16_t>(key.data()));
}

InodeId InodeOfKey(absl::string_view key) {
  if (key.size() < kSlotBytes + 1 + 8) return kNoInode;
  return InodeId(ReadBig<uint64_t>(key.data() + kSlotBytes + 1));
}

bool IsInodeKey(absl::string_view key) {
  return key.size() == kSlotBytes + 1 + 8 && key[kSlotBytes] == 'i';
}

bool IsBucketKey(absl::string_view key) {
  return key.size() == kSlotBytes + 1 + 8 + 2 && key[kSlotBytes] == 'b';
}

std::string InodeKey(InodeId ino) { return Prefix(ino, 'i', 0); }

std::string BucketKey(InodeId dir, uint16_t bucket) {
  std::string key = Prefix(dir, 'b', 2);
  AppendBig(&key, bucket);
  return key;
}

std::string DentryPrefix(InodeId dir) { return Prefix(dir, 'd', 0); }

std::string DentrySeekKey(InodeId dir, uint64_t hash) {
  std::string key = Prefix(dir, 'd', 8);
  AppendBig(&key, hash);
  return key;
}

std::string DentryKey(InodeId dir, absl::string_view name) {
  std::string key = Prefix(dir, 'd', 8 + name.size());
  AppendBig(&key, Hash64(name));
  key.append(name.data(), name.size());
  return key;
}

bool ParseDentryKey(absl::string_view key, uint64_t* hash, absl::string_view* name) {
  if (key.size() <= kDentryHeadBytes || key[kSlotBytes] != 'd') return false;
  *hash = ReadBig<uint64_t>(key.data() + kDentryHeadBytes - 8);
  *name = key.substr(kDentryHeadBytes);
  return true;
}

std::string XattrPrefix(InodeId ino) { return Prefix(ino, 'x', 0); }

std::string XattrKey(InodeId ino, absl::string_view name) {
  std::string key = Prefix(ino, 'x', name.size());
  key.append(name.data(), name.size());
  return key;
}

std::string QueueKey(QueueKind kind, InodeId ino) {
  std::string key;
  AppendBig(&key, Raw(SlotOf(ino)));
  key.push_back('q');
  key.push_back(static_cast<char>(kind));
  AppendBig(&key, Raw(ino));
  return key;
}

bool ParseQueueKey(absl::string_view key, QueueKind* kind, InodeId* ino) {
  if (key.size() != kSlotBytes + 2 + 8 || key[kSlotBytes] != 'q') return false;
  *kind = static_cast<QueueKind>(key[kSlotBytes + 1]);
  *ino = InodeId(ReadBig<uint64_t>(key.data() + kSlotBytes + 2));
  return true;
}

std::string ReplyKey(Slot slot, const RequestId& request) {
  std::string key;
  AppendBig(&key, Raw(slot));
  key.push_back('r');
  AppendBig(&key, Raw(request.client));
  AppendBig(&key, request.incarnation);
  AppendBig(&key, request.sequence);
  return key;
}

bool ParseReplyKey(absl::string_view key, Slot* slot, RequestId* request) {
  if (key.size() != kSlotBytes + 1 + 4 + 8 + 8 || key[kSlotBytes] != 'r') return false;
  *slot = Slot(ReadBig<uint16_t>(key.data()));
  const char* const at = key.data() + kSlotBytes + 1;
  request->client = NodeId(ReadBig<uint32_t>(at));
  request->incarnation = ReadBig<uint64_t>(at + 4);
  request->sequence = ReadBig<uint64_t>(at + 12);
  return true;
}

std::string DoomedKey(BackingId backing) { return LocalKey(kDoomedPrefix[0], backing); }

bool ParseDoomedKey(absl::string_view key, BackingId* backing) {
  return ParseLocalKey(kDoomedPrefix[0], key, backing);
}

std::string ForeignKey(BackingId backing) { return LocalKey(kForeignPrefix[0], backing); }

bool ParseForeignKey(absl::string_view key, BackingId* backing) {
  return ParseLocalKey(kForeignPrefix[0], key, backing);
}

std::string GivingKey(uint64_t number) { return LocalKey(kGivingPrefix[0], BackingId(number)); }

bool ParseGivingKey(absl::string_view key, uint64_t* number) {
  BackingId id;
  if (!ParseLocalKey(kGivingPrefix[0], key, &id)) return false;
  *number = Raw(id);
  return true;
}

std::string TakenKey(uint64_t number) { return LocalKey(kTakenPrefix[0], BackingId(number)); }

std::string Encode(const InodeRecord& r) {
  std::string out = Versioned();
  out.reserve(176 + r.target.size() + r.backend_identity.size());
  AppendLittle(&out, static_cast<uint8_t>(r.layout));
  AppendLittle(&out, static_cast<uint8_t>(r.residency));
  AppendLittle(&out, r.fan_out_log2);
  AppendLittle(&out, r.flags);
  AppendLittle(&out, r.xattr_list_bytes);
  AppendLittle(&out, r.mode);
  AppendLittle(&out, r.nlink);
  AppendLittle(&out, r.uid);
  AppendLittle(&out, r.gid);
  AppendLittle(&out, r.rdev);
  AppendLittle(&out, r.size);
  AppendLittle(&out, r.blocks);
  AppendTime(&out, r.atime);
  AppendTime(&out, r.mtime);
  AppendTime(&out, r.ctime);
  AppendTime(&out, r.btime);
  AppendLittle(&out, Raw(r.home));
  AppendLittle(&out, Raw(r.backing));
  AppendLittle(&out, r.attr_epoch);
  AppendLittle(&out, Raw(r.parent));
  AppendSized<uint16_t>(&out, r.target);
  AppendSized<uint16_t>(&out, r.backend_identity);
  AppendLittle(&out, r.chunk_bytes);
  CFS_CHECK(r.stripe_nodes.size() <= UINT16_MAX);
  AppendLittle(&out, static_cast<uint16_t>(r.stripe_nodes.size()));
  for (NodeId node : r.stripe_nodes) AppendLittle(&out, Raw(node));
  return out;
}

absl::StatusOr<InodeRecord> DecodeInode(absl::string_view in) {
  const absl::Status version = CheckVersion(&in, "inode");
  if (!version.ok()) return version;
  InodeRecord r;
  uint8_t layout, residency;
  uint32_t home;
  uint64_t backing, parent;
  uint16_t stripe_count;
  if (!ConsumeLittle(&in, &layout) || !ConsumeLittle(&in, &residency) ||
      !ConsumeLittle(&in, &r.fan_out_log2) || !ConsumeLittle(&in, &r.flags) ||
      !ConsumeLittle(&in, &r.xattr_list_bytes) || !ConsumeLittle(&in, &r.mode) || !ConsumeLittle(&in, &r.nlink) ||
      !ConsumeLittle(&in, &r.uid) || !ConsumeLittle(&in, &r.gid) ||
      !ConsumeLittle(&in, &r.rdev) || !ConsumeLittle(&in, &r.size) ||
      !ConsumeLittle(&in, &r.blocks) || !ConsumeTime(&in, &r.atime) ||
      !ConsumeTime(&in, &r.mtime) || !ConsumeTime(&in, &r.ctime) || !ConsumeTime(&in, &r.btime) ||
      !ConsumeLittle(&in, &home) || !ConsumeLittle(&in, &backing) ||
      !ConsumeLittle(&in, &r.attr_epoch) || !ConsumeLittle(&in, &parent) ||
      !ConsumeSized<uint16_t>(&in, &r.target) || !ConsumeSized<uint16_t>(&in, &r.backend_identity) ||
      !ConsumeLittle(&in, &r.chunk_bytes) || !ConsumeLittle(&in, &stripe_count)) {
    return Corrupt("inode");
  }
  if (layout > static_cast<uint8_t>(Layout::kBackend) ||
      residency > static_cast<uint8_t>(Residency::kPartial) ||
      in.size() != size_t{stripe_count} * sizeof(uint32_t)) {
    return Corrupt("inode");
  }
  r.layout = static_cast<Layout>(layout);
  r.residency = static_cast<Residency>(residency);
  r.home = NodeId(home);
  r.backing = BackingId(backing);
  r.parent = InodeId(parent);
  uint32_t node;
  while (ConsumeLittle(&in, &node)) r.stripe_nodes.push_back(NodeId(node));
  return r;
}

std::string Encode(const BucketRecord& r) {
  std::string out = Versioned();
  out.reserve(48);
  AppendLittle(&out, r.entries);
  AppendLittle(&out, r.subdirs);
  AppendTime(&out, r.mtime);
  AppendTime(&out, r.ctime);
  return out;
}

absl::StatusOr<BucketRecord> DecodeBucket(absl::string_view in) {
  const absl::Status version = CheckVersion(&in, "bucket");
  if (!version.ok()) return version;
  BucketRecord r;
  if (!ConsumeLittle(&in, &r.entries) || !ConsumeLittle(&in, &r.subdirs) ||
      !ConsumeTime(&in, &r.mtime) || !ConsumeTime(&in, &r.ctime) || !in.empty()) {
    return Corrupt("bucket");
  }
  return r;
}

std::string Encode(const DentryRecord& r) {
  std::string out = Versioned();
  AppendLittle(&out, Raw(r.ino));
  AppendLittle(&out, r.type);
  return out;
}

absl::StatusOr<DentryRecord> DecodeDentry(absl::string_view in) {
  const absl::Status version = CheckVersion(&in, "dentry");
  if (!version.ok()) return version;
  DentryRecord r;
  uint64_t ino;
  if (!ConsumeLittle(&in, &ino) || !ConsumeLittle(&in, &r.type) || !in.empty() || ino == 0) {
    return Corrupt("dentry");
  }
  r.ino = InodeId(ino);
  return r;
}

std::string Encode(const StoreState& s) {
  std::string out = Versioned();
  AppendLittle(&out, s.counter_end);
  AppendLittle(&out, s.inode_lead);
  AppendLittle(&out, s.settled);
  AppendLittle(&out, s.attr_epoch);
  AppendLittle(&out, static_cast<uint8_t>(s.clean));
  return out;
}

absl::StatusOr<StoreState> DecodeStoreState(absl::string_view in) {
  const absl::Status version = CheckVersion(&in, "store state");
  if (!version.ok()) return version;
  StoreState s;
  uint8_t clean;
  if (!ConsumeLittle(&in, &s.counter_end) || !ConsumeLittle(&in, &s.inode_lead) ||
      !ConsumeLittle(&in, &s.settled) ||
      !ConsumeLittle(&in, &s.attr_epoch) || !ConsumeLittle(&in, &clean) || !in.empty() ||
      clean > 1) {
    return Corrupt("store state");
  }
  s.clean = clean == 1;
  return s;
}

std::string Encode(const SlotSet& slots) {
  std::string out = Versioned();
  for (size_t i = 0; i < kSlots; i += 8) {
    uint8_t byte = 0;
    for (size_t j = 0; j < 8; ++j) byte |= static_cast<uint8_t>(slots[i + j] << j);
    AppendLittle(&out, byte);
  }
  return out;
}

absl::StatusOr<SlotSet> DecodeSlots(absl::string_view in) {
  const absl::Status version = CheckVersion(&in, "slots");
  if (!version.ok()) return version;
  if (in.size() != kSlots / 8) return Corrupt("slots");
  SlotSet slots;
  for (size_t i = 0; i < kSlots; ++i) slots[i] = static_cast<uint8_t>(in[i / 8]) >> (i % 8) & 1;
  return slots;
}

std::string EncodeBacking(BackingId backing) { return EncodeNumber(Raw(backing)); }
std::string EncodeInodeNumber(InodeId ino) { return EncodeNumber(Raw(ino)); }

absl::StatusOr<BackingId> DecodeBacking(absl::string_view in) {
  const absl::StatusOr<uint64_t> number = DecodeNumber(in, "backing number");
  if (!number.ok()) return number.status();
  return BackingId(*number);
}

absl::StatusOr<InodeId> DecodeInodeNumber(absl::string_view in) {
  const absl::StatusOr<uint64_t> number = DecodeNumber(in, "inode number");
  if (!number.ok()) return number.status();
  return InodeId(*number);
}

}  // namespace cfs
