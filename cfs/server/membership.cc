#include "cfs/server/membership.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/random.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"
#include "cfs/server/membership_internal.h"

namespace cfs {
namespace {

constexpr std::chrono::seconds kEndPatience(1);
constexpr std::chrono::milliseconds kCancelPoll(100);
// A description of a node is under 5 KiB.
constexpr size_t kJoinerBytesMax = 8 << 10;
// Between log lines about what other nodes do wrong.
constexpr std::chrono::seconds kComplaintPause(1);
constexpr size_t kTokenSeeds = 3;

// The address of ours from which `peer` is reached, with a port of the system's
// choice.
absl::StatusOr<std::string> LocalAddressTo(const SocketAddress& peer) {
  const UniqueFd fd(socket(peer.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  SocketAddress local;
  local.length = sizeof(local.storage);
  // Sends nothing.
  if (!fd.valid() || connect(fd.get(), peer.get(), peer.length) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local.storage), &local.length) != 0) {
    return ErrnoStatus(absl::StrCat("no way to ", peer.ToString()));
  }
  local.set_port(0);
  return local.ToString();
}

absl::StatusOr<std::string> LocalAddressTo(const std::vector<std::string>& seeds) {
  absl::Status error;
  for (const std::string& seed : seeds) {
    const auto peer = ResolveAddress(seed);
    error = peer.status();
    if (!peer.ok()) continue;
    auto local = LocalAddressTo(*peer);
    if (local.ok()) return local;
    error = local.status();
  }
  return absl::UnavailableError(
      absl::StrCat("no address of the token can be reached: ", error.message(),
                   "; check the network, or give --listen"));
}

absl::Status ListenError(const std::string& listen, const absl::Status& status) {
  switch (ErrnoOf(status)) {
    case EADDRINUSE:
      return absl::UnavailableError(
          absl::StrCat("address ", listen, " is in use; choose another port with --listen"));
    case EADDRNOTAVAIL:
      return absl::InvalidArgumentError(
          absl::StrCat(listen, " is no address of this machine; choose one with --listen"));
    case EACCES:
      return absl::PermissionDeniedError(
          absl::StrCat("no permission to listen on ", listen, "; choose a port above 1023"));
  }
  return status;
}

}  // namespace

absl::string_view StateName(NodeState state) {
  switch (state) {
    case NodeState::kJoining:
      return "joining";
    case NodeState::kUp:
      return "up";
    case NodeState::kDown:
      return "down";
    case NodeState::kLost:
      return "lost";
    case NodeState::kRemoving:
      return "removing";
  }
  return "unknown";
}

// ---- Start and end ----

absl::StatusOr<std::unique_ptr<Membership>> Membership::Start(
    MembershipOptions options, absl::flat_hash_map<uint16_t, Method> methods) {
  if (options.incarnation == 0) options.incarnation = RandomNumber();
  auto membership = std::unique_ptr<Membership>(new Membership(std::move(options)));
  CFS_RETURN_IF_ERROR(membership->Prepare(std::move(methods)));
  MutexLock lock(&membership->mutex_);
  while (membership->phase_ == Phase::kJoining) {
    const auto& cancelled = membership->options_.cancelled;
    if (cancelled && cancelled()) return absl::AbortedError("told to end before it was ready");
    membership->changed_.WaitFor(&membership->mutex_, kCancelPoll);
  }
  if (membership->phase_ == Phase::kFailed) return membership->failure_;
  return membership;
}

Membership::Membership(MembershipOptions options)
    : options_(std::move(options)),
      self_(options_.identity.node_id),
      pause_(options_.heartbeat_interval) {}

Membership::~Membership() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.Signal();
  }
  if (thread_.joinable()) thread_.join();
  // What comes until it has ended stays in the queue.
  transport_.reset();
  {
    MutexLock lock(&watch_mutex_);
    watch_ends_ = true;
    watch_.Signal();
  }
  if (watch_thread_.joinable()) watch_thread_.join();
}

