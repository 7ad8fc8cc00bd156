#include "tests/simulator/nodes.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/transaction_format.h"
#include "cfs/server/cluster_store.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// The simulation's time; each call gets another one.
class SimulatedClock final : public Clock {
 public:
  timespec Now() override {
    const auto now = std::max(simulation->Now(), last_ + std::chrono::nanoseconds(1));
    last_ = now;
    const int64_t nanoseconds = now.time_since_epoch().count();
    return {nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  }

 private:
  Simulation::Instant last_{};
};

// A disk as one process has it open. Each write and each sync may be its last.
class OpenDisk final : public Store {
 public:
  OpenDisk(Scheduler* scheduler, SimulatedDisk* disk) : scheduler_(scheduler), disk_(disk) {}

  absl::Status Get(Family family, absl::string_view key, std::string* value) override {
    return disk_->Get(family, key, value);
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Family family,
                                                    const std::vector<std::string>& keys) override {
    std::vector<absl::StatusOr<std::string>> values;
    for (const std::string& key : keys) {
      std::string value;
      const absl::Status found = disk_->Get(family, key, &value);
      values.push_back(found.ok() ? absl::StatusOr<std::string>(std::move(value)) : found);
    }
    return values;
  }
  absl::Status Apply(const WriteSet& writes) override {
    scheduler_->Yield();
    CFS_RETURN_IF_ERROR(disk_->Apply(writes));
    scheduler_->At("disk-written");
    return absl::OkStatus();
  }
  absl::Status Scan(
      Family family, absl::string_view start, absl::string_view prefix,
      const std::function<bool(absl::string_view, absl::string_view)>& visit) override {
    std::vector<std::pair<std::string, std::string>> found;
    CFS_RETURN_IF_ERROR(
        disk_->Scan(family, start, prefix,
                    [&found](absl::string_view key, absl::string_view value) {
                      found.emplace_back(key, value);
                      return true;
                    }));
    for (const auto& [key, value] : found) {
      if (!visit(key, value)) break;
    }
    return absl::OkStatus();
  }
  absl::Status SyncWal() override {
    const size_t applied = disk_->applied();
    scheduler_->SleepFor(microseconds(50 + scheduler_->random().Below(3000)));
    disk_->SyncUpTo(applied);
    scheduler_->At("disk-synced");
    return absl::OkStatus();
  }
  void KeepReserve() override {}
  uint64_t MemoryBytes() override { return 0; }

 private:
  Scheduler* const scheduler_;
  SimulatedDisk* const disk_;
};

}  // namespace

Nodes::Nodes(Scheduler* scheduler, Network* net, std::string directory,
             const std::vector<uint32_t>& weights)
    : scheduler_(scheduler), network_(net) {
  scheduler_->SetAt([this](ProcessId process, const char* point) { At(process, point); });
  for (size_t i = 0; i < weights.size(); ++i) {
    auto node = std::make_unique<Node>();
    node->index = i;
    node->id = NodeId(static_cast<uint32_t>(1 + scheduler->random().Below(1'000'000)));
    node->weight = weights[i];
    node->address = absl::StrCat("10.0.0.", i + 1, ":7000");
    node->directory = absl::StrCat(directory, "/", i);
    for (const std::string& path : {node->directory, node->directory + "/data"}) {
      CFS_CHECK(mkdir(path.c_str(), 0700) == 0);
    }
    nodes_.push_back(std::move(node));
  }
  token_.cluster = {1, 2, 3};
  token_.seeds = {nodes_.front()->address};
}

void Nodes::Start(Node* node) {
  if (node->process != nullptr) return;
  node->started = true;
  ++counts_.starts;
  const auto process = std::make_shared<Process>();
  process->id = next_process_++;
  node->process = process;
  scheduler_->Trace("node ", node->index, " starts as process ", process->id);
  scheduler_->Spawn(process->id, [this, node, process] { Run(node, process); });
}

