#include "tests/simulator/cluster.h"

#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"

namespace cfs {
namespace {

constexpr Microseconds kAskTimeOut = 2 * kSecond;
constexpr auto kPatience = std::chrono::seconds(4);
constexpr uint64_t kStampsPerSecond = 1'000'000'000;

timespec TimeOf(Stamp stamp) {
  return {static_cast<time_t>(stamp / kStampsPerSecond),
          static_cast<long>(stamp % kStampsPerSecond)};
}
Stamp StampOf(const timespec& time) {
  return static_cast<Stamp>(time.tv_sec) * kStampsPerSecond + static_cast<Stamp>(time.tv_nsec);
}

absl::string_view NameOf(PeerOp op) {
  switch (op) {
    case PeerOp::kReadRecords:
      return "read";
    case PeerOp::kPrepare:
      return "prepare";
    case PeerOp::kCommit:
      return "commit";
    case PeerOp::kAbort:
      return "abort";
    case PeerOp::kOutcome:
      return "outcome";
    case PeerOp::kSyncAll:
      return "sync";
    default:
      return "?";
  }
}

}  // namespace

std::optional<Stamp> StampOf(const WriteSet& writes) {
  for (const WriteSet::Write& write : writes.writes()) {
    if (write.family != Family::kRecords || write.is_delete) continue;
    if (IsInodeKey(write.key)) return StampOf(DecodeInode(write.value).value().ctime);
    if (IsBucketKey(write.key)) return StampOf(DecodeBucket(write.value).value().ctime);
  }
  return std::nullopt;
}

// One life of a node.
class Cluster::Process final : public TransactorWorld, public InodeUses {
 public:
  Process(Cluster* cluster, Node* node)
      : cluster_(cluster),
        node_(node),
        incarnation_(node->incarnation),
        shard_(&node->disk, /*syncer=*/nullptr),
        names_(&shard_, cluster, this, /*alone=*/false),
        transactor_(&shard_, this, cluster, this, node->id, incarnation_, kPatience) {
    for (uint16_t slot = 0; slot < kUsedSlots; ++slot) {
      shard_.SetOwned(Slot(slot), Cluster::OwnerOf(Slot(slot)) == node->id);
    }
  }

  Namespace* names() { return &names_; }
  Transactor* transactor() { return &transactor_; }
  Shard* shard() { return &shard_; }
  bool dying() const { return dying_; }
  void Die() {
    dying_ = true;
    node_->disk.SetDead(true);
  }
  // At the asking node.
  void Answered(uint64_t number, absl::StatusOr<std::string> answer) {
    const auto it = asks_.find(number);
    if (it == asks_.end()) return;
    Answer done = std::move(it->second);
    asks_.erase(it);
    done(std::move(answer));
  }

  // TransactorWorld:
  std::chrono::steady_clock::time_point Now() override {
    return std::chrono::steady_clock::time_point(std::chrono::microseconds(cluster_->now_));
  }
  NodeId OwnerOf(Slot slot) override { return Cluster::OwnerOf(slot); }
  void Ask(NodeId to, PeerOp op, std::string arguments, Answer done) override {
    if (dying_) return;
    if (op == PeerOp::kPrepare) NotePrepare(to, arguments);
    const uint64_t number = next_++;
    asks_.emplace(number, std::move(done));
    Send(to, op, arguments, number);
    // An answer that does not come is asked for again.
    const Microseconds again = cluster_->random_.Below(2 * kAskTimeOut);
    cluster_->After(again, [this, alive = Token(), to, op, arguments, number] {
      if (!alive.expired() && asks_.contains(number)) Send(to, op, arguments, number);
    });
    cluster_->After(kAskTimeOut, [this, alive = Token(), number] {
      if (!alive.expired() && !dying_)
        Answered(number, absl::UnavailableError("no answer in time"));
    });
  }
  void Sync(absl::AnyInvocable<void(absl::Status)> done) override {
    if (dying_) return;
    const uint64_t number = next_++;
    syncs_.emplace(number, std::move(done));
    const Microseconds begins = cluster_->random_.Below(3 * kMillisecond);
    const Microseconds ends = begins + cluster_->random_.Below(3 * kMillisecond);
    cluster_->After(begins, [this, alive = Token()] {
      if (!alive.expired()) node_->disk.SyncWal().IgnoreError();  // Of the dead.
    });
    cluster_->After(ends, [this, alive = Token(), number] {
      if (alive.expired() || dying_) return;
      auto done = std::move(syncs_.extract(number).mapped());
      done(absl::OkStatus());
    });
  }
  void Later(std::chrono::steady_clock::time_point, absl::AnyInvocable<void(bool)> task) override {
    if (dying_) return;
    const uint64_t number = next_++;
    later_.emplace(number, std::move(task));
    cluster_->After(cluster_->random_.Below(40 * kMillisecond), [this, alive = Token(), number] {
      if (alive.expired() || dying_) return;
      auto task = std::move(later_.extract(number).mapped());
      task(/*stopped=*/false);
    });
  }

