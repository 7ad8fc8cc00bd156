#include "cfs/server/peer_client.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/planted.h"
#include "cfs/base/random.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"

namespace cfs {
namespace {

// What a transaction has is free again in a moment.
constexpr auto kFirstRetry = std::chrono::milliseconds(1);
constexpr auto kLongestRetry = std::chrono::milliseconds(500);
constexpr auto kLongestPause = std::chrono::milliseconds(20);
// What a request gets at least.
constexpr auto kShortestTry = std::chrono::milliseconds(500);
// A peer that has kept a request for so long was there.
constexpr auto kThere = std::chrono::seconds(1);

// What waits for a device; a peer that is there does it.
bool MayTakeLong(PeerOp op) {
  return op == PeerOp::kSync || op == PeerOp::kSyncMeta || op == PeerOp::kAllocate ||
         op == PeerOp::kCopyRange || op == PeerOp::kTruncateData || op == PeerOp::kWrite ||
         op == PeerOp::kOpen || op == PeerOp::kCreate || op == PeerOp::kSetAttr ||
         op == PeerOp::kPrepare || op == PeerOp::kSyncAll ||
         (op >= PeerOp::kTakeBegin && op <= PeerOp::kTakeEnd) || op == PeerOp::kMakeDirectory ||
         op == PeerOp::kLink || op == PeerOp::kUnlink || op == PeerOp::kRemoveDirectory ||
         op == PeerOp::kRename;
}

// Half of it to one and a half: those who met once are not to meet again.
std::chrono::microseconds About(std::chrono::microseconds pause) {
  return pause / 2 + std::chrono::microseconds(RandomNumber() % (pause.count() + 1));
}

absl::Status TimedOut() { return absl::UnavailableError("the node does not answer"); }

}  // namespace

struct PeerClient::Pending {
  PeerRequest request;
  PeerHeader header;
  std::string result;
  NodeId node{0};  // Whom it was sent to last, and when.
  Clock::time_point sent;
  Clock::time_point began;
  std::chrono::milliseconds interval = kFirstRetry;
};

PeerClient::PeerClient(Transport* transport, MapFn map, NodeId self, uint64_t incarnation,
                       std::chrono::milliseconds time_out)
    : transport_(transport),
      map_(std::move(map)),
      self_(self),
      incarnation_(incarnation),
      time_out_(time_out) {
  timer_ = Thread([this] { RunTimer(); });
}

PeerClient::~PeerClient() { Stop(); }

void PeerClient::Stop() {
  {
    MutexLock lock(&timer_mutex_);
    stopping_ = true;
    timer_wake_.Signal();
    while (sending_ > 0) sent_.Wait(&timer_mutex_);
  }
  if (timer_.joinable()) timer_.join();
}

void PeerClient::Ask(PeerRequest request) {
  auto pending = std::make_shared<Pending>();
  pending->request = std::move(request);
  pending->began = Clock::now();
  {
    MutexLock lock(&sequence_mutex_);
    pending->header.sequence = next_sequence_++;
    outstanding_.insert(pending->header.sequence);
  }
  Send(std::move(pending));
}

void PeerClient::Send(std::shared_ptr<Pending> pending) {
  PeerRequest& request = pending->request;
  const ClusterMapPtr map = map_();
  const NodeId node = request.slot ? map->OwnerOf(*request.slot) : request.node;
  if (request.slot && here_) {
    auto answer = here_(request.op, *request.slot, pending->header.sequence, pending->header.again);
    if (answer.has_value()) return Finish(pending, *std::move(answer));
  }
  const ClusterNode* const peer = map->Find(node);
  // The map does not say yet to whom the slot has gone, or that it has come here.
  if (request.slot && node == self_) {
    pending->node = node;
    return Retry(std::move(pending));
  }
  if (peer == nullptr || IsGone(peer->state) || peer->addresses.empty()) {
    // Nobody will ever answer in its name.
    return Finish(pending, TimedOut());
  }
  if (!pending->header.again) {
    MutexLock lock(&silent_mutex_);
    const auto known = peers_.find(node);
    pending->header.session = known == peers_.end() ? 0 : known->second.session;
  }
  pending->header.epoch = Raw(map->epoch());
  pending->header.incarnation = incarnation_;
  {
    MutexLock lock(&sequence_mutex_);
    pending->header.answered = *outstanding_.begin();
  }
  Call call;
  call.address = peer->addresses.front();
  call.node = node;
  call.method = static_cast<uint16_t>(request.op);
  call.header = Packer().Add(pending->header).Take();
  call.payload = request.payload.get();
  call.payload_bytes = request.payload_bytes;
  if (call.header.size() + request.arguments.size() <= kCallHeaderBytesMax) {
    call.header += request.arguments;
  } else {
    CFS_CHECK(request.payload_bytes == 0);
    pending->header.in_payload = true;
    call.header = Packer().Add(pending->header).Take();
    call.payload = request.arguments.data();
    call.payload_bytes = request.arguments.size();
  }
  if (request.result_bytes_max > 0) {
    pending->result.resize(request.result_bytes_max);
    call.answer = pending->result.data();
    call.answer_bytes = pending->result.size();
  } else {
    call.answer = request.answer;
    call.answer_bytes = request.answer_bytes;
  }
  if (!request.waits && !MayTakeLong(request.op)) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        GiveUp(node, pending->began) - Clock::now());
    call.deadline = WallNow() + absl::Milliseconds(std::max(left, kShortestTry).count());
  }
  pending->node = node;
  pending->sent = Clock::now();
  call.done = [this, pending](CallResult result) { OnResult(pending, result); };
  bool stopping;
  {
    MutexLock lock(&timer_mutex_);
    stopping = stopping_;
    if (!stopping) ++sending_;
  }
  if (stopping) return Finish(pending, TimedOut());
  transport_->Start(std::move(call));
  MutexLock lock(&timer_mutex_);
  if (--sending_ == 0) sent_.SignalAll();
}

