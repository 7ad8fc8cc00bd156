#include "tests/simulator/workload.h"

#include <linux/fs.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"

namespace cfs {
namespace {

constexpr size_t kDirectoriesMax = 30;
constexpr int kTriesMax = 100;

bool MayBeRefusedSo(const absl::Status& status) {
  constexpr int kAllowed[] = {ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, EPERM, EMLINK};
  return !absl::IsDataLoss(status) && !IsNotOwned(status) &&
         std::ranges::find(kAllowed, ErrnoOf(status)) != std::end(kAllowed);
}

}  // namespace

Workload::Workload(Cluster* cluster) : cluster_(cluster) {
  cluster_->SetOnStamp([this](Stamp stamp) {
    if (running_ != nullptr) running_->stamps.push_back(stamp);
  });
  cluster_->SetOnCrash([this](NodeId node) { OnCrash(node); });
  const NodeId owner = Cluster::OwnerOf(SlotOf(kRootInode));
  CFS_CHECK(cluster_->NamesOf(owner)->Format(0, 0).ok());
  CFS_CHECK(cluster_->node(owner).disk.SyncWal().ok());
  directories_.push_back(kRootInode);
}

void Workload::Start(size_t clients, size_t operations_each) {
  clients_ = clients;
  left_.assign(clients, operations_each);
  for (size_t client = 0; client < clients; ++client) Next(client);
}

InodeId Workload::RandomDirectory() {
  Random& random = cluster_->random();
  if (random.PerMille(100)) return kRootInode;
  // One that is there, mostly.
  for (int i = 0; i < 10; ++i) {
    const InodeId dir = directories_[random.Below(directories_.size())];
    std::string value;
    const NodeId owner = Cluster::OwnerOf(SlotOf(dir));
    if (!cluster_->node(owner).disk.Get(Family::kRecords, InodeKey(dir), &value).ok()) continue;
    if (DecodeInode(value).value().nlink > 0 || random.PerMille(100)) return dir;
  }
  return kRootInode;
}

std::string Workload::RandomName(InodeId dir, bool existing) {
  Random& random = cluster_->random();
  std::vector<std::string> names;
  const std::string prefix = DentryPrefix(dir);
  const auto take = [&](absl::string_view key, absl::string_view) {
    uint64_t hash;
    absl::string_view name;
    if (ParseDentryKey(key, &hash, &name)) names.emplace_back(name);
    return true;
  };
  cluster_->node(Cluster::OwnerOf(SlotOf(dir)))
      .disk.Scan(Family::kRecords, prefix, prefix, take)
      .IgnoreError();  // Does not fail.
  if (!names.empty() && random.PerMille(existing ? 900 : 300)) {
    return names[random.Below(names.size())];
  }
  return std::string(1, static_cast<char>('a' + random.Below(6)));
}

void Workload::Next(size_t client) {
  if (left_[client] == 0) {
    --clients_;
    return;
  }
  --left_[client];
  cluster_->After(cluster_->random().Below(100 * kMillisecond), [this, client] {
    Random& random = cluster_->random();
    const InodeId dir = RandomDirectory();
    const NodeId owner = Cluster::OwnerOf(SlotOf(dir));
    if (cluster_->Alive(owner) == nullptr) {
      ++left_[client];
      return Next(client);
    }
    constexpr Kind kKinds[] = {Kind::kMakeDirectory,   Kind::kCreate, Kind::kLink,   Kind::kUnlink,
                               Kind::kRemoveDirectory, Kind::kRename, Kind::kRename, Kind::kRename};
    Operation& op = operations_.emplace_back();
    op.number = operations_.size();
    op.client = client;
    op.kind = kKinds[random.Below(std::size(kKinds))];
    if (op.kind == Kind::kMakeDirectory && directories_.size() >= kDirectoriesMax) {
      op.kind = Kind::kRename;
    }
    op.dir = dir;
    const bool existing =
        op.kind == Kind::kUnlink || op.kind == Kind::kRemoveDirectory || op.kind == Kind::kRename;
    op.name = RandomName(op.dir, existing);
    op.to_dir = random.PerMille(300) ? op.dir : RandomDirectory();
    op.to_name = RandomName(op.to_dir, /*existing=*/false);
    constexpr uint32_t kFlags[] = {0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
    if (op.kind == Kind::kRename) op.flags = kFlags[random.Below(std::size(kFlags))];
    if (op.kind == Kind::kMakeDirectory || op.kind == Kind::kCreate) {
      const Slot slot{static_cast<uint16_t>(random.Below(kUsedSlots))};
      op.ino = MakeInode(slot, next_inode_++);
      (op.kind == Kind::kCreate ? files_ : directories_).push_back(op.ino);
    } else if (op.kind == Kind::kLink) {
      op.ino = files_.empty() ? kRootInode : files_[random.Below(files_.size())];
    }
    op.node = owner;
    constexpr const char* kWords[] = {"mkdir", "create", "link", "unlink", "rmdir", "rename"};
    cluster_->Trace("op ", op.number, " ", kWords[static_cast<int>(op.kind)], " ", Raw(op.ino), " ",
                    Raw(op.dir), "/", op.name, " ", Raw(op.to_dir), "/", op.to_name, " flags ",
                    op.flags, " at node ", Raw(op.node));
    Try(&op);
  });
}

absl::Status Workload::Do(Operation* op, Namespace* names) {
  Operation* const before = std::exchange(running_, op);
  absl::Status status;
  switch (op->kind) {
    case Kind::kMakeDirectory:
    case Kind::kCreate: {
      Namespace::NewInode inode;
      inode.ino = op->ino;
      inode.record.mode = (op->kind == Kind::kCreate ? S_IFREG : S_IFDIR) | 0755;
      status = names->Create({}, op->dir, op->name, std::move(inode)).status();
      break;
    }
    case Kind::kLink:
      status = names->Link(op->ino, op->dir, op->name).status();
      break;
    case Kind::kUnlink:
      status = names->Unlink(op->dir, op->name).status();
      break;
    case Kind::kRemoveDirectory:
      status = names->RemoveDirectory(op->dir, op->name).status();
      break;
    case Kind::kRename:
      status = names->Rename(op->dir, op->name, op->to_dir, op->to_name, op->flags).status();
      break;
  }
  running_ = before;
  return status;
}

// As ClusterNames and PeerService do it.
void Workload::Try(Operation* op) {
  if (op->answer != Answer::kNone) return;
  if (cluster_->Alive(op->node) == nullptr) {
    return Finish(op, absl::UnavailableError("the node is down"));
  }
  const absl::Status status = Do(op, cluster_->NamesOf(op->node));
  if (cluster_->Alive(op->node) == nullptr) return;  // OnCrash follows.
  if (IsBusy(status)) {
    if (++op->tries == kTriesMax) return Finish(op, absl::UnavailableError("always busy"));
    return cluster_->After(20 * kMillisecond, [this, op] { Try(op); });
  }
  if (!IsNotOwned(status)) return Finish(op, status);
  op->transaction = true;
  cluster_->TransactorOf(op->node)->Run(
      SlotOf(op->dir), kNoInode, std::nullopt,
      [this, op](Namespace* names) { return Do(op, names); },
      [this, op](absl::Status done) {
        if (cluster_->Alive(op->node) != nullptr) Finish(op, done);
      });
}

void Workload::Finish(Operation* op, const absl::Status& status) {
  CFS_CHECK(op->answer == Answer::kNone);
  cluster_->Trace("op ", op->number, op->transaction ? " as a transaction: " : ": ",
                  status.ToString());
  if (status.ok()) {
    op->answer = Answer::kOk;
    ++(op->transaction ? counts_.transactions : counts_.alone);
  } else if (absl::IsUnavailable(status)) {
    op->answer = Answer::kUnknown;
    ++counts_.unknown;
  } else {
    op->answer = Answer::kRefused;
    ++counts_.refused;
    if (!MayBeRefusedSo(status)) {
      cluster_->Fail(absl::StrCat("operation ", op->number, ": ", status.ToString()));
    }
  }
  Next(op->client);
}

void Workload::OnCrash(NodeId node) {
  // By index, for more may come.
  for (size_t i = 0; i < operations_.size(); ++i) {
    Operation* const op = &operations_[i];
    if (op->answer == Answer::kNone && op->node == node) {
      Finish(op, absl::UnavailableError("the node is gone"));
    }
  }
}

std::string Workload::Check(const Operation& op,
                            const std::map<Stamp, std::multiset<NodeId>>& happened) {
  size_t runs = 0;
  bool lost = false, writes = false;  // By the last run, which is the one that was answered.
  for (const Stamp stamp : op.stamps) {
    std::set<NodeId> expected = cluster_->AskedToWrite(stamp);
    writes = !expected.empty();
    expected.insert(op.node);
    lost = cluster_->node(op.node).lost.contains(stamp);
    const auto at = happened.find(stamp);
    if (at == happened.end()) continue;
    ++runs;
    if (!std::ranges::equal(at->second, expected)) {
      std::string nodes;
      for (const NodeId node : at->second) absl::StrAppend(&nodes, " ", Raw(node));
      absl::StrAppend(&nodes, ", expected at");
      for (const NodeId node : expected) absl::StrAppend(&nodes, " ", Raw(node));
      return "is in part, or more than once, there: at" + nodes;
    }
  }
  switch (op.answer) {
    case Answer::kNone:
      return "was never answered";
    case Answer::kRefused:
      return runs > 0 ? "was refused and has happened" : "";
    case Answer::kUnknown:
      if (runs == 1) ++counts_.unknown_happened;
      return runs > 1 ? "has happened more than once" : "";
    case Answer::kOk:
      // What writes nothing: two names of one inode, of which rename makes one.
      if (runs == 0 && op.kind == Kind::kRename && !writes && !lost) return "";
      // One node's alone, durable when something syncs it.
      if (runs == 0 && lost && !writes) return "";
      return runs == 1 ? "" : runs == 0 ? "was done and is lost" : "has happened more than once";
  }
  return "";
}

std::string Workload::CheckAnswers() {
  std::map<Stamp, std::multiset<NodeId>> happened;
  for (const Cluster::Node& node : cluster_->nodes()) {
    for (const WriteSet& writes : node.disk.log()) {
      if (const auto stamp = StampOf(writes)) happened[*stamp].insert(node.id);
    }
  }
  for (const Operation& op : operations_) {
    const std::string wrong = Check(op, happened);
    if (!wrong.empty()) return absl::StrCat("operation ", op.number, " ", wrong);
  }
  return "";
}

}  // namespace cfs