  // InodeUses:
  InodeUse UseOf(InodeId, const InodeRecord&) override { return {}; }
  void OnRemoved(const Removed&) override {}
  bool MayLink(InodeId) override { return true; }

 private:
  std::weak_ptr<int> Token() const { return alive_; }

  void NotePrepare(NodeId to, absl::string_view arguments) {
    TransactionId id;
    CFS_CHECK(ConsumeTransactionId(&arguments, &id));
    const TransactionPart part = DecodeTransactionPart(arguments).value();
    std::optional<Stamp> stamp = cfs::StampOf(part.writes);
    if (!part.counts.empty()) stamp = StampOf(part.counts.front().now);
    if (stamp) cluster_->asked_to_write_[*stamp].insert(to);
  }

  void Send(NodeId to, PeerOp op, const std::string& arguments, uint64_t number) {
    const Process* const target = cluster_->Alive(to);
    cluster_->Trace("node ", Raw(node_->id), " asks ", Raw(to), " #", number, " ", NameOf(op),
                    target == nullptr ? ", which is down" : "");
    if (target == nullptr) return;
    const auto receive = [cluster = cluster_, from = node_->id, incarnation = incarnation_, op,
                          arguments, number](Process* asked) {
      asked->transactor_.Handle(
          op, arguments,
          [cluster, from, incarnation, number, asked](absl::StatusOr<std::string> answer) {
            if (asked->dying_) return;
            cluster->Deliver(from, incarnation,
                             [number, answer](Process* asker) { asker->Answered(number, answer); });
          });
    };
    cluster_->Deliver(to, target->incarnation_, receive);
    if (!cluster_->random_.PerMille(cluster_->weather_.twice)) return;
    ++cluster_->counts_.copies;
    cluster_->After(cluster_->random_.Below(6 * kSecond),
                    [cluster = cluster_, to, incarnation = target->incarnation_, receive] {
                      cluster->Deliver(to, incarnation, receive);
                    });
  }