absl::Status Membership::Prepare(absl::flat_hash_map<uint16_t, Method> methods) {
  ClusterMemory& memory = options_.memory;
  auto stored = ReadStoredMap(options_.store_path, memory.token.cluster);
  if (!stored.ok()) {
    if (memory.founder) return stored.status();
    // The keeper has it.
    LogWarn("cannot read the cluster map, asking for it error=", stored.status().ToString());
    stored = ClusterMapPtr();
  }
  if (memory.founder && memory.member && *stored == nullptr) {
    return absl::DataLossError(absl::StrCat("store ", options_.store_path,
                                            " is damaged: cluster.map, of which it has the only "
                                            "copy that counts, is missing; restore it"));
  }
  methods[kJoinMethod] = MethodFor(&Membership::OnJoin, kJoinerBytesMax);
  methods[kHeartbeatMethod] = MethodFor(&Membership::OnHeartbeat, 0);
  methods[kClaimMethod] = MethodFor(&Membership::OnClaim, kSlots);
  methods[kRemoveMethod] = MethodFor(&Membership::OnRemove, kMapBytesMax);
  methods[kMapMethod] = MethodFor(&Membership::OnMap, kMapBytesMax);
  CFS_RETURN_IF_ERROR(Listen(methods));

  started_ = SteadyClock::now();
  const bool keeps = *stored == nullptr ? memory.founder : (*stored)->IsKeeper(self_);
  if (keeps) {
    CFS_RETURN_IF_ERROR(BeKeeper(*stored));
  } else {
    CFS_RETURN_IF_ERROR(Remember(memory.member));
    if (*stored != nullptr && (*stored)->Find(self_) != nullptr) {
      MutexLock lock(&mutex_);
      map_ = *stored;
    }
    answer_.reset(new char[kMapBytesMax]);  // Its pages are there once they are used.
  }
  // Signals are for the thread that waits for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  watch_thread_ = Thread([this] { Watch(); });
  thread_ = Thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return absl::OkStatus();
}

absl::Status Membership::Listen(const absl::flat_hash_map<uint16_t, Method>& methods) {
  const ClusterMemory& memory = options_.memory;
  std::string listen = memory.listen;
  if (listen.empty()) {
    CFS_CHECK(!memory.founder);
    auto local = LocalAddressTo(memory.token.seeds);
    // The network may be down for now; others know the address of last time.
    if (!local.ok() && memory.address.empty()) return local.status();
    listen = local.ok() ? *local : memory.address;
  }
  CFS_ASSIGN_OR_RETURN(const HostPort parts, SplitAddress(listen));
  std::vector<std::string> candidates;
  if (parts.port == 0 && !memory.address.empty()) candidates.push_back(memory.address);
  if (candidates.empty() || candidates.front() != listen) candidates.push_back(listen);

  absl::Status error;
  for (const std::string& candidate : candidates) {
    CFS_ASSIGN_OR_RETURN(const SocketAddress address, ResolveAddress(candidate));
    const std::string text = address.ToString();
    if (absl::StartsWith(text, "0.0.0.0:") || absl::StartsWith(text, "[::]:")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--listen takes an address at which others reach this node, not ", candidate));
    }
    TransportOptions transport;
    transport.cluster = memory.token.cluster;
    transport.secret = memory.token.secret;
    transport.node = self_;
    transport.listen = candidate;
    transport.transports = options_.transports;
    transport.methods = methods;
    auto started = Transport::Start(std::move(transport));
    if (started.ok()) {
      transport_ = *std::move(started);
      LogInfo("listening address=", transport_->address());
      return absl::OkStatus();
    }
    error = ListenError(candidate, started.status());
    const int err = ErrnoOf(started.status());
    if (err != EADDRINUSE && err != EADDRNOTAVAIL) break;
  }
  return error;
}

absl::Status Membership::Remember(bool member) {
  options_.memory.member = member;
  options_.memory.address = transport_->address();
  if (options_.memory.founder) options_.memory.token.seeds = {transport_->address()};
  return WriteClusterMemory(options_.store_path, options_.memory);
}