void PeerClient::OnResult(std::shared_ptr<Pending> pending, const CallResult& result) {
  if (!result.status.ok()) {
    pending->header.again |= result.maybe_executed && !Planted("again-not-said");
    if ((pending->request.waits || MayTakeLong(pending->request.op)) && result.maybe_executed &&
        Clock::now() - pending->sent > kThere) {
      pending->interval = kFirstRetry;
      pending->began = Clock::now();
    }
    {
      MutexLock lock(&silent_mutex_);
      silent_since_.try_emplace(pending->node, pending->sent);
    }
    if (absl::IsDeadlineExceeded(result.status)) return Finish(pending, TimedOut());
    return Retry(std::move(pending));
  }
  Unpacker in(result.header);
  PeerAnswerHeader header;
  if (!in.Take(&header)) return Finish(pending, PosixError(EIO, "malformed answer"));
  bool forgotten = false;
  {
    MutexLock lock(&silent_mutex_);
    silent_since_.erase(pending->node);
    if (header.session != 0) {
      Peer& peer = peers_[pending->node];
      if (header.session != peer.session && header.session != peer.previous) {
        forgotten = peer.session != 0;
        peer.previous = std::exchange(peer.session, header.session);
      }
      if (header.session == peer.session) peer.storage = header.storage;
    }
  }
  if (forgotten && forgotten_) forgotten_(pending->node);
  switch (header.error) {
    case kPeerNotServing:
      return Retry(std::move(pending));
    case kPeerBusy:
      // It is there, and at it.
      pending->began = Clock::now();
      return Retry(std::move(pending));
    case kPeerNotOwner:
    case kPeerLocked:
    case kPeerUnknownClient:
      return Retry(std::move(pending));
    case kPeerUnknownHandle:
      return Finish(pending, absl::FailedPreconditionError("unknown handle"));
    case kPeerForgotten:
      return Finish(pending, TimedOut());
    case kPeerStale:
      return Finish(pending, PosixError(EIO, "stale request"));
    case 0:
      break;
    case ENOENT:
      return Finish(pending, NotFound());
    default:
      return Finish(pending,
                    PosixError(header.error < 4096 ? static_cast<int>(header.error) : EIO));
  }
  PeerAnswer answer;
  if (header.in_payload) {
    if (result.payload_bytes > pending->result.size()) {
      return Finish(pending, PosixError(EIO, "malformed answer"));
    }
    pending->result.resize(result.payload_bytes);
    answer.result = std::move(pending->result);
  } else {
    answer.result = std::string(in.rest());
    answer.payload_bytes = result.payload_bytes;
  }
  Finish(pending, std::move(answer));
}

