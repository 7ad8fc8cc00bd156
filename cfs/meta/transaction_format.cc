#include "cfs/meta/transaction_format.h"

#include <algorithm>

#include "cfs/base/coding.h"

namespace cfs {
namespace {

constexpr uint8_t kVersion = 1;
constexpr char kPrepared = 'p';
constexpr char kOutcome = 'c';
constexpr size_t kProcessBytes = 4 + 8 + 8;

void AppendProcess(std::string* out, const TransactionId& id) {
  AppendBig(out, Raw(id.node));
  AppendBig(out, id.incarnation);
  AppendBig(out, id.sequence);
}

void ReadProcess(const char* at, TransactionId* id) {
  id->node = NodeId(ReadBig<uint32_t>(at));
  id->incarnation = ReadBig<uint64_t>(at + 4);
  id->sequence = ReadBig<uint64_t>(at + 12);
}

absl::Status Corrupt() { return absl::DataLossError("transaction: malformed record"); }

// Whether the key can be one of the family that has slots.
bool HasSlot(absl::string_view key) { return key.size() > 3; }

}  // namespace

std::vector<Slot> TransactionPart::Slots() const {
  std::vector<Slot> slots;
  for (const Compare& compare : compares) slots.push_back(SlotOfKey(compare.key));
  for (const WriteSet::Write& write : writes.writes()) slots.push_back(SlotOfKey(write.key));
  for (const Count& count : counts) slots.push_back(SlotOf(count.dir));
  std::sort(slots.begin(), slots.end());
  slots.erase(std::unique(slots.begin(), slots.end()), slots.end());
  return slots;
}

std::string Encode(const TransactionPart& part) {
  std::string out(1, static_cast<char>(kVersion));
  AppendLittle(&out, static_cast<uint32_t>(part.compares.size()));
  for (const TransactionPart::Compare& compare : part.compares) {
    AppendSized<uint32_t>(&out, compare.key);
    AppendLittle(&out, static_cast<uint8_t>(compare.value.has_value()));
    if (compare.value) AppendSized<uint32_t>(&out, *compare.value);
  }
  AppendLittle(&out, static_cast<uint32_t>(part.writes.writes().size()));
  for (const WriteSet::Write& write : part.writes.writes()) {
    AppendLittle(&out, static_cast<uint8_t>(write.family));
    AppendLittle(&out, static_cast<uint8_t>(write.is_delete));
    AppendSized<uint32_t>(&out, write.key);
    if (!write.is_delete) AppendSized<uint32_t>(&out, write.value);
  }
  AppendLittle(&out, static_cast<uint32_t>(part.counts.size()));
  for (const TransactionPart::Count& count : part.counts) {
    AppendLittle(&out, Raw(count.dir));
    AppendLittle(&out, static_cast<uint64_t>(count.entries));
    AppendLittle(&out, static_cast<uint64_t>(count.subdirs));
    AppendLittle(&out, static_cast<uint64_t>(count.now.tv_sec));
    AppendLittle(&out, static_cast<uint32_t>(count.now.tv_nsec));
  }
  return out;
}

absl::StatusOr<TransactionPart> DecodeTransactionPart(absl::string_view in) {
  TransactionPart part;
  uint8_t version;
  uint32_t count;
  if (!ConsumeLittle(&in, &version)) return Corrupt();
  if (version > kVersion) return absl::UnimplementedError("transaction: newer than this program");
  if (version == 0 || !ConsumeLittle(&in, &count)) return Corrupt();
  // One at a time: a count that lies costs nothing.
  for (; count > 0; --count) {
    TransactionPart::Compare& compare = part.compares.emplace_back();
    uint8_t has;
    if (!ConsumeSized<uint32_t>(&in, &compare.key) || !ConsumeLittle(&in, &has) || has > 1 ||
        !HasSlot(compare.key)) {
      return Corrupt();
    }
    if (has == 1 && !ConsumeSized<uint32_t>(&in, &compare.value.emplace())) return Corrupt();
  }
  if (!ConsumeLittle(&in, &count)) return Corrupt();
  for (; count > 0; --count) {
    uint8_t family, is_delete;
    std::string key, value;
    if (!ConsumeLittle(&in, &family) || !ConsumeLittle(&in, &is_delete) || is_delete > 1 ||
        family >= static_cast<uint8_t>(Family::kLocal) || !ConsumeSized<uint32_t>(&in, &key) ||
        !HasSlot(key)) {
      return Corrupt();
    }
    if (is_delete == 1) {
      part.writes.Delete(Family(family), std::move(key));
      continue;
    }
    if (!ConsumeSized<uint32_t>(&in, &value)) return Corrupt();
    part.writes.Put(Family(family), std::move(key), std::move(value));
  }
  if (!ConsumeLittle(&in, &count)) return Corrupt();
  for (; count > 0; --count) {
    uint64_t dir, entries, subdirs, seconds;
    uint32_t nanoseconds;
    if (!ConsumeLittle(&in, &dir) || !ConsumeLittle(&in, &entries) ||
        !ConsumeLittle(&in, &subdirs) || !ConsumeLittle(&in, &seconds) ||
        !ConsumeLittle(&in, &nanoseconds) || nanoseconds >= 1'000'000'000) {
      return Corrupt();
    }
    part.counts.push_back({InodeId(dir), static_cast<int64_t>(entries),
                           static_cast<int64_t>(subdirs),
                           {static_cast<time_t>(seconds), static_cast<long>(nanoseconds)}});
  }
  if (!in.empty() || part.Slots().empty()) return Corrupt();
  return part;
}

std::string Encode(const TransactionId& id) {
  std::string out;
  AppendBig(&out, Raw(id.slot));
  AppendProcess(&out, id);
  return out;
}

bool ConsumeTransactionId(absl::string_view* in, TransactionId* id) {
  if (in->size() < 2 + kProcessBytes) return false;
  id->slot = Slot(ReadBig<uint16_t>(in->data()));
  ReadProcess(in->data() + 2, id);
  in->remove_prefix(2 + kProcessBytes);
  return true;
}

std::string PreparedKey(Slot slot, const TransactionId& id) {
  std::string key;
  AppendBig(&key, Raw(slot));
  key.push_back(kPrepared);
  return key + Encode(id);
}

bool ParsePreparedKey(absl::string_view key, Slot* slot, TransactionId* id) {
  if (key.size() != 2 + 1 + 2 + kProcessBytes || key[2] != kPrepared) return false;
  *slot = Slot(ReadBig<uint16_t>(key.data()));
  key.remove_prefix(3);
  return ConsumeTransactionId(&key, id);
}

std::string OutcomeKey(const TransactionId& id) {
  std::string key;
  AppendBig(&key, Raw(id.slot));
  key.push_back(kOutcome);
  AppendProcess(&key, id);
  return key;
}

bool ParseOutcomeKey(absl::string_view key, TransactionId* id) {
  if (key.size() != 2 + 1 + kProcessBytes || key[2] != kOutcome) return false;
  id->slot = Slot(ReadBig<uint16_t>(key.data()));
  ReadProcess(key.data() + 3, id);
  return true;
}

std::string EncodeNodes(const std::vector<NodeId>& nodes) {
  std::string out(1, static_cast<char>(kVersion));
  for (const NodeId node : nodes) AppendLittle(&out, Raw(node));
  return out;
}

absl::StatusOr<std::vector<NodeId>> DecodeNodes(absl::string_view in) {
  uint8_t version;
  if (!ConsumeLittle(&in, &version) || version == 0 || in.size() % 4 != 0) return Corrupt();
  if (version > kVersion) return absl::UnimplementedError("transaction: newer than this program");
  std::vector<NodeId> nodes;
  uint32_t node;
  while (ConsumeLittle(&in, &node)) nodes.push_back(NodeId(node));
  return nodes;
}

}  // namespace cfs