ClusterNode Membership::Description() const {
  return {self_,
          NodeState::kJoining,
          options_.memory.weight,
          options_.identity.machine.substr(0, kNodeTextBytesMax),
          {transport_->address()},
          options_.identity.store_id,
          options_.incarnation};
}

absl::Status Membership::BeKeeper(ClusterMapPtr stored) {
  ClusterNode me = Description();
  absl::StatusOr<ClusterMapPtr> map;
  CFS_RETURN_IF_ERROR(Remember(stored != nullptr));
  if (stored == nullptr) {
    if (me.weight == 0) {
      return absl::InvalidArgumentError("the first node of a cluster needs a --weight above 0");
    }
    map = ClusterMap::Found(options_.memory.token.cluster, std::move(me));
  } else {
    me.state = NodeState::kDown;  // Until it serves.
    map = stored->Change({}, {me});
    MutexLock lock(&mutex_);
    map_ = stored;
  }
  CFS_RETURN_IF_ERROR(map.status());
  CFS_RETURN_IF_ERROR(WriteStoredMap(options_.store_path, **map));
  CFS_RETURN_IF_ERROR(Remember(true));
  keeper_ = std::make_unique<Keeper>(self_, *map, options_.keeper, SteadyClock::now());
  Publish(*std::move(map));
  EnterMap();
  Enqueue([this] { Push(); });
  return absl::OkStatus();
}

void Membership::EndServing() {
  Enqueue([this] {
    serving_ = false;
    ending_ = true;
    if (keeper_ != nullptr) {
      keeper_->SetServing(false, SteadyClock::now());
      CheckPushed();
    } else if (registered_ && !gone_) {
      next_talk_ = Instant::min();
    } else {
      MutexLock lock(&mutex_);
      ended_ = true;
      changed_.SignalAll();
    }
  });
  const Instant patience = SteadyClock::now() + kEndPatience;
  MutexLock lock(&mutex_);
  while (!ended_ && SteadyClock::now() < patience) {
    changed_.WaitFor(&mutex_, patience - SteadyClock::now());
  }
}

// ---- What others see ----

ClusterMapPtr Membership::map() const {
  MutexLock lock(&mutex_);
  return map_;
}

void Membership::SetServing() {
  Enqueue([this] {
    serving_ = true;
    if (keeper_ != nullptr) {
      keeper_->SetServing(true, SteadyClock::now());
    } else {
      next_talk_ = Instant::min();
    }
  });
}

void Membership::OnChange(Watcher watcher) {
  MutexLock lock(&watch_mutex_);
  watchers_.push_back(std::move(watcher));
}

void Membership::OnExpelled(std::function<void(absl::Status)> watcher) {
  MutexLock lock(&watch_mutex_);
  expelled_watcher_ = std::move(watcher);
  watch_.Signal();
}

nlohmann::json Membership::Status() const {
  bool keeper_answers;
  ClusterMapPtr map;
  {
    MutexLock lock(&mutex_);
    keeper_answers = keeper_answers_;
    map = map_;
  }
  struct Slots {
    uint64_t owned = 0, leaving = 0, coming = 0;
  };
  absl::flat_hash_map<NodeId, Slots> slots;
  for (size_t i = 0; i < kSlotCount; ++i) {
    const auto slot = Slot(static_cast<uint16_t>(i));
    Slots& owner = slots[map->OwnerOf(slot)];
    ++owner.owned;
    if (!map->InHandOver(slot)) continue;
    ++owner.leaving;
    ++slots[map->WantedOf(slot)].coming;
  }
  nlohmann::json nodes = nlohmann::json::array();
  for (const ClusterNode& node : map->nodes()) {
    nodes.push_back({{"id", Raw(node.id)},
                     {"state", std::string(StateName(node.state))},
                     {"weight", node.weight},
                     {"slots_owned", slots[node.id].owned},
                     {"slots_leaving", slots[node.id].leaving},
                     {"slots_coming", slots[node.id].coming},
                     {"addresses", node.addresses},
                     {"machine", node.machine},
                     {"incarnation", HexOf(node.incarnation)},
                     {"keeper", map->IsKeeper(node.id)},
                     {"self", node.id == self_}});
  }
  return {{"id", HexOf(map->cluster())},
          {"epoch", Raw(map->epoch())},
          {"keeper", Raw(map->keepers().front())},
          {"keeper_answers", keeper_answers},
          {"slots_vacant", map->vacant().count()},
          {"losses", map->losses()},
          {"self", Raw(self_)},
          {"nodes", std::move(nodes)}};
}