void Nodes::Run(Node* node, const std::shared_ptr<Process>& process) {
  const absl::Status begun = Begin(node, process.get());
  if (begun.ok()) {
    scheduler_->Trace("node ", node->index, " serves");
    process->serving = true;
    on_serving(node);
    return;
  }
  scheduler_->Trace("node ", node->index, " cannot start: ", begun.ToString());
  if (absl::IsDataLoss(begun)) scheduler_->Fail(absl::StrCat("a start: ", begun.ToString()));
  Kill(node, /*power_loss=*/false);
}

absl::Status Nodes::Begin(Node* node, Process* process) {
  process->clock = std::make_unique<SimulatedClock>();
  process->part = std::make_unique<ClusterPart>();
  MembershipOptions options;
  CFS_ASSIGN_OR_RETURN(std::optional<ClusterMemory> memory, ReadClusterMemory(node->directory));
  if (!memory) {
    memory.emplace();
    memory->token = token_;
    memory->founder = node->index == 0;
    memory->listen = node->address;
    memory->weight = node->weight;
  }
  options.memory = *std::move(memory);
  options.identity.cluster_id = HexOf(token_.cluster);
  options.identity.node_id = node->id;
  options.identity.machine = "simulated";
  options.identity.store_id = 1 + node->index;
  options.store_path = node->directory;
  CFS_ASSIGN_OR_RETURN(process->membership,
                       Membership::Start(std::move(options), process->part->Methods()));
  Membership* const membership = process->membership.get();
  LocalFileSystem::Options local;
  local.data_path = node->directory + "/data";
  local.node = node->id;
  local.in_cluster = true;
  // A file of data is made when it is needed: one thread less.
  local.stores_files = false;
  local.storage_epoch = node->storage_epoch;
  local.open_store = [this, node]() -> absl::StatusOr<std::unique_ptr<Store>> {
    return std::make_unique<OpenDisk>(scheduler_, &node->disk);
  };
  const ClusterMapPtr map = membership->map();
  for (size_t i = 0; i < kSlotCount; ++i) {
    local.first_owned[i] = map->owners()[i] == membership->self() && !map->vacant()[i];
  }
  CFS_ASSIGN_OR_RETURN(process->local, LocalFileSystem::Open(local, process->clock.get()));
  CFS_RETURN_IF_ERROR(process->part->Begin(process->local.get(), process->clock.get(), membership,
                                           io_timeout));
  process->local->SetDaemonIo(true);
  process->local->Start([](int) { return 0; });
  CFS_RETURN_IF_ERROR(process->part->Serve());
  membership->OnChange([this, node](const ClusterMapPtr& before, const ClusterMapPtr& now) {
    if (before == nullptr || before->epoch() < now->epoch()) return;
    scheduler_->Fail(absl::StrCat("node ", node->index, " goes back to an old map"));
  });
  membership->OnExpelled([this, node](absl::Status why) {
    scheduler_->Trace("node ", node->index, " is expelled: ", why.ToString());
    Kill(node, /*power_loss=*/false);
  });
  membership->SetServing();
  return absl::OkStatus();
}

void Nodes::Kill(Node* node, bool power_loss) {
  if (node->process == nullptr) return;
  // Nothing of it is ever freed: its threads may be anywhere.
  auto* const dead = new std::shared_ptr<Process>(std::move(node->process));
  node->process = nullptr;
  ++(power_loss ? counts_.power_losses : counts_.kills);
  size_t lost = 0;
  if (power_loss) {
    const size_t unsynced = node->disk.applied() - node->disk.synced();
    const size_t keep = node->disk.synced() + scheduler_->random().Below(unsynced + 1);
    lost = node->disk.LosePower(keep).size();
    ++node->storage_epoch;
    on_power_loss(node);
  }
  scheduler_->Trace("node ", node->index,
                    power_loss ? " has no power; write sets lost: " : " is killed; ", lost);
  network_->Kill((*dead)->id, /*silently=*/power_loss);
  scheduler_->Kill((*dead)->id);
}

