// Membership as a node that has a keeper: joins, heartbeats, and maps that come.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/steady_clock.h"
#include "cfs/net/address.h"
#include "cfs/net/handshake.h"
#include "cfs/ring/cluster_map_format.h"
#include "cfs/server/membership_internal.h"

namespace cfs {
namespace {

// Redirections that are followed before the next address is tried.
constexpr int kRedirectsMax = 3;
// While no keeper answers, it is looked for each so many heartbeats at least.
constexpr int kPauseFactorMax = 8;
// Nodes, beside the keeper, that are asked where the keeper is.
constexpr size_t kOtherTargetsMax = 16;

// What a peer's refusal of the handshake means; OK when it was none.
absl::Status RefusalOf(const std::string& target, const absl::Status& status) {
  const auto says = [&](Refusal refusal) {
    return absl::StrContains(status.message(), RefusalText(refusal));
  };
  if (says(Refusal::kWrongSecret)) {
    return absl::PermissionDeniedError(
        absl::StrCat("the cluster at ", target,
                     " has another secret than the token; `cfs token` there shows the right one"));
  }
  if (says(Refusal::kOtherCluster)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the node at ", target,
                     " is of another cluster than the token; `cfs token` there shows its own"));
  }
  if (says(Refusal::kOtherProtocol)) {
    return absl::UnimplementedError(
        absl::StrCat("the node at ", target, " runs a cfs of another version"));
  }
  return absl::OkStatus();
}

}  // namespace

uint8_t Membership::Flags() const {
  uint8_t flags = 0;
  if (serving_) flags |= MemberRequest::kServing;
  if (ending_) flags |= MemberRequest::kEnding;
  if (!options_.memory.member) flags |= MemberRequest::kFirst;
  return flags;
}

void Membership::OnMap(NodeId peer, const std::string& header, absl::string_view payload,
                       std::shared_ptr<Asker> asker) {
  const auto request = DecodeMemberRequest(header);
  const ClusterMapPtr map = this->map();
  const Epoch epoch = map == nullptr ? Epoch{0} : map->epoch();
  if (keeper_ != nullptr || map == nullptr || !request.ok() || request->node != peer ||
      !map->IsKeeper(peer)) {
    return asker->Reply({MemberCode::kRefused, epoch, "takes no map from that node"});
  }
  const absl::Status taken = Take(payload);
  if (!taken.ok() && MayComplain()) {
    LogWarn("got no map from the keeper, waiting for the next error=", taken.ToString());
  }
  bool answers;
  {
    MutexLock lock(&mutex_);
    answers = keeper_answers_;
  }
  // It is back.
  if (!answers) next_talk_ = Instant::min();
  asker->Reply({MemberCode::kOk, this->map()->epoch(), ""});
}

absl::Status Membership::Take(absl::string_view bytes) {
  const ClusterMapPtr map = this->map();
  auto next = map == nullptr ? DecodeMap(bytes) : ApplyDelta(*map, bytes);
  if (map != nullptr && next.status().code() == absl::StatusCode::kFailedPrecondition) {
    next = DecodeMap(bytes);
    // A delta from a map that is ours no more, for a newer one has come since.
    if (next.status().code() == absl::StatusCode::kFailedPrecondition) return absl::OkStatus();
  }
  CFS_RETURN_IF_ERROR(next.status());
  if ((*next)->cluster() != options_.memory.token.cluster) {
    return absl::DataLossError("cluster map: this is of another cluster");
  }
  if (map == nullptr || (*next)->epoch() > map->epoch() || Planted("stale-map-accepted")) {
    Publish(*std::move(next));
  }
  return absl::OkStatus();
}