  Cluster* const cluster_;
  Node* const node_;
  const uint64_t incarnation_;
  bool dying_ = false;
  Shard shard_;
  Namespace names_;
  Transactor transactor_;
  uint64_t next_ = 1;
  // What waits ends with the process, and is not called.
  std::map<uint64_t, Answer> asks_;
  std::map<uint64_t, absl::AnyInvocable<void(absl::Status)>> syncs_;
  std::map<uint64_t, absl::AnyInvocable<void(bool)>> later_;
  const std::shared_ptr<int> alive_ = std::make_shared<int>();
};

Cluster::Cluster(uint64_t seed, bool verbose) : verbose_(verbose), random_(seed) {
  for (uint32_t i = 0; i < kNodes; ++i) {
    Node* const node = &nodes_[i];
    node->id = NodeId(i + 1);
    node->disk.SetOnApply([this, node](const WriteSet& writes) { OnApply(node, writes); });
    Start(node);
    TickLater(node->id);
  }
}

Cluster::~Cluster() {
  // Before the rest of what they use.
  for (Node& node : nodes_) node.process.reset();
}

void Cluster::Fail(std::string what) {
  Trace("FAILURE: ", what);
  if (failure_.empty()) failure_ = std::move(what);
}

void Cluster::TraceLine(const std::string& line) {
  printf("%10.6f %s\n", static_cast<double>(now_) / kSecond, line.c_str());
}

void Cluster::After(Microseconds delay, std::function<void()> task) {
  events_.emplace(std::make_pair(now_ + delay, next_event_++), std::move(task));
}

void Cluster::Run(Microseconds duration) {
  const Microseconds end = now_ + duration;
  while (!events_.empty() && events_.begin()->first.first <= end && failure_.empty()) {
    auto event = events_.extract(events_.begin());
    now_ = event.key().first;
    event.mapped()();
  }
  now_ = end;
}

timespec Cluster::Now() {
  const Stamp stamp = next_stamp_++;
  if (on_stamp_) on_stamp_(stamp);
  return TimeOf(stamp);
}

Microseconds Cluster::Delay() {
  return random_.PerMille(weather_.late) ? random_.Below(3 * kSecond)
                                         : 20 + random_.Below(kMillisecond);
}

void Cluster::Deliver(NodeId to, uint64_t incarnation, std::function<void(Process*)> what) {
  if (random_.PerMille(weather_.loss)) {
    ++counts_.lost_messages;
    return;
  }
  After(Delay(), [this, to, incarnation, what = std::move(what)] {
    Process* const process = Alive(to);
    if (process != nullptr && node(to).incarnation == incarnation) what(process);
  });
}

Cluster::Process* Cluster::Alive(NodeId id) {
  Process* const process = node(id).process.get();
  return process == nullptr || process->dying() ? nullptr : process;
}
Namespace* Cluster::NamesOf(NodeId id) { return node(id).process->names(); }
Transactor* Cluster::TransactorOf(NodeId id) { return node(id).process->transactor(); }
bool Cluster::HasLocks(NodeId id) {
  return Alive(id) != nullptr && !node(id).process->shard()->key_locks().none();
}

void Cluster::Start(Node* node) {
  if (node->process != nullptr) return;
  ++node->incarnation;
  Trace("node ", Raw(node->id), " starts");
  node->process = std::make_unique<Process>(this, node);
  const absl::Status recovered = node->process->transactor()->Recover();
  if (!recovered.ok()) Fail(absl::StrCat("recovery: ", recovered.ToString()));
}

void Cluster::Crash(Node* node, bool power_loss) {
  if (node->process == nullptr) return;
  node->process.reset();
  node->disk.SetDead(false);
  ++(power_loss ? counts_.power_losses : counts_.kills);
  size_t lost = 0;
  if (power_loss) {
    const size_t unsynced = node->disk.applied() - node->disk.synced();
    const size_t keep = node->disk.synced() + random_.Below(unsynced + 1);
    for (const WriteSet& writes : node->disk.LosePower(keep)) {
      ++lost;
      if (const auto stamp = StampOf(writes)) node->lost.insert(*stamp);
    }
  }
  Trace("node ", Raw(node->id), power_loss ? " has no power; write sets lost: " : " is killed; ",
        lost);
  if (on_crash_) on_crash_(node->id);
}

void Cluster::OnApply(Node* node, const WriteSet& writes) {
  if (verbose_) {
    for (const WriteSet::Write& write : writes.writes()) {
      Trace("node ", Raw(node->id), write.is_delete ? " deletes " : " puts ",
            absl::CEscape(write.key));
    }
  }
  if (node->process == nullptr || !random_.PerMille(weather_.death)) return;
  Trace("node ", Raw(node->id), " dies of this");
  node->process->Die();
  After(0, [this, node] {
    Crash(node, random_.PerMille(500));
    StartLater(node);
  });
}

void Cluster::TickLater(NodeId id) {
  After(300 * kMillisecond + random_.Below(400 * kMillisecond), [this, id] {
    if (Process* const process = Alive(id)) {
      if (random_.PerMille(500)) node(id).disk.SyncWal().IgnoreError();  // It is alive.
      process->transactor()->Tick();
    }
    TickLater(id);
  });
}

void Cluster::StartLater(Node* node) {
  const bool soon = random_.PerMille(500);
  After(random_.Below(soon ? 100 * kMillisecond : 3 * kSecond), [this, node] {
    Start(node);
    // Troubles come in pairs.
    if (weather_.crash_interval == 0 || !random_.PerMille(300)) return;
    After(random_.Below(20 * kMillisecond), [this, node] {
      if (weather_.crash_interval == 0) return;
      Crash(node, random_.PerMille(500));
      StartLater(node);
    });
  });
}

void Cluster::CrashLater() {
  if (weather_.crash_interval == 0) return;
  After(random_.Below(2 * weather_.crash_interval), [this, number = weather_number_] {
    if (number != weather_number_) return;
    Node* const node = &nodes_[random_.Below(kNodes)];
    Crash(node, random_.PerMille(500));
    StartLater(node);
    CrashLater();
  });
}

void Cluster::SetWeather(const Weather& weather) {
  weather_ = weather;
  ++weather_number_;
  CrashLater();
}

}  // namespace cfs
