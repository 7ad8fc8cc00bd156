#include "cfs/server/cluster_space.h"

#include <utility>

#include "cfs/base/random.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

constexpr auto kInterval = std::chrono::seconds(1);
// A round ends at the next Tick after so long, whoever has not answered.
constexpr auto kPatience = std::chrono::milliseconds(500);
// Nodes are asked for so long after somebody wanted to know.
constexpr auto kInterest = std::chrono::seconds(10);
// What was answered is good for so long.
constexpr auto kGood = std::chrono::seconds(4);

bool StoresFiles(const ClusterNode& node) {
  return node.weight > 0 && node.state == NodeState::kUp;
}

}  // namespace

void ClusterSpace::WhenKnown(absl::AnyInvocable<void()> task) {
  bool begins;
  {
    MutexLock lock(&mutex_);
    wanted_ = Clock::now();
    begins = wanted_ - ended_ >= kGood;
    if (begins) {
      waiting_.push_back(std::move(task));
      if (!awaited_.empty()) return;
    }
  }
  if (!begins) return task();
  Ask();
}

void ClusterSpace::Ask() {
  std::vector<NodeId> asked;
  const ClusterMapPtr map = map_();
  {
    MutexLock lock(&mutex_);
    began_ = Clock::now();
    for (const ClusterNode& node : map->nodes()) {
      if (node.id == self_ || !StoresFiles(node)) continue;
      awaited_.insert(node.id);
      // Who is silent has a question already.
      if (!std::exchange(nodes_[node.id].asked, true)) asked.push_back(node.id);
    }
  }
  for (const NodeId node : asked) {
    PeerRequest request;
    request.op = PeerOp::kStatFs;
    request.node = node;
    request.done = [this, node](absl::StatusOr<PeerAnswer> answer) {
      struct statvfs space;
      const bool good = answer.ok() && Unpacker(answer->result).Take(&space);
      Answered(node, good ? &space : nullptr);
    };
    peers_->Ask(std::move(request));
  }
  EndRound(/*anyway=*/false);
}

void ClusterSpace::Answered(NodeId node, const struct statvfs* space) {
  {
    MutexLock lock(&mutex_);
    Node& known = nodes_[node];
    known.asked = false;
    if (space != nullptr) {
      known.space = *space;
      known.answered = Clock::now();
    }
    awaited_.erase(node);
  }
  EndRound(/*anyway=*/false);
}

void ClusterSpace::EndRound(bool anyway) {
  std::vector<absl::AnyInvocable<void()>> waiting;
  {
    MutexLock lock(&mutex_);
    if (!anyway && !awaited_.empty()) return;
    awaited_.clear();
    ended_ = Clock::now();
    waiting.swap(waiting_);
  }
  for (auto& task : waiting) task();
}

void ClusterSpace::Tick() {
  bool late, due;
  {
    MutexLock lock(&mutex_);
    const Clock::time_point now = Clock::now();
    late = !awaited_.empty() && now - began_ >= kPatience;
    due = now - wanted_ < kInterest && now - began_ >= kInterval;
  }
  if (late) EndRound(/*anyway=*/true);
  if (due) Ask();
}

std::vector<std::pair<NodeId, struct statvfs>> ClusterSpace::Known() {
  std::vector<std::pair<NodeId, struct statvfs>> known;
  const ClusterMapPtr map = map_();
  MutexLock lock(&mutex_);
  const Clock::time_point now = Clock::now();
  for (const auto& [id, node] : nodes_) {
    const ClusterNode* const member = map->Find(id);
    if (id == self_ || member == nullptr || !StoresFiles(*member)) continue;
    if (now - node.answered < kGood) known.emplace_back(id, node.space);
  }
  return known;
}

std::optional<NodeId> ClusterSpace::Choose(const absl::flat_hash_set<NodeId>& except,
                                           bool anywhere) {
  std::vector<std::pair<NodeId, uint64_t>> rooms;
  uint64_t total = 0;
  for (const auto& [id, space] : Known()) {
    if (except.contains(id)) continue;
    // In MiB, so that the sum fits.
    const uint64_t room =
        (anywhere ? space.f_bavail * space.f_frsize : RoomForFiles(space)) >> 20;
    rooms.emplace_back(id, room);
    total += room;
  }
  if (total == 0) return std::nullopt;
  uint64_t at = RandomNumber() % total;
  for (const auto& [id, room] : rooms) {
    if (at < room) return id;
    at -= room;
  }
  return std::nullopt;
}

absl::StatusOr<struct statvfs> ClusterSpace::Sum() {
  CFS_ASSIGN_OR_RETURN(struct statvfs sum, local_->Space());
  const ClusterMapPtr map = map_();
  const ClusterNode* const me = map->Find(self_);
  if (me != nullptr && me->weight == 0) {
    sum.f_blocks = sum.f_bfree = sum.f_bavail = sum.f_files = sum.f_ffree = sum.f_favail = 0;
  }
  for (const auto& [id, space] : Known()) {
    const auto blocks = [unit = space.f_frsize, &sum](fsblkcnt_t count) {
      return static_cast<fsblkcnt_t>(static_cast<double>(count) * unit / sum.f_frsize);
    };
    sum.f_blocks += blocks(space.f_blocks);
    sum.f_bfree += blocks(space.f_bfree);
    sum.f_bavail += blocks(space.f_bavail);
    sum.f_files += space.f_files;
    sum.f_ffree += space.f_ffree;
    sum.f_favail += space.f_favail;
  }
  return sum;
}

}  // namespace cfs
