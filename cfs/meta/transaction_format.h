// What the nodes of a transaction tell each other of it, and write down.
//
//   queue    slot 'p' coordinator-slot(2) node incarnation seq   TransactionPart: prepared here
//            slot 'c' node incarnation seq                       node numbers: committed, and
//                                             who may not have that on the device yet
//
// A prepared part is kept in the first slot that it touches, the outcome in the
// coordinator's.
#ifndef CFS_META_TRANSACTION_FORMAT_H_
#define CFS_META_TRANSACTION_FORMAT_H_

#include <compare>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/types.h"
#include "cfs/meta/records.h"
#include "cfs/meta/store.h"

namespace cfs {

// Which transaction: the slot whose owner coordinates it, the process that began
// it, and its number there. Never used again.
struct TransactionId {
  Slot slot{0};
  NodeId node{0};
  uint64_t incarnation = 0;
  uint64_t sequence = 0;

  auto operator<=>(const TransactionId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const TransactionId& id) {
    return H::combine(std::move(h), id.slot, id.node, id.incarnation, id.sequence);
  }
};

// What a transaction does at one node, a minitransaction's items (Sinfonia, SOSP
// '07): if all that it has read is as it was, it writes.
struct TransactionPart {
  struct Compare {
    std::string key;  // Of `records`.
    std::optional<std::string> value;
  };
  // Entries more or fewer in a directory. Added, not compared: directories are
  // where everybody works at once.
  struct Count {
    InodeId dir = kNoInode;
    int64_t entries = 0;
    int64_t subdirs = 0;
    timespec now{};
  };
  std::vector<Compare> compares;
  WriteSet writes;  // To `records` and `queue`.
  std::vector<Count> counts;

  // Its keys are of the slots that it returns.
  std::vector<Slot> Slots() const;
};

std::string Encode(const TransactionPart& part);
// DATA_LOSS for what Encode did not write, or a part that touches nothing.
absl::StatusOr<TransactionPart> DecodeTransactionPart(absl::string_view bytes);

std::string Encode(const TransactionId& id);
[[nodiscard]] bool ConsumeTransactionId(absl::string_view* in, TransactionId* id);

std::string PreparedKey(Slot slot, const TransactionId& id);
bool ParsePreparedKey(absl::string_view key, Slot* slot, TransactionId* id);
std::string OutcomeKey(const TransactionId& id);
bool ParseOutcomeKey(absl::string_view key, TransactionId* id);
std::string EncodeNodes(const std::vector<NodeId>& nodes);
absl::StatusOr<std::vector<NodeId>> DecodeNodes(absl::string_view value);

}  // namespace cfs

#endif  // CFS_META_TRANSACTION_FORMAT_H_
