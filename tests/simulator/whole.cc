#include "tests/simulator/whole.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "cfs/base/check.h"
#include "tests/simulator/check.h"
#include "tests/simulator/clients.h"
#include "tests/simulator/network.h"
#include "tests/simulator/nodes.h"
#include "tests/simulator/scheduler.h"

namespace cfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kRestSeconds = 240;
constexpr uint32_t kWeight = 100;

class Whole {
 public:
  Whole(Scheduler* scheduler, const std::string& directory, WholeResult* result)
      : scheduler_(scheduler),
        random_(&scheduler->random()),
        network_(scheduler),
        nodes_(scheduler, &network_, directory, Weights(random_)),
        clients_(scheduler, FinalOwners(), Ids()),
        result_(result) {
    network = &network_;
    nodes_.on_serving = [this](Nodes::Node* node) { OnServing(node); };
    nodes_.on_power_loss = [this](Nodes::Node*) { clients_.OnPowerLoss(); };
    if (random_->PerMille(500)) nodes_.io_timeout = absl::Milliseconds(1000 + random_->Below(6000));
    client_count_ = 1 + random_->Below(3);
    operations_ = 20 + random_->Below(30);
  }

  void Run() {
    nodes_.Start(nodes_.all().front().get());
    while (!nodes_.all().front()->process->serving) scheduler_->SleepFor(milliseconds(10));
    clients_.MakeShared(nodes_.all().front().get());
    shared_ = true;
    OnServing(nodes_.all().front().get());
    ChooseWeather();
    // One joins, then all the others at once.
    size_t joined = 1;
    const auto end = scheduler_->Now() + seconds(5 + random_->Below(20));
    while (scheduler_->Now() < end || joined < nodes_.all().size()) {
      scheduler_->SleepFor(milliseconds(1 + random_->Below(800)));
      if (random_->PerMille(400) && joined < nodes_.all().size()) {
        const size_t last = joined == 1 ? 2 : nodes_.all().size();
        for (; joined < last; ++joined) nodes_.Start(nodes_.all()[joined].get());
      }
      Trouble();
    }
    scheduler_->Trace("all is well from now on");
    network_.SetWeather({});
    network_.HealCuts();
    nodes_.death_at_point = 0;
    std::string unrest;
    for (int second = 0, quiet = 0; quiet < 3; ++second) {
      if (second > kRestSeconds) {
        scheduler_->Fail(absl::StrCat("does not come to rest: ", unrest));
      }
      for (const auto& node : nodes_.all()) nodes_.Start(node.get());
      scheduler_->SleepFor(seconds(1));
      unrest = nodes_.Unrest();
      if (unrest.empty()) unrest = clients_.Unrest();
      scheduler_->Trace("rest: ", unrest);
      quiet = unrest.empty() ? quiet + 1 : 0;
    }
    // What is there now is on the devices.
    Check();
    Report();
  }

  void Report() {
    const auto& clients = clients_.counts();
    const auto& nodes = nodes_.counts();
    const auto& net = network_.counts();
    result_->hash = scheduler_->hash();
    result_->switches = scheduler_->switches();
    result_->operations = clients.done;
    result_->unknown = clients.unknown;
    result_->refused = clients.refused;
    result_->starts = nodes.starts;
    result_->kills = nodes.kills;
    result_->power_losses = nodes.power_losses;
    result_->calls = net.calls;
    result_->lost = net.lost;
    result_->late = net.late;
    result_->cut = net.cut;
    result_->seconds = scheduler_->seconds();
  }

 private:
  static std::vector<uint32_t> Weights(Random* random) {
    // The first has most slots, so that there are not too many to be given away; names
    // are chosen by where they come to.
    std::vector<uint32_t> weights = {kWeight * static_cast<uint32_t>(10 + random->Below(60))};
    const uint64_t others = 1 + random->Below(3);
    for (uint64_t i = 0; i < others; ++i) weights.push_back(kWeight);
    return weights;
  }
  SlotOwners FinalOwners() {
    std::vector<RingMember> members;
    for (const auto& node : nodes_.all()) members.push_back({node->id, node->weight});
    std::ranges::sort(members, {}, &RingMember::node);
    return PlaceSlots(members).value();
  }
  std::vector<NodeId> Ids() {
    std::vector<NodeId> ids;
    for (const auto& node : nodes_.all()) ids.push_back(node->id);
    return ids;
  }