std::string Membership::TokenText() const {
  const ClusterMapPtr map = this->map();
  Token token = options_.memory.token;
  token.seeds.clear();
  const auto add = [&token](const ClusterNode* node) {
    if (node == nullptr || token.seeds.size() >= kTokenSeeds) return;
    const std::string& address = node->addresses.front();
    if (std::ranges::find(token.seeds, address) == token.seeds.end() &&
        SplitAddress(address).ok()) {
      token.seeds.push_back(address);
    }
  };
  for (const NodeId keeper : map->keepers()) add(map->Find(keeper));
  add(map->Find(self_));
  for (const ClusterNode& node : map->nodes()) {
    if (node.state == NodeState::kUp) add(&node);
  }
  if (token.seeds.empty()) token.seeds = {transport_->address()};
  return FormatToken(token);
}

// ---- Threads ----

bool Membership::Enqueue(std::function<void()> event, bool may_drop) {
  MutexLock lock(&mutex_);
  if (may_drop && events_.size() >= kMemberEventsMax) return false;
  events_.push_back(std::move(event));
  wake_.Signal();
  return true;
}

Method Membership::MethodFor(Handler handler, size_t payload_bytes_max) {
  Method method;
  method.buffer = [payload_bytes_max](NodeId, absl::string_view, size_t bytes) {
    return bytes <= payload_bytes_max ? Payload::Allocate(bytes) : Payload();
  };
  method.handle = [this, handler](Request request, Responder responder) {
    // Shared, for an event can be copied.
    auto asker = std::make_shared<Asker>(std::move(responder));
    auto payload = std::make_shared<Payload>(std::move(request.payload));
    Enqueue(
        [this, handler, peer = request.peer, header = std::move(request.header),
         payload = std::move(payload), asker = std::move(asker)] {
          (this->*handler)(peer, header, absl::string_view(payload->data(), payload->size()),
                           asker);
        },
        /*may_drop=*/true);
  };
  return method;
}

void Membership::Run() {
  NameThread("cfs-member");
  const auto interval = options_.heartbeat_interval;
  Instant last = SteadyClock::now();
  while (true) {
    std::deque<std::function<void()>> events;
    {
      MutexLock lock(&mutex_);
      Instant due = last + interval;
      if (keeper_ != nullptr) due = std::min(due, keeper_->due());
      if (keeper_ == nullptr && !talking_ && !gone_) due = std::min(due, next_talk_);
      Instant now = SteadyClock::now();
      while (events_.empty() && !stopping_ && now < due) {
        wake_.WaitFor(&mutex_, due - now);
        now = SteadyClock::now();
      }
      if (stopping_) return;
      events.swap(events_);
    }
    const Instant now = SteadyClock::now();
    if (keeper_ != nullptr && now - last > 2 * interval) {
      LogWarn("did not run for a while, forgiving the silence of others seconds=",
              std::chrono::duration_cast<std::chrono::seconds>(now - last).count());
      keeper_->Forgive(now - last);
    }
    last = now;
    for (const auto& event : events) event();
    if (keeper_ != nullptr) KeeperTick(SteadyClock::now());
    if (keeper_ == nullptr) Talk(SteadyClock::now());
    if (std::exchange(map_unstored_, false)) {
      const absl::Status stored = WriteStoredMap(options_.store_path, *map());
      // A copy that is old is as good: the keeper has the map.
      if (!stored.ok()) LogWarn("cannot store the cluster map error=", stored.ToString());
    }
  }
}

