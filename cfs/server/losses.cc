#include "cfs/server/losses.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/awaited.h"
#include "cfs/base/coding.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/transaction_format.h"
#include "cfs/meta/transaction_participant.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

// Of the longest answer.
constexpr size_t kAnswerBytesMax = 512 << 10;
// Inodes that are asked for at once: that many records fit an answer.
constexpr size_t kAskedAtOnce = 64;
// Names that a node tells.
constexpr size_t kNamesMax = 200;
constexpr int kPathNamesMax = 256;
constexpr size_t kListBytes = 64 << 10;
constexpr size_t kEntryBytes = 24;

// Waits for what `start` gives to the callback that it gets.
template <typename T, typename Start>
absl::StatusOr<T> Await(Start start) {
  Awaited<absl::StatusOr<T>> awaited;
  start(Done<T>([&awaited](absl::StatusOr<T> value) { awaited.Set(std::move(value)); }));
  return awaited.Get();
}

// Paths of directories, from their inodes.
class Paths {
 public:
  explicit Paths(FileSystem* names) : names_(names) {}

  // Begins with "..." where a directory above cannot be found.
  std::string PathOf(InodeId dir, int depth = 0) {
    if (dir == kRootInode) return "";
    const auto known = known_.find(dir);
    if (known != known_.end()) return known->second;
    std::string& path = known_[dir];
    path = "...";
    const auto parent =
        Await<Attr>([&](Done<Attr> done) { names_->Lookup(dir, "..", std::move(done)); });
    if (!parent.ok() || depth > kPathNamesMax) return path;
    const InodeId above{parent->st.st_ino};
    const std::string name = NameIn(above, dir);
    if (name.empty()) return path;
    return path = absl::StrCat(PathOf(above, depth + 1), "/", absl::Utf8SafeCHexEscape(name));
  }

 private:
  std::string NameIn(InodeId dir, InodeId child) {
    for (uint64_t offset = 0;;) {
      const auto entries =
          Await<std::vector<ListedEntry>>([&](Done<std::vector<ListedEntry>> done) {
            names_->List(dir, offset, kListBytes, kEntryBytes, /*attributes=*/false,
                         std::move(done));
          });
      if (!entries.ok() || entries->empty()) return "";
      for (const ListedEntry& listed : *entries) {
        const std::string& name = listed.entry.name;
        if (listed.entry.ino == child && name != "." && name != "..") return name;
      }
      offset = entries->back().entry.next;
    }
  }

  FileSystem* const names_;
  std::map<InodeId, std::string> known_;
};

}  // namespace

struct Losses::Counted {
  uint64_t files = 0, names = 0;
  // Names by directory: of files whose data is lost, and of lost inodes.
  std::vector<InodeId> data_dirs, inode_dirs;
  std::vector<std::string> data_names, inode_names;

  void AddInode(InodeId dir, std::string name) {
    ++names;
    if (inode_dirs.size() >= kNamesMax) return;
    inode_dirs.push_back(dir);
    inode_names.push_back(std::move(name));
  }
};

absl::StatusOr<std::string> Losses::Ask(NodeId node, PeerOp op, std::string arguments) {
  const auto answer = Await<PeerAnswer>([&](Done<PeerAnswer> done) {
    PeerRequest request;
    request.op = op;
    request.node = node;
    request.arguments = std::move(arguments);
    request.result_bytes_max = kAnswerBytesMax;
    request.waits = op == PeerOp::kCountLost;
    request.done = std::move(done);
    peers_->Ask(std::move(request));
  });
  if (!answer.ok()) return answer.status();
  return answer->result;
}

void Losses::AskFor(NodeId owner, std::vector<std::pair<InodeId, std::string>> names,
                    const std::vector<InodeId>& inodes, Counted* counted) {
  std::vector<std::string> keys, read, values;
  for (const InodeId ino : inodes) keys.push_back(InodeKey(ino));
  const auto answer = Ask(owner, PeerOp::kReadRecords, Packer().Add(keys).Take());
  TransactionParticipant::Vote vote;
  if (!answer.ok() || !Unpacker(*answer).Take(&vote, &read, &values)) return;
  // One that a transaction has is there; the others are asked for again.
  if (vote != TransactionParticipant::Vote::kYes && names.size() > 1) {
    for (size_t i = 0; i < names.size(); ++i) AskFor(owner, {names[i]}, {inodes[i]}, counted);
  }
  for (size_t i = 0; i < std::min(names.size(), values.size()); ++i) {
    if (values[i].empty()) counted->AddInode(names[i].first, std::move(names[i].second));
  }
}