  void OnServing(Nodes::Node* node) {
    if (shared_) clients_.StartAt(node, client_count_, operations_);
  }

  void ChooseWeather() {
    // Each seed has its own mixture, some of it not at all.
    const auto some = [this](uint64_t most) {
      return random_->PerMille(500) ? 0 : random_->Below(most);
    };
    const Network::Weather weather{.lost = some(40), .late = some(20)};
    network_.SetWeather(weather);
    nodes_.death_at_point = some(4);
    crashes_ = some(150);
    cuts_ = some(150);
    ends_ = some(60);
    power_ = some(1000);
    if (weather.lost > 0 || weather.late > 0 || cuts_ > 0) return;
    clients_.runs = [this](ProcessId process) {
      return std::ranges::any_of(nodes_.all(), [process](const auto& node) {
        return node->process != nullptr && node->process->id == process && !node->process->ends;
      });
    };
  }

  Nodes::Node* RandomNode() {
    return nodes_.all()[random_->Below(nodes_.all().size())].get();
  }

  void Trouble() {
    if (random_->PerMille(crashes_)) nodes_.Kill(RandomNode(), random_->PerMille(power_));
    if (random_->PerMille(ends_)) nodes_.End(RandomNode());
    if (random_->PerMille(300)) network_.HealCuts();
    if (random_->PerMille(cuts_)) {
      const Nodes::Node *one = RandomNode(), *other = RandomNode();
      scheduler_->Trace("cut: ", one->index, " is not heard by ", other->index);
      network_.Cut(one->address, other->address);
      if (random_->PerMille(600)) network_.Cut(other->address, one->address);
    }
    for (const auto& node : nodes_.all()) {
      if (node->started && node->process == nullptr && random_->PerMille(400)) {
        nodes_.Start(node.get());
      }
    }
  }

  void Check() {
    std::vector<OwnedRecords> records;
    for (const auto& node : nodes_.all()) {
      records.push_back({node->id, &node->disk,
                         [local = node->process->local.get()](Slot slot) {
                           return local->Owns(slot);
                         },
                         /*has_others=*/true});
    }
    Clients::Names names;
    std::string wrong = CheckTree(records, &names);
    if (wrong.empty()) wrong = clients_.Check(names);
    if (!wrong.empty()) scheduler_->Fail(wrong);
  }

  Scheduler* const scheduler_;
  Random* const random_;
  Network network_;
  Nodes nodes_;
  Clients clients_;
  WholeResult* const result_;
  bool shared_ = false;
  size_t client_count_ = 1, operations_ = 1;
  uint64_t crashes_ = 0, cuts_ = 0, ends_ = 0, power_ = 0;
};

Scheduler::Options OptionsOf(uint64_t seed, bool verbose) {
  Random random(seed * 2 + 1);
  constexpr uint64_t kStrides[] = {2, 10, 50, 400};
  return {.seed = seed,
          .verbose = verbose,
          .stride = kStrides[random.Below(4)],
          .slow = random.PerMille(500) ? 0 : random.Below(10),
          .slow_max = milliseconds(1 + random.Below(random.PerMille(500) ? 20 : 1500))};
}

}  // namespace

void RunWhole(uint64_t seed, bool verbose, const std::string& directory, WholeResult* result) {
  // Neither ends: threads of dead nodes still use them.
  auto* const scheduler = new Scheduler(OptionsOf(seed, verbose));
  scheduler->SetOnFail([result](const std::string& what) {
    snprintf(result->wrong, sizeof(result->wrong), "%s", what.c_str());
    result->ended = true;
  });
  auto* const whole = new Whole(scheduler, directory, result);
  whole->Run();
  result->ended = true;
  fflush(stdout);
  _exit(0);
}

}  // namespace cfs