void PeerClient::Retry(std::shared_ptr<Pending> pending) {
  const Clock::time_point now = Clock::now();
  if (MayGiveUp(*pending, now)) return Finish(pending, TimedOut());
  retries_.fetch_add(1, std::memory_order_relaxed);
  const Clock::time_point when = now + About(pending->interval);
  pending->interval = std::min(pending->interval * 2, kLongestRetry);
  RunAt(when, [this, pending = std::move(pending)](bool stopped) {
    if (stopped) return Finish(pending, TimedOut());
    Send(pending);
  });
}

void PeerClient::Later(Clock::time_point since, Task task) {
  const Clock::time_point now = Clock::now();
  const auto pause = std::clamp<Clock::duration>((now - since) / 4, kFirstRetry, kLongestPause);
  RunAt(now + About(std::chrono::duration_cast<std::chrono::microseconds>(pause)),
        std::move(task));
}

void PeerClient::RunAt(Clock::time_point when, Task task) {
  {
    MutexLock lock(&timer_mutex_);
    if (!stopping_) {
      timed_.push({when, std::make_shared<Task>(std::move(task))});
      timer_wake_.Signal();
      return;
    }
  }
  task(/*stopped=*/true);
}

uint64_t PeerClient::StorageOf(NodeId node) {
  MutexLock lock(&silent_mutex_);
  const auto known = peers_.find(node);
  return known == peers_.end() ? 0 : known->second.storage;
}

bool PeerClient::MayGiveUp(const Pending& pending, Clock::time_point now) {
  if (pending.request.persistent) {
    MutexLock lock(&silent_mutex_);
    const auto known = peers_.find(pending.node);
    return known == peers_.end() || known->second.session != pending.header.session;
  }
  return now + pending.interval >= GiveUp(pending.node, pending.began);
}

PeerClient::Clock::time_point PeerClient::GiveUp(NodeId node, Clock::time_point began) {
  MutexLock lock(&silent_mutex_);
  const auto it = silent_since_.find(node);
  return time_out_ + (it == silent_since_.end() ? began : std::min(began, it->second));
}

void PeerClient::Finish(const std::shared_ptr<Pending>& pending,
                        absl::StatusOr<PeerAnswer> answer) {
  {
    MutexLock lock(&sequence_mutex_);
    outstanding_.erase(pending->header.sequence);
  }
  auto done = std::move(pending->request.done);
  done(std::move(answer));
}

void PeerClient::RunTimer() {
  NameThread("cfs-peer-retry");
  for (;;) {
    std::vector<std::shared_ptr<Task>> due;
    bool stopping;
    {
      MutexLock lock(&timer_mutex_);
      if (!stopping_ && timed_.empty()) timer_wake_.Wait(&timer_mutex_);
      if (!stopping_ && !timed_.empty()) {
        const auto left = timed_.top().when - Clock::now();
        if (left > Clock::duration::zero()) timer_wake_.WaitFor(&timer_mutex_, left);
      }
      stopping = stopping_;
      while (!timed_.empty() && (stopping || timed_.top().when <= Clock::now())) {
        due.push_back(timed_.top().task);
        timed_.pop();
      }
    }
    for (const std::shared_ptr<Task>& task : due) (*task)(stopping);
    if (stopping) return;
  }
}

}  // namespace cfs