absl::StatusOr<std::string> Losses::CountHere(absl::string_view arguments) {
  CFS_ASSIGN_OR_RETURN(const std::vector<NodeId> nodes, DecodeNodes(arguments));
  Store* const store = local_->shard()->store();
  Counted counted;
  // Names here of inodes elsewhere, by owner.
  struct Away {
    std::vector<std::pair<InodeId, std::string>> names;
    std::vector<InodeId> inodes;
  };
  std::map<NodeId, Away> away;
  const auto ask = [&](NodeId owner, Away* all) {
    AskFor(owner, std::exchange(all->names, {}), std::exchange(all->inodes, {}), &counted);
  };
  const auto add_file = [&](InodeId ino) {
    ++counted.files;
    if (counted.data_dirs.size() >= kNamesMax) return absl::OkStatus();
    // Where its slot has a name of it, and most do.
    std::string prefix;
    AppendBig(&prefix, Raw(SlotOf(ino)));
    return store->Scan(Family::kRecords, prefix, prefix,
                       [&](absl::string_view key, absl::string_view value) {
                         uint64_t hash;
                         absl::string_view name;
                         if (!ParseDentryKey(key, &hash, &name)) return true;
                         const auto dentry = DecodeDentry(value);
                         if (!dentry.ok() || dentry->ino != ino) return true;
                         counted.data_dirs.push_back(InodeOfKey(key));
                         counted.data_names.emplace_back(name);
                         return false;
                       });
  };
  absl::Status status;
  CFS_RETURN_IF_ERROR(
      store->Scan(Family::kRecords, "", "", [&](absl::string_view key, absl::string_view value) {
        const Slot slot = SlotOfKey(key);
        if (!local_->Owns(slot)) return true;
        uint64_t hash;
        absl::string_view name;
        if (IsInodeKey(key)) {
          const auto inode = DecodeInode(value);
          if (inode.ok() && inode->IsRegular() && inode->nlink > 0 &&
              std::ranges::find(nodes, inode->home) != nodes.end()) {
            status = add_file(InodeOfKey(key));
          }
        } else if (ParseDentryKey(key, &hash, &name)) {
          const auto dentry = DecodeDentry(value);
          // What is in one slot was lost together.
          if (!dentry.ok() || SlotOf(dentry->ino) == slot) return true;
          if (local_->Owns(SlotOf(dentry->ino))) {
            std::string inode;
            if (absl::IsNotFound(store->Get(Family::kRecords, InodeKey(dentry->ino), &inode))) {
              counted.AddInode(InodeOfKey(key), std::string(name));
            }
            return true;
          }
          const NodeId owner = map_()->OwnerOf(SlotOf(dentry->ino));
          Away& all = away[owner];
          all.names.emplace_back(InodeOfKey(key), name);
          all.inodes.push_back(dentry->ino);
          if (all.inodes.size() >= kAskedAtOnce) ask(owner, &all);
        }
        return status.ok();
      }));
  CFS_RETURN_IF_ERROR(status);
  for (auto& [owner, all] : away) {
    if (!all.inodes.empty()) ask(owner, &all);
  }
  return Packer()
      .Add(counted.files, counted.names, counted.data_dirs, counted.data_names, counted.inode_dirs,
           counted.inode_names)
      .Take();
}

Losses::Report Losses::CountAll(FileSystem* names, const std::vector<NodeId>& nodes) {
  Report report;
  Paths paths(names);
  const auto add = [&paths](const std::vector<InodeId>& dirs, const std::vector<std::string>& texts,
                            std::vector<std::string>* out) {
    for (size_t i = 0; i < dirs.size() && i < texts.size() && out->size() < kNamesMax; ++i) {
      out->push_back(absl::StrCat(paths.PathOf(dirs[i]), "/", absl::Utf8SafeCHexEscape(texts[i])));
    }
  };
  const std::string arguments = EncodeNodes(nodes);
  const ClusterMapPtr map = map_();
  for (const ClusterNode& node : map->nodes()) {
    if (IsGone(node.state)) continue;
    const auto answer =
        node.id == self_ ? CountHere(arguments) : Ask(node.id, PeerOp::kCountLost, arguments);
    Counted counted;
    if (!answer.ok() ||
        !Unpacker(*answer).Take(&counted.files, &counted.names, &counted.data_dirs,
                                &counted.data_names, &counted.inode_dirs, &counted.inode_names)) {
      report.silent.push_back(Raw(node.id));
      continue;
    }
    report.files += counted.files;
    report.names += counted.names;
    add(counted.data_dirs, counted.data_names, &report.paths_of_data);
    add(counted.inode_dirs, counted.inode_names, &report.paths_of_inodes);
  }
  LogWarn("what went with lost nodes files=", report.files, " names=", report.names);
  return report;
}

nlohmann::json Losses::Count(FileSystem* names, std::vector<NodeId> nodes) {
  {
    MutexLock lock(&mutex_);
    if (counting_) return {{"ready", false}};
    if (report_) {
      const Report report = *std::exchange(report_, std::nullopt);
      return {{"ready", true},
              {"files", report.files},
              {"names", report.names},
              {"silent", report.silent},
              {"paths_of_data", report.paths_of_data},
              {"paths_of_inodes", report.paths_of_inodes}};
    }
    counting_ = true;
  }
  local_->RunIo([this, names, nodes = std::move(nodes)] {
    Report report = CountAll(names, nodes);
    MutexLock lock(&mutex_);
    report_ = std::move(report);
    counting_ = false;
  });
  return {{"ready", false}};
}

}  // namespace cfs
