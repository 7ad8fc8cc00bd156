#include "tests/simulator/check.h"

#include <dirent.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "cfs/meta/transaction_format.h"

namespace cfs {
namespace {

struct Tree {
  std::map<InodeId, InodeRecord> inodes;
  std::map<InodeId, BucketRecord> buckets;
  std::map<std::pair<InodeId, std::string>, DentryRecord> dentries;
  std::set<InodeId> orphans;
};

std::string Read(const OwnedRecords& node, Tree* tree) {
  std::string wrong;
  const auto no = [&](absl::string_view what) {
    wrong = absl::StrCat("node ", Raw(node.node), ": ", what);
    return false;
  };
  const auto take_record = [&](absl::string_view key, absl::string_view value) {
    if (!node.owns(SlotOfKey(key))) return node.has_others || no("a record of another's slot");
    const InodeId ino = InodeOfKey(key);
    uint64_t hash;
    absl::string_view name;
    if (IsInodeKey(key)) {
      tree->inodes[ino] = DecodeInode(value).value();
    } else if (IsBucketKey(key)) {
      tree->buckets[ino] = DecodeBucket(value).value();
    } else if (ParseDentryKey(key, &hash, &name)) {
      tree->dentries[{ino, std::string(name)}] = DecodeDentry(value).value();
    } else {
      return no("an unknown record");
    }
    return true;
  };
  const auto take_queue = [&](absl::string_view key, absl::string_view) {
    QueueKind kind;
    InodeId ino;
    Slot slot;
    RequestId request;
    if (node.has_others && (ParseReplyKey(key, &slot, &request) || !node.owns(SlotOfKey(key)))) {
      return true;
    }
    if (!ParseQueueKey(key, &kind, &ino)) return no("a transaction is unfinished");
    if (kind == QueueKind::kOrphan) tree->orphans.insert(ino);
    return true;
  };
  node.disk->Scan(Family::kRecords, "", "", take_record).IgnoreError();  // Does not fail.
  if (wrong.empty()) node.disk->Scan(Family::kQueue, "", "", take_queue).IgnoreError();
  return wrong;
}

std::string Check(const Tree& tree) {
  std::map<InodeId, uint32_t> names;
  std::map<InodeId, BucketRecord> counted;
  std::map<InodeId, InodeId> parents;
  for (const auto& [at, dentry] : tree.dentries) {
    const std::string what =
        absl::StrCat("name ", Raw(at.first), "/", at.second, " of ", Raw(dentry.ino));
    const auto inode = tree.inodes.find(dentry.ino);
    if (inode == tree.inodes.end()) return what + ": no such inode";
    if (dentry.type != IFTODT(inode->second.mode)) return what + ": another type";
    const auto dir = tree.inodes.find(at.first);
    if (dir == tree.inodes.end() || !dir->second.IsDirectory() || dir->second.nlink == 0) {
      return what + ": in no directory";
    }
    ++names[dentry.ino];
    ++counted[at.first].entries;
    if (!inode->second.IsDirectory()) continue;
    ++counted[at.first].subdirs;
    parents[dentry.ino] = at.first;
    if (inode->second.parent != at.first) return what + ": another parent";
  }
  for (const auto& [ino, record] : tree.inodes) {
    const std::string what = absl::StrCat("inode ", Raw(ino));
    const uint32_t expected = ino == kRootInode ? 1 : names[ino];
    if (record.nlink != expected) {
      return absl::StrCat(what, ": ", expected, " names, nlink ", record.nlink);
    }
    if (record.IsDirectory() && expected > 1) return what + ": a directory with two names";
    if ((record.nlink == 0) != tree.orphans.contains(ino)) return what + ": queued, or not";
    const auto bucket = tree.buckets.find(ino);
    const BucketRecord has = bucket == tree.buckets.end() ? BucketRecord() : bucket->second;
    if (has.entries != counted[ino].entries || has.subdirs != counted[ino].subdirs) {
      return absl::StrCat(what, ": ", counted[ino].entries, " entries, ", counted[ino].subdirs,
                          " directories, counted ", has.entries, ", ", has.subdirs);
    }
    if (!record.IsDirectory() || record.nlink == 0) continue;
    InodeId at = ino;
    for (size_t steps = 0; at != kRootInode; at = parents[at]) {
      if (++steps > tree.inodes.size()) return what + ": not below the root";
    }
  }
  for (const auto& [ino, bucket] : tree.buckets) {
    if (!tree.inodes.contains(ino)) return absl::StrCat("bucket ", Raw(ino), ": no such inode");
  }
  for (const InodeId ino : tree.orphans) {
    if (!tree.inodes.contains(ino)) return absl::StrCat("orphan ", Raw(ino), ": no such inode");
  }
  return "";
}

}  // namespace

bool HasUnfinished(Cluster* cluster) {
  bool unfinished = false;
  for (Cluster::Node& node : cluster->nodes()) {
    const auto look = [&](absl::string_view key, absl::string_view) {
      Slot slot;
      TransactionId id;
      unfinished |= ParsePreparedKey(key, &slot, &id) || ParseOutcomeKey(key, &id);
      return !unfinished;
    };
    node.disk.Scan(Family::kQueue, "", "", look).IgnoreError();  // Does not fail.
  }
  return unfinished;
}

std::string CheckTree(const std::vector<OwnedRecords>& nodes,
                      std::map<std::pair<InodeId, std::string>, InodeId>* names) {
  Tree tree;
  for (const OwnedRecords& node : nodes) {
    std::string wrong = Read(node, &tree);
    if (!wrong.empty()) return wrong;
  }
  if (names != nullptr) {
    for (const auto& [at, dentry] : tree.dentries) names->emplace(at, dentry.ino);
  }
  return Check(tree);
}

std::string CheckTree(Cluster* cluster) {
  std::vector<OwnedRecords> nodes;
  for (Cluster::Node& node : cluster->nodes()) {
    nodes.push_back({node.id, &node.disk,
                     [id = node.id](Slot slot) { return Cluster::OwnerOf(slot) == id; }});
  }
  return CheckTree(nodes);
}

}  // namespace cfs
