// Membership as the keeper: what others ask it, and what it tells them.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cfs/base/awaited.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/steady_clock.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/transaction_format.h"
#include "cfs/net/address.h"
#include "cfs/ring/cluster_map_format.h"
#include "cfs/server/membership_internal.h"

namespace cfs {
namespace {

using Bytes = std::shared_ptr<const std::string>;

bool AllNumeric(const std::vector<std::string>& addresses) {
  return std::ranges::all_of(
      addresses, [](const std::string& address) { return ParseNumericAddress(address).ok(); });
}

}  // namespace

MemberAnswer Membership::NotKeeper() const {
  const ClusterMapPtr map = this->map();
  MemberAnswer answer{MemberCode::kNotKeeper, Epoch{0}, ""};
  if (map == nullptr) return answer;
  answer.epoch = map->epoch();
  answer.text = map->Find(map->keepers().front())->addresses.front();
  return answer;
}

void Membership::OnJoin(NodeId peer, const std::string& header, absl::string_view payload,
                        std::shared_ptr<Asker> asker) {
  if (keeper_ == nullptr) return asker->Reply(NotKeeper());
  const auto request = DecodeMemberRequest(header);
  auto node = DecodeJoiner(payload);
  const absl::Status status = request.ok() ? node.status() : request.status();
  if (!status.ok() || request->node != peer || !AllNumeric(node->addresses)) {
    return asker->Reply({MemberCode::kRefused, keeper_->map()->epoch(),
                         status.ok() ? "the join is that of another node, or has no address"
                                     : std::string(status.message())});
  }
  node->id = request->node;
  const std::string address = node->addresses.front();
  const auto answer = keeper_->Join(*request, *std::move(node), SteadyClock::now());
  if (!answer) {
    joiners_[peer].push_back({request->incarnation, request->epoch, std::move(asker)});
    return;
  }
  if (answer->code != MemberCode::kOk && MayComplain()) {
    LogWarn("refused a join node=", Raw(peer), " address=", address, " reason=\"", answer->text,
            "\"");
  }
  followers_[peer].known = std::max(followers_[peer].known, request->epoch);
  asker->Reply(*answer, answer->code == MemberCode::kOk ? BytesFrom(request->epoch) : nullptr);
}

void Membership::OnHeartbeat(NodeId peer, const std::string& header, absl::string_view,
                             std::shared_ptr<Asker> asker) {
  if (keeper_ == nullptr) return asker->Reply(NotKeeper());
  const auto request = DecodeMemberRequest(header);
  if (!request.ok() || request->node != peer) {
    return asker->Reply({MemberCode::kRefused, keeper_->map()->epoch(),
                         request.ok() ? "the heartbeat is that of another node"
                                      : std::string(request.status().message())});
  }
  const MemberAnswer answer = keeper_->Heartbeat(*request, SteadyClock::now());
  if (answer.code == MemberCode::kNotNow && MayComplain()) {
    LogError("a node has a newer map than this keeper, whose store must be an old copy node=",
             Raw(peer), " epoch=", Raw(request->epoch), " own=", Raw(keeper_->map()->epoch()));
  }
  if (answer.code != MemberCode::kOk) return asker->Reply(answer);
  followers_[peer].known = request->epoch;
  asker->Reply(answer, BytesFrom(request->epoch));
}

void Membership::OnClaim(NodeId peer, const std::string& header, absl::string_view payload,
                         std::shared_ptr<Asker> asker) {
  if (keeper_ == nullptr) return asker->Reply(NotKeeper());
  const auto request = DecodeMemberRequest(header);
  const auto slots = DecodeSlots(payload);
  if (!request.ok() || request->node != peer || !slots.ok()) {
    return asker->Reply({MemberCode::kRefused, keeper_->map()->epoch(), "malformed claim"});
  }
  keeper_->Claim(peer, *slots, request->epoch, SteadyClock::now());
  asker->Reply({MemberCode::kOk, keeper_->map()->epoch(), ""});
}

void Membership::OnRemove(NodeId, const std::string& header, absl::string_view payload,
                          std::shared_ptr<Asker> asker) {
  if (keeper_ == nullptr) return asker->Reply(NotKeeper());
  const Epoch epoch = keeper_->map()->epoch();
  const auto nodes = DecodeNodes(payload);
  if (!DecodeMemberRequest(header).ok() || !nodes.ok()) {
    return asker->Reply({MemberCode::kRefused, epoch, "malformed request"});
  }
  const absl::Status begun = keeper_->Remove(*nodes, SteadyClock::now());
  asker->Reply(
      {begun.ok() ? MemberCode::kOk : MemberCode::kRefused, epoch, std::string(begun.message())});
}

absl::Status Membership::Remove(const std::vector<NodeId>& nodes) {
  const auto answered = std::make_shared<Awaited<absl::Status>>();
  Enqueue([this, nodes, answered] {
    if (keeper_ != nullptr) {
      return answered->Set(keeper_->Remove(nodes, SteadyClock::now()));
    }
    const ClusterMapPtr map = this->map();
    const ClusterNode* const keeper = map->Find(map->keepers().front());
    const auto payload = std::make_shared<const std::string>(EncodeNodes(nodes));
    transport_->Start(
        {.address = keeper->addresses.front(),
         .node = keeper->id,
         .method = kRemoveMethod,
         .header = EncodeMemberRequest({0, self_, options_.incarnation, map->epoch()}),
         .payload = payload->data(),
         .payload_bytes = payload->size(),
         .deadline = WallNow() + kMemberCallPatience,
         .done = [payload, answered](const CallResult& result) {
           const auto answer = DecodeMemberAnswer(result.header);
           if (!result.status.ok() || !answer.ok()) {
             return answered->Set(absl::UnavailableError(
                 "the keeper of the cluster map does not answer; try again when it does"));
           }
           answered->Set(answer->code == MemberCode::kOk
                             ? absl::OkStatus()
                             : absl::FailedPreconditionError(answer->text));
         }});
  });
  return answered->GetWithin(2 * absl::ToChronoSeconds(kMemberCallPatience))
      .value_or(absl::UnavailableError("the node is busy; try again"));
}

void Membership::Claim(const SlotSet& slots, Epoch epoch) {
  Enqueue([this, slots, epoch] {
    if (keeper_ != nullptr) return keeper_->Claim(self_, slots, epoch, SteadyClock::now());
    const ClusterMapPtr map = this->map();
    const ClusterNode* const keeper = map->Find(map->keepers().front());
    const auto payload = std::make_shared<const std::string>(Encode(slots));
    transport_->Start({.address = keeper->addresses.front(),
                       .node = keeper->id,
                       .method = kClaimMethod,
                       .header = EncodeMemberRequest({0, self_, options_.incarnation, epoch}),
                       .payload = payload->data(),
                       .payload_bytes = payload->size(),
                       .deadline = WallNow() + kMemberCallPatience,
                       // Who is not heard says it again.
                       .done = [payload](const CallResult&) {}});
  });
}

Bytes Membership::BytesFrom(Epoch known) {
  const ClusterMapPtr map = keeper_->map();
  if (known >= map->epoch()) return nullptr;
  Bytes& bytes = bytes_from_[known];
  if (bytes != nullptr) return bytes;
  const auto it = std::ranges::find_if(
      old_maps_, [known](const ClusterMapPtr& old) { return old->epoch() == known; });
  bytes = std::make_shared<const std::string>(it == old_maps_.end() ? EncodeMap(*map)
                                                                    : EncodeDelta(**it, *map));
  return bytes;
}

void Membership::KeeperTick(Instant now) {
  if (now < keeper_->due()) return;
  auto next = keeper_->NextMap(now);
  if (!next.ok()) {
    LogWarn("refused joins reason=\"", next.status().message(), "\"");
    for (auto it = joiners_.begin(); it != joiners_.end();) {
      if (keeper_->Waits(it->first)) {
        ++it;
        continue;
      }
      for (const Joiner& joiner : it->second) {
        joiner.asker->Reply(
            {MemberCode::kRefused, keeper_->map()->epoch(), std::string(next.status().message())});
      }
      joiners_.erase(it++);
    }
    return keeper_->Postpone(now + options_.heartbeat_interval);
  }
  if (*next == nullptr) return;
  if (Planted("map-told-first")) Tell(*next, now);
  FaultPoint("map-unwritten");
  const absl::Status stored = WriteStoredMap(options_.store_path, **next);
  if (!stored.ok()) {
    LogError("cannot store the cluster map, so it does not change, retrying error=",
             stored.ToString());
    return keeper_->Postpone(now + options_.heartbeat_interval);
  }
  for (const ClusterNode& node : (*next)->nodes()) {
    const ClusterNode* const before = keeper_->map()->Find(node.id);
    if (before != nullptr && *before == node) continue;
    LogInfo("node ",
            before == nullptr                         ? "joins"
            : before->incarnation != node.incarnation ? "was started again"
                                                      : "changes",
            " node=", Raw(node.id), " state=", StateName(node.state),
            " address=", node.addresses.front(), " epoch=", Raw((*next)->epoch()));
  }
  FaultPoint("map-written");
  if (!Planted("map-told-first")) Tell(*std::move(next), now);
}

void Membership::Tell(ClusterMapPtr map, Instant now) {
  keeper_->Adopt(map, now);
  Publish(std::move(map));
  AnswerJoins();
  Push();
}

void Membership::AnswerJoins() {
  const ClusterMapPtr map = keeper_->map();
  for (auto it = joiners_.begin(); it != joiners_.end();) {
    if (keeper_->Waits(it->first)) {
      ++it;
      continue;
    }
    const ClusterNode* const node = map->Find(it->first);
    for (const Joiner& joiner : it->second) {
      if (node != nullptr && node->incarnation == joiner.incarnation) {
        joiner.asker->Reply({MemberCode::kOk, map->epoch(), ""}, BytesFrom(joiner.known));
        // It has it with the answer.
        followers_[it->first].known = map->epoch();
      } else {
        joiner.asker->Reply({MemberCode::kReplaced, map->epoch(), "was started again"});
      }
    }
    joiners_.erase(it++);
  }
}

void Membership::Push() {
  for (const ClusterNode& node : keeper_->map()->nodes()) {
    if (node.id == self_ || IsGone(node.state)) continue;
    // Once after its start also to those who are down: the keeper may have moved.
    if (told_all_ && node.state == NodeState::kDown) continue;
    PushTo(node);
  }
  told_all_ = true;
  CheckPushed();
}

void Membership::PushTo(const ClusterNode& node) {
  const ClusterMapPtr map = keeper_->map();
  Follower& follower = followers_[node.id];
  if (follower.pushing || follower.known >= map->epoch()) return;
  Epoch base = follower.known;
  // Most have what was the latest; those who do not, say what they have.
  if (base == Epoch{0} && !old_maps_.empty()) base = old_maps_.back()->epoch();
  follower.pushing = true;
  const Bytes bytes = BytesFrom(base);
  transport_->Start({.address = node.addresses.front(),
                     .node = node.id,
                     .method = kMapMethod,
                     .header = EncodeMemberRequest({0, self_, options_.incarnation, map->epoch()}),
                     .payload = bytes->data(),
                     .payload_bytes = bytes->size(),
                     .deadline = WallNow() + kMemberCallPatience,
                     .done = [this, bytes, base, id = node.id](CallResult result) {
                       const auto answer = DecodeMemberAnswer(result.header);
                       std::optional<Epoch> known;
                       if (result.status.ok() && answer.ok()) known = answer->epoch;
                       Enqueue([this, id, base, known] { OnPushed(id, base, known); });
                     }});
}

void Membership::OnPushed(NodeId node, Epoch base, std::optional<Epoch> known) {
  Follower& follower = followers_[node];
  follower.pushing = false;
  const ClusterNode* const now = keeper_->map()->Find(node);
  if (known && *known != Epoch{0}) {
    follower.known = *known;
    // Again, with what fits, or what is new since. If what fits has not helped,
    // its next heartbeat may.
    if (now != nullptr && *known != base) PushTo(*now);
  } else {
    follower.known = Epoch{0};
  }
  CheckPushed();
}

void Membership::CheckPushed() {
  if (!ending_ || keeper_->map()->Find(self_)->state != NodeState::kDown) return;
  for (const auto& [node, follower] : followers_) {
    if (follower.pushing) return;
  }
  MutexLock lock(&mutex_);
  ended_ = true;
  changed_.SignalAll();
}

}  // namespace cfs
