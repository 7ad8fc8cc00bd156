#include "cfs/server/cluster_part.h"

#include <cerrno>
#include <chrono>
#include <utility>

#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"
#include "nlohmann/json.hpp"

namespace cfs {

namespace {

// The longest answer to kReadRecords: a few values of xattrs.
constexpr size_t kRecordsBytesMax = 512 << 10;
constexpr auto kUpkeepInterval = std::chrono::milliseconds(500);

}  // namespace

// The cluster as transactions see it.
class ClusterPart::World final : public TransactorWorld {
 public:
  World(ClusterPart* part, LocalFileSystem* local, PeerClient* peers)
      : part_(part), local_(local), peers_(peers) {}

  std::chrono::steady_clock::time_point Now() override {
    return SteadyClock::now();
  }
  NodeId OwnerOf(Slot slot) override { return part_->map()->OwnerOf(slot); }
  void Ask(NodeId node, PeerOp op, std::string arguments, Answer done) override {
    PeerRequest request;
    request.op = op;
    request.node = node;
    request.arguments = std::move(arguments);
    if (op == PeerOp::kReadRecords) request.result_bytes_max = kRecordsBytesMax;
    request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
      if (!answer.ok()) return done(answer.status());
      done(std::move(answer->result));
    };
    peers_->Ask(std::move(request));
  }
  void Sync(absl::AnyInvocable<void(absl::Status)> done) override {
    local_->SyncMeta(std::move(done));
  }
  bool IsGone(NodeId node) override {
    const ClusterMapPtr map = part_->map();
    const ClusterNode* const found = map->Find(node);
    return found == nullptr || cfs::IsGone(found->state);
  }
  std::vector<NodeId> Witnesses() override {
    std::vector<NodeId> nodes;
    const ClusterMapPtr map = part_->map();
    for (const ClusterNode& node : map->nodes()) {
      if (map->losses() > 0 && !cfs::IsGone(node.state) && node.id != part_->membership_->self()) {
        nodes.push_back(node.id);
      }
    }
    return nodes;
  }
  void Later(std::chrono::steady_clock::time_point since,
             absl::AnyInvocable<void(bool)> task) override {
    peers_->Later(since, std::move(task));
  }

 private:
  ClusterPart* const part_;
  LocalFileSystem* const local_;
  PeerClient* const peers_;
};

ClusterPart::ClusterPart() = default;
ClusterPart::~ClusterPart() = default;

absl::Status ClusterPart::Begin(LocalFileSystem* local, Clock* clock, Membership* membership,
                                absl::Duration io_timeout) {
  local_ = local;
  membership_ = membership;
  SetMap(membership->map());
  const auto map = [this] { return this->map(); };
  const std::chrono::milliseconds time_out(absl::ToInt64Milliseconds(io_timeout));
  peers_ = std::make_unique<PeerClient>(membership->transport(), map, membership->self(),
                                        membership->incarnation(), time_out);
  world_ = std::make_unique<World>(this, local, peers_.get());
  transactor_ = std::make_unique<Transactor>(local->shard(), local->uses(), clock, world_.get(),
                                             membership->self(), membership->incarnation(),
                                             time_out);
  names_ = std::make_unique<ClusterNames>(
      local, transactor_.get(), [this](Slot slot, Done<InodeId> done) {
        PeerRequest request;
        request.op = PeerOp::kReserveInodes;
        request.slot = slot;
        request.arguments = Packer().Add(slot).Take();
        request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
          if (!answer.ok()) return done(answer.status());
          InodeId ino;
          if (!Unpacker(answer->result).Take(&ino)) return done(PosixError(EIO));
          done(ino);
        };
        peers_->Ask(std::move(request));
      },
      map);
  space_ = std::make_unique<ClusterSpace>(local, peers_.get(), membership->self(), map);
  file_system_ = std::make_unique<ClusterFileSystem>(
      local, peers_.get(), membership->self(), membership->incarnation(), map, names_.get(),
      space_.get());
  hand_over_ = std::make_unique<HandOver>(
      local, transactor_.get(), &service_, peers_.get(), membership->self(),
      membership->incarnation(), map,
      [membership](const SlotSet& slots, Epoch epoch) { membership->Claim(slots, epoch); });
  // What a process of before has prepared is locked before anything else is done.
  return transactor_->Recover();
}