void Membership::Watch() {
  NameThread("cfs-map");
  while (true) {
    std::vector<Watcher> watchers;
    std::pair<ClusterMapPtr, ClusterMapPtr> change;
    std::function<void(absl::Status)> expelled_watcher;
    absl::Status expelled;
    {
      MutexLock lock(&watch_mutex_);
      while (!watch_ends_ && changes_.empty() && !(expelled_ && expelled_watcher_)) {
        watch_.Wait(&watch_mutex_);
      }
      if (watch_ends_) return;
      if (!changes_.empty()) {
        watchers = watchers_;
        change = std::move(changes_.front());
        changes_.pop_front();
      } else {
        expelled_watcher = std::exchange(expelled_watcher_, nullptr);
        expelled = *expelled_;
      }
    }
    for (const Watcher& watcher : watchers) watcher(change.first, change.second);
    if (expelled_watcher) expelled_watcher(expelled);
  }
}

void Membership::EnterMap() {
  MutexLock lock(&mutex_);
  if (phase_ != Phase::kJoining) return;
  phase_ = Phase::kMember;
  changed_.SignalAll();
}

void Membership::Fail(absl::Status status) {
  gone_ = true;
  // The store may join another cluster, or be alone.
  if (!options_.memory.member && !maybe_joined_) {
    const absl::Status removed = RemoveClusterMemory(options_.store_path);
    if (!removed.ok()) LogWarn("cannot forget the cluster error=", removed.ToString());
  }
  MutexLock lock(&mutex_);
  phase_ = Phase::kFailed;
  failure_ = std::move(status);
  changed_.SignalAll();
}

void Membership::Expel(absl::Status status) {
  if (gone_) return;
  bool joining;
  {
    MutexLock lock(&mutex_);
    joining = phase_ == Phase::kJoining;
  }
  if (joining) return Fail(std::move(status));
  gone_ = true;
  LogError("not in the cluster any more, ending reason=\"", status.message(), "\"");
  MutexLock lock(&watch_mutex_);
  expelled_ = std::move(status);
  watch_.Signal();
}

void Membership::Publish(ClusterMapPtr map) {
  ClusterMapPtr before;
  {
    MutexLock lock(&mutex_);
    before = std::exchange(map_, map);
    if (keeper_ != nullptr) keeper_answers_ = true;
  }
  bytes_from_.clear();
  if (keeper_ != nullptr && before != nullptr) {
    old_maps_.push_back(before);
    if (old_maps_.size() > kOldMapsMax) old_maps_.pop_front();
  }
  LogInfo("cluster map epoch=", Raw(map->epoch()), " nodes=", map->nodes().size(),
          " up=", std::ranges::count(map->nodes(), NodeState::kUp, &ClusterNode::state));
  {
    MutexLock lock(&watch_mutex_);
    if (changes_.size() < kMapChangesMax) {
      changes_.emplace_back(before, map);
    } else {
      changes_.back().second = map;
    }
    watch_.Signal();
  }
  if (keeper_ != nullptr) return;
  map_unstored_ = true;
  if (before == nullptr || before->keepers() != map->keepers() ||
      before->Find(map->keepers().front())->addresses !=
          map->Find(map->keepers().front())->addresses) {
    targets_.clear();
    target_ = 0;
  }
  const ClusterNode* const me = map->Find(self_);
  if (me == nullptr) {
    Expel(absl::FailedPreconditionError("it was removed"));
  } else if (IsGone(me->state)) {
    Expel(absl::FailedPreconditionError("it was given up as lost"));
  } else if (registered_ && me->incarnation != options_.incarnation) {
    Expel(absl::FailedPreconditionError("another process runs as this node"));
  }
}

bool Membership::MayComplain() {
  const Instant now = SteadyClock::now();
  if (now < next_complaint_) return false;
  next_complaint_ = now + kComplaintPause;
  return true;
}

}  // namespace cfs