std::vector<std::string> Membership::Targets() const {
  const ClusterMapPtr map = this->map();
  std::vector<std::string> targets;
  const auto add = [&](const std::string& address) {
    if (address != transport_->address() && std::ranges::find(targets, address) == targets.end()) {
      targets.push_back(address);
    }
  };
  if (map != nullptr) {
    for (const NodeId keeper : map->keepers()) {
      for (const std::string& address : map->Find(keeper)->addresses) add(address);
    }
  }
  for (const std::string& seed : options_.memory.token.seeds) {
    // May wait for a name server. Nothing else has to be done while no keeper answers.
    const auto address = ResolveAddress(seed);
    if (address.ok()) add(address->ToString());
  }
  if (map != nullptr) {
    const size_t enough = targets.size() + kOtherTargetsMax;
    for (const NodeState state : {NodeState::kUp, NodeState::kJoining, NodeState::kDown}) {
      for (const ClusterNode& node : map->nodes()) {
        if (node.state == state && targets.size() < enough) add(node.addresses.front());
      }
    }
  }
  return targets;
}

void Membership::Talk(Instant now) {
  if (talking_ || gone_ || now < next_talk_) return;
  bool joining;
  {
    MutexLock lock(&mutex_);
    joining = phase_ == Phase::kJoining;
  }
  if (joining) {
    const bool remembers = map() != nullptr;
    const auto patience = remembers ? options_.rejoin_patience : options_.join_patience;
    if (now - started_ >= patience) {
      if (!remembers) {
        return Fail(absl::UnavailableError(absl::StrCat(
            "no node of the cluster answers within ",
            std::chrono::duration_cast<std::chrono::seconds>(patience).count(), " s (",
            last_miss_.message(), "); check that the first node runs and is reached")));
      }
      LogWarn("the keeper does not answer, going on with the map of last time epoch=",
              Raw(map()->epoch()));
      EnterMap();
    }
  }
  if (targets_.empty()) targets_ = Targets();
  if (targets_.empty() && redirect_.empty()) {
    return Missed(absl::UnavailableError("the token names no other node"), /*refused=*/true);
  }
  const std::string target =
      redirect_.empty() ? targets_[target_] : std::exchange(redirect_, std::string());
  const ClusterMapPtr map = this->map();
  const uint8_t flags = Flags();
  auto joiner = std::make_shared<std::string>(registered_ ? "" : EncodeJoiner(Description()));
  talking_ = true;
  next_talk_ = now + options_.heartbeat_interval;
  transport_->Start({.address = target,
                     .method = registered_ ? kHeartbeatMethod : kJoinMethod,
                     .header = EncodeMemberRequest({flags, self_, options_.incarnation,
                                                    map == nullptr ? Epoch{0} : map->epoch()}),
                     .payload = joiner->data(),
                     .payload_bytes = joiner->size(),
                     .answer = answer_.get(),
                     .answer_bytes = kMapBytesMax,
                     .deadline = WallNow() + kMemberCallPatience,
                     .done = [this, joiner, target, flags](CallResult result) {
                       Enqueue([this, target, flags, status = result.status,
                                maybe = result.maybe_executed, header = std::string(result.header),
                                bytes = result.payload_bytes] {
                         maybe_joined_ = maybe_joined_ || maybe;
                         OnTalked(target, flags, status, header, bytes);
                       });
                     }});
}

void Membership::NextTarget() {
  redirects_ = 0;
  if (++target_ < targets_.size()) {
    next_talk_ = Instant::min();
    return;
  }
  // All were asked.
  bool joining, first;
  {
    MutexLock lock(&mutex_);
    joining = phase_ == Phase::kJoining;
    first = joining && map_ == nullptr;
  }
  if (first && all_refused_) return Fail(last_miss_);
  // The keeper tells when it is back; this is in case that it can't.
  next_talk_ = SteadyClock::now() + pause_;
  if (!joining) pause_ = std::min(2 * pause_, kPauseFactorMax * options_.heartbeat_interval);
  targets_.clear();
  target_ = 0;
  all_refused_ = true;
}