absl::Status ClusterPart::Serve() {
  CFS_RETURN_IF_ERROR(
      service_.Serve(local_, names_.get(), transactor_.get(), hand_over_.get(), membership_->self(),
                     [this] { return this->map(); }));
  membership_->OnChange([this](const ClusterMapPtr& before, const ClusterMapPtr& now) {
    SetMap(now);
    service_.OnMap(*now);
    file_system_->OnMap(before.get(), *now);
    hand_over_->OnMap();
  });
  file_system_->Start();
  upkeep_ = Thread([this] { RunUpkeep(); });
  return hand_over_->Start();
}

void ClusterPart::RunUpkeep() {
  NameThread("cfs-upkeep");
  for (;;) {
    {
      MutexLock lock(&upkeep_mutex_);
      if (!stopping_) upkeep_wake_.WaitFor(&upkeep_mutex_, kUpkeepInterval);
      if (stopping_) return;
    }
    transactor_->Tick();
    space_->Tick();
  }
}

void ClusterPart::End() {
  if (upkeep_.joinable()) {
    {
      MutexLock lock(&upkeep_mutex_);
      stopping_ = true;
      upkeep_wake_.Signal();
    }
    upkeep_.join();
  }
  transactor_->Stop();
  file_system_->Stop();
  peers_->Stop();
  space_->Stop();
  hand_over_->Stop();
  local_->KeepOrphans();
  service_.Stop();
}

nlohmann::json ClusterPart::CountLosses(std::vector<NodeId> nodes) {
  return hand_over_->losses()->Count(file_system_.get(), std::move(nodes));
}

nlohmann::json ClusterPart::Status() {
  constexpr const char* kStates[] = {"connecting", "up", "idle", "lost"};
  nlohmann::json status = service_.Status();
  status["called"] = nlohmann::json::array();
  for (const PeerStats& peer : membership_->transport()->Stats()) {
    status["called"].push_back(
        {{"node", Raw(peer.node)},
         {"address", peer.address},
         {"state", kStates[static_cast<int>(peer.state)]},
         {"transports", peer.transports},
         {"calls", peer.calls},
         {"answered", peer.answered},
         {"failed", peer.failed},
         {"bytes_sent", peer.bytes_sent},
         {"bytes_received", peer.bytes_received},
         {"latency_p50_us", absl::ToInt64Microseconds(peer.latency_p50)},
         {"latency_p99_us", absl::ToInt64Microseconds(peer.latency_p99)},
         {"latency_max_us", absl::ToInt64Microseconds(peer.latency_max)},
         {"reconnects", peer.reconnects}});
  }
  status["retries"] = peers_->retries();
  const Transactor::Stats transactions = transactor_->stats();
  status["transactions"] = {{"committed", transactions.committed},
                            {"aborted", transactions.aborted},
                            {"conflicts", transactions.conflicts},
                            {"unfinished", transactions.unfinished}};
  const HandOver::Stats slots = hand_over_->stats();
  status["hand_over"] = {{"given", slots.given},
                         {"taken", slots.taken},
                         {"under_way", slots.under_way},
                         {"longest_freeze_us", slots.longest_freeze_us}};
  return status;
}

ClusterMapPtr ClusterPart::map() {
  MutexLock lock(&map_mutex_);
  return map_;
}

void ClusterPart::SetMap(ClusterMapPtr map) {
  MutexLock lock(&map_mutex_);
  map_ = std::move(map);
}

}  // namespace cfs
