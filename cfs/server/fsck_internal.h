// What the files of CheckStores share, and nobody else includes.
#ifndef CFS_SERVER_FSCK_INTERNAL_H_
#define CFS_SERVER_FSCK_INTERNAL_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/store.h"
#include "cfs/meta/transaction_format.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/fsck.h"
#include "cfs/server/store_dir.h"

namespace cfs {

// There may be ten million of each of these three.
struct FsckInode {
  InodeId ino;
  InodeId parent;  // Of a directory; where it has a name, of that.
  uint32_t nlink;
  uint8_t type;  // DT_*.
  bool on_backend;
};
struct FsckName {
  static constexpr uint64_t kTypeMask = 15;  // DT_* are less.

  InodeId child;
  InodeId dir;
  uint64_t hash_and_type;  // That the dentry's key has, but for its lowest bits.

  uint8_t type() const { return hash_and_type & kTypeMask; }
};
// A backing file, and the inode that it is of.
struct FsckUse {
  BackingId backing;
  InodeId ino;

  auto operator<=>(const FsckUse&) const = default;
};

struct FsckStore {
  IdleStore dir;
  std::unique_ptr<Store> meta;  // Null: there is none yet.
  StoreState state;
  SlotSet owned;
  SlotSet giving;                 // Of them: on their way to another node.
  std::vector<BackingId> doomed;  // Ascending.
  std::vector<FsckUse> foreign;   // Ascending; kNoInode for an uncertain create.
  std::vector<FsckUse> uses;      // What inodes say is in this store.
  // What transactions have decided to write and not written yet, by family.
  std::map<std::string, std::optional<std::string>> decided[2];
  absl::flat_hash_map<InodeId, std::pair<int64_t, int64_t>> decided_counts;

  // The end of some run was not in good order.
  bool ended_badly() const { return !state.clean || state.attr_epoch > 1; }
};

class Fsck {
 public:
  explicit Fsck(bool strict) : strict_(strict) {}

  absl::Status Run(const std::vector<std::string>& paths);
  FsckReport TakeReport() { return std::move(report_); }

 private:
  using Visit = std::function<void(absl::string_view key, absl::string_view value)>;
  class SlotRecords;

  struct Subject {
    InodeId ino = kNoInode;
    std::string text;  // Where it is no inode.
  };
  // Findings of inodes get their paths in the end.
  void Error(absl::string_view kind, Subject subject, std::string what);
  void Note(absl::string_view kind, Subject subject, std::string what);
  // What a node that was lost may have left behind.
  void Loss(absl::string_view kind, Subject subject, std::string what);
  void Add(bool is_error, absl::string_view kind, Subject subject, std::string what);
  void AddPaths();
  static Subject Inode(InodeId ino) { return {ino, ""}; }
  static Subject Of(const FsckStore& store) { return {kNoInode, "store " + store.dir.path}; }

  // ---- Stores (fsck.cc)
  absl::Status OpenStores(const std::vector<std::string>& paths);
  absl::Status ReadLocal(FsckStore* store, bool* says_slots);
  absl::Status FindOwners();
  void CheckOwners();
  bool IsOfLostNode(const FsckStore& store) const;
  FsckStore* OwnerOf(Slot slot);  // Null: not among the stores.

  // ---- Records (fsck_records.cc)
  absl::Status ReadTransactions();
  // What is in the store, and what transactions have decided.
  absl::Status Scan(const FsckStore& store, Family family, const Visit& visit);
  absl::Status ReadQueue(FsckStore* store);
  absl::Status ReadRecords(FsckStore* store);
  void AddInode(const FsckStore& owner, InodeId ino, const InodeRecord& record);
  void CheckQueue();
  void CheckNames();
  void CheckInode(FsckInode* inode, const FsckName* begin, const FsckName* end);
  void CheckReachable();
  FsckInode* Find(InodeId ino);
  // The name of the dentry, and the path of the inode, as far as they are known.
  std::string NameOf(const FsckName& name);
  std::string PathOf(InodeId ino);

  // ---- Data (fsck_data.cc)
  absl::Status CheckData(FsckStore* store);
  void CheckMissing(const FsckStore& home, const FsckUse& use);
  void CheckForeign(const FsckStore& home);

  const bool strict_;
  FsckReport report_;
  absl::flat_hash_map<absl::string_view, uint64_t> counts_;  // Of findings, by kind.
  std::vector<InodeId> subjects_;                            // As report_.findings.

  std::vector<FsckStore> stores_;
  ClusterMapPtr map_;     // The latest; null: the one node is alone.
  bool complete_ = true;  // No node's store is missing.
  absl::flat_hash_map<NodeId, FsckStore*> by_node_;
  std::vector<FsckStore*> owners_ = std::vector<FsckStore*>(kSlots);
  std::vector<FsckInode> inodes_;          // Ascending, once all are read.
  std::vector<FsckName> names_;            // By child, once all are read.
  std::vector<InodeId> orphans_, marked_;  // In the queue.
  std::vector<InodeId> unlinked_;          // Without a name, by their record.
};

}  // namespace cfs

#endif  // CFS_SERVER_FSCK_INTERNAL_H_