void Membership::Missed(absl::Status status, bool refused) {
  bool answered;
  {
    MutexLock lock(&mutex_);
    answered = std::exchange(keeper_answers_, false);
  }
  if (answered) LogWarn("the keeper does not answer, retrying error=\"", status.message(), "\"");
  // A refusal says more than a silence.
  if (refused || all_refused_ || last_miss_.ok()) last_miss_ = std::move(status);
  all_refused_ = all_refused_ && refused;
  NextTarget();
}

void Membership::OnTalked(const std::string& target, uint8_t flags, const absl::Status& status,
                          const std::string& header, size_t bytes) {
  talking_ = false;
  if (gone_) return;
  if ((flags & MemberRequest::kEnding) != 0) {
    gone_ = true;
    MutexLock lock(&mutex_);
    ended_ = true;
    changed_.SignalAll();
    return;
  }
  if (!status.ok()) {
    const absl::Status refusal = RefusalOf(target, status);
    return Missed(refusal.ok() ? status : refusal, !refusal.ok());
  }
  const auto answer = DecodeMemberAnswer(header);
  if (!answer.ok()) return Missed(answer.status(), /*refused=*/true);
  const auto gone = [&] {
    return absl::FailedPreconditionError(
        absl::StrCat("the cluster does not take this node: it ", answer->text));
  };
  switch (answer->code) {
    case MemberCode::kOk:
      maybe_joined_ = true;
      break;
    case MemberCode::kNotKeeper:
      if (!answer->text.empty() && answer->text != target && redirects_ < kRedirectsMax &&
          ParseNumericAddress(answer->text).ok()) {
        ++redirects_;
        redirect_ = answer->text;
        next_talk_ = Instant::min();
        return;
      }
      return Missed(absl::UnavailableError(absl::StrCat(target, " does not keep the map")), false);
    case MemberCode::kIdTaken:
      return Expel(absl::AlreadyExistsError(
          absl::StrCat("another store is node ", Raw(self_), " of the cluster")));
    case MemberCode::kRefused:
      return Expel(absl::FailedPreconditionError(answer->text));
    case MemberCode::kNotNow:
      return;
    case MemberCode::kUnknownNode:
      registered_ = false;
      next_talk_ = Instant::min();
      return;
    case MemberCode::kGone:
    case MemberCode::kReplaced:
      return Expel(gone());
  }
  if (bytes > 0) {
    const absl::Status taken = Take(absl::string_view(answer_.get(), bytes));
    if (!taken.ok()) return Missed(taken, /*refused=*/true);
    if (gone_) return;
  }
  const ClusterMapPtr map = this->map();
  if (map == nullptr) return Missed(absl::DataLossError("the keeper gave no map"), true);
  if (map->epoch() < answer->epoch) next_talk_ = Instant::min();
  all_refused_ = true;
  redirects_ = 0;
  pause_ = options_.heartbeat_interval;
  // The next ones go there too.
  const auto found = std::ranges::find(targets_, target);
  if (found == targets_.end()) {
    targets_.insert(targets_.begin(), target);
    target_ = 0;
  } else {
    target_ = found - targets_.begin();
  }
  bool answered;
  {
    MutexLock lock(&mutex_);
    answered = std::exchange(keeper_answers_, true);
  }
  if (!answered) LogInfo("the keeper answers address=", target, " epoch=", Raw(map->epoch()));
  const ClusterNode* const me = map->Find(self_);
  // The map with this process in it is yet to come.
  if (me == nullptr || me->incarnation != options_.incarnation) return;
  if (registered_) return;
  registered_ = true;
  // Before anybody here acts as a member.
  absl::Status stored = WriteStoredMap(options_.store_path, *map);
  if (stored.ok() && !options_.memory.member) stored = Remember(true);
  if (!stored.ok()) return Expel(stored);
  map_unstored_ = false;
  LogInfo("in the cluster node=", Raw(self_), " epoch=", Raw(map->epoch()));
  EnterMap();
  if (serving_ || ending_) next_talk_ = Instant::min();
}

}  // namespace cfs