void Nodes::End(Node* node) {
  const std::shared_ptr<Process> process = node->process;
  if (process == nullptr || !process->serving || std::exchange(process->ends, true)) return;
  process->serving = false;
  scheduler_->Spawn(process->id, [this, node, process] {
    scheduler_->Trace("node ", node->index, " ends");
    process->part->End();
    process->membership->EndServing();
    process->membership.reset();
    process->local->Drain();
    const absl::Status closed = process->local->Close();
    if (!closed.ok()) scheduler_->Fail(absl::StrCat("a close: ", closed.ToString()));
    ++counts_.ends;
    Kill(node, /*power_loss=*/false);
  });
}

void Nodes::CheckWritten(ProcessId process) {
  for (const auto& node : nodes_) {
    if (node->process == nullptr || node->process->id != process) continue;
    std::string value;
    CFS_CHECK(node->disk.Get(Family::kLocal, kOwnedSlotsKey, &value).ok());
    const auto written = DecodeSlots(value);
    if (written.ok() && (node->process->local->owned() & ~*written).none()) continue;
    scheduler_->Fail(absl::StrCat("node ", node->index, " serves slots that it has not written"));
  }
}

void Nodes::At(ProcessId process, const char* point) {
  scheduler_->Trace("at ", point);
  if (absl::StartsWith(point, "take-") || absl::StartsWith(point, "give-")) CheckWritten(process);
  if (death_at_point == 0) return;
  // Points of hand-overs are few.
  const bool is_disk = absl::StartsWith(point, "disk-");
  if (!scheduler_->random().PerMille(is_disk ? death_at_point : 30 * death_at_point)) return;
  for (const auto& node : nodes_) {
    if (node->process != nullptr && node->process->id == process) {
      Kill(node.get(), scheduler_->random().PerMille(400));
    }
  }
}

std::string Nodes::Unrest() {
  ClusterMapPtr map;
  for (const auto& node : nodes_) {
    const Process* const process = node->process.get();
    const std::string what = absl::StrCat("node ", node->index);
    if (process == nullptr || !process->serving) return what + " does not serve";
    const ClusterMapPtr its = process->membership->map();
    if (map == nullptr) map = its;
    if (its->epoch() != map->epoch()) return what + " has another epoch";
    if (!(*its == *map)) scheduler_->Fail(what + " has another map of the same epoch");
    if (process->part->Status()["hand_over"]["under_way"] != 0) return what + " gives slots";
  }
  for (const ClusterNode& member : map->nodes()) {
    if (member.state != NodeState::kUp) return absl::StrCat("node ", Raw(member.id), " is not up");
  }
  if (map->owners() != map->wanted()) return "slots are not where they are wanted";
  for (const auto& node : nodes_) {
    const SlotSet owned = node->process->local->owned();
    for (size_t i = 0; i < kSlotCount; ++i) {
      if (owned[i] == (map->owners()[i] == node->id)) continue;
      return absl::StrCat("node ", node->index, owned[i] ? " owns" : " does not own", " slot ", i);
    }
    std::string unfinished;
    const auto look = [&](Family family, absl::string_view prefix) {
      node->disk
          .Scan(family, prefix, prefix,
                [&](absl::string_view key, absl::string_view) {
                  Slot slot;
                  TransactionId id;
                  if (family == Family::kLocal) {
                    unfinished = " has not ended a hand-over";
                  } else if (!owned[Raw(SlotOfKey(key))]) {
                    return true;  // Left behind.
                  } else if (ParsePreparedKey(key, &slot, &id)) {
                    unfinished = " has a prepared transaction";
                  } else if (ParseOutcomeKey(key, &id)) {
                    unfinished = absl::StrCat(" keeps the outcome of transaction ",
                                              Raw(id.node), "/", id.incarnation, "/",
                                              id.sequence, " in slot ", Raw(id.slot));
                  }
                  return unfinished.empty();
                })
          .IgnoreError();  // Does not fail.
    };
    look(Family::kLocal, kGivingPrefix);
    look(Family::kQueue, "");
    if (!unfinished.empty()) return absl::StrCat("node ", node->index, unfinished);
  }
  return "";
}

}  // namespace cfs
