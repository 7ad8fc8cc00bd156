#include "tests/simulator/network.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <vector>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread.h"

namespace cfs {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

// As TransportOptions have it.
constexpr nanoseconds kSilence = seconds(6);
constexpr nanoseconds kConnectTime = seconds(5);
constexpr nanoseconds kReset = milliseconds(1);

}  // namespace

struct Network::Message {
  uint16_t method;
  NodeId node;  // Who has to answer.
  std::string header, payload;
};

// One Transport: calls that wait for an answer, and what its threads have to do.
class Network::Endpoint {
 public:
  explicit Endpoint(TransportOptions given) : options(std::move(given)) {}

  void At(SteadyClock::time_point when, std::function<void()> task) {
    tasks_.emplace(std::make_pair(when, next_task_++), std::move(task));
    simulation->Wake(this, /*all=*/true);
  }
  void Run() {
    for (;;) {
      simulation->Yield();
      if (stopping) return;
      if (!tasks_.empty() && tasks_.begin()->first.first <= SteadyClock::now()) {
        const std::function<void()> task = std::move(tasks_.extract(tasks_.begin()).mapped());
        task();
        continue;
      }
      const auto end = tasks_.empty() ? Simulation::Instant::max() : tasks_.begin()->first.first;
      simulation->Sleep(this, end);
    }
  }
  void End(uint64_t number, CallResult result) {
    auto call = calls.extract(number);
    if (!call.empty()) call.mapped().done(std::move(result));
  }

  const TransportOptions options;
  NodeId node = options.node;
  ProcessId process = kWorld;
  std::map<uint64_t, Call> calls;
  bool stopping = false;
  std::vector<Thread> threads;

 private:
  uint64_t next_task_ = 0;
  std::map<std::pair<SteadyClock::time_point, uint64_t>, std::function<void()>> tasks_;
};

Network::Nanoseconds Network::Delay() {
  Random& random = scheduler_->random();
  if (random.PerMille(weather_.late)) {
    ++counts_.late;
    return milliseconds(random.Below(random.PerMille(500) ? 200 : 4000));
  }
  return microseconds(20 + random.Below(500));
}

Network::Nanoseconds Network::Detection() {
  Random& random = scheduler_->random();
  if (random.PerMille(700)) return milliseconds(1 + random.Below(50));
  return milliseconds(random.Below(static_cast<uint64_t>(kSilence / milliseconds(1))));
}

std::shared_ptr<Network::Endpoint> Network::Add(TransportOptions options) {
  const std::string address = options.listen;
  if (endpoints_.contains(address)) return nullptr;
  const auto endpoint = std::make_shared<Endpoint>(std::move(options));
  endpoint->process = scheduler_->process();
  endpoints_[address] = endpoint;
  for (int i = 0; i < endpoint->options.threads; ++i) {
    endpoint->threads.emplace_back([endpoint] { endpoint->Run(); });
  }
  return endpoint;
}

void Network::Remove(const std::shared_ptr<Endpoint>& endpoint) {
  Kill(endpoint->process, /*silently=*/false);
  endpoint->stopping = true;
  simulation->Wake(endpoint.get(), /*all=*/true);
  for (Thread& thread : endpoint->threads) thread.join();
  while (!endpoint->calls.empty()) {
    endpoint->End(endpoint->calls.begin()->first,
                  {.status = absl::UnavailableError("shutting down"), .maybe_executed = true});
  }
}

void Network::Kill(ProcessId process, bool silently) {
  std::string address;
  for (const auto& [at, endpoint] : endpoints_) {
    if (endpoint->process == process) address = at;
  }
  if (address.empty()) return;
  endpoints_.erase(address);
  for (const auto& [at, other] : endpoints_) {
    for (const auto& [number, call] : other->calls) {
      if (call.address != address) continue;
      FailLater(other, number, silently ? kSilence : Delay(), /*maybe_executed=*/true);
    }
  }
}

void Network::Cut(const std::string& from, const std::string& to) {
  cuts_.emplace(from, to);
  // Heartbeats go both ways.
  for (const auto& [asker, asked] : {std::make_pair(from, to), std::make_pair(to, from)}) {
    const auto endpoint = Find(asker);
    if (endpoint == nullptr) continue;
    for (const auto& [number, call] : endpoint->calls) {
      if (call.address != asked) continue;
      endpoint->At(SteadyClock::now() + kSilence,
                   [this, endpoint, number = number, from, to] {
                     if (!cuts_.contains({from, to})) return;
                     ++counts_.cut;
                     endpoint->End(number, {.status = absl::UnavailableError("cut off"),
                                            .maybe_executed = true});
                   });
    }
  }
}

bool Network::IsCut(const Endpoint& from, const Endpoint& to) const {
  return cuts_.contains({from.options.listen, to.options.listen});
}

std::shared_ptr<Network::Endpoint> Network::Find(const std::string& address) const {
  const auto it = endpoints_.find(address);
  return it == endpoints_.end() ? nullptr : it->second;
}

void Network::FailLater(const std::shared_ptr<Endpoint>& from, uint64_t number, Nanoseconds after,
                        bool maybe_executed) {
  from->At(SteadyClock::now() + after, [endpoint = from.get(), number, maybe_executed] {
    endpoint->End(number, {.status = absl::UnavailableError("the connection is lost"),
                           .maybe_executed = maybe_executed});
  });
}

void Network::Start(const std::shared_ptr<Endpoint>& from, Call call) {
  CFS_CHECK(call.header.size() <= kCallHeaderBytesMax);
  CFS_CHECK(call.payload_bytes <= kCallPayloadBytesMax);
  simulation->Yield();
  if (from->stopping) {
    return call.done({.status = absl::UnavailableError("shutting down")});
  }
  ++counts_.calls;
  const uint64_t number = next_call_++;
  const SteadyClock::time_point now = SteadyClock::now();
  if (call.deadline != absl::InfiniteFuture()) {
    from->At(now + std::max(nanoseconds(0), absl::ToChronoNanoseconds(call.deadline - WallNow())),
             [endpoint = from.get(), number] {
               endpoint->End(number, {.status = absl::DeadlineExceededError("too late"),
                                      .maybe_executed = true});
             });
  }
  const std::shared_ptr<Endpoint> to = Find(call.address);
  Message message{call.method, call.node, call.header,
                  std::string(call.payload == nullptr ? "" : call.payload, call.payload_bytes)};
  scheduler_->Trace("call ", number, " method ", absl::Hex(call.method), " to ", call.address,
                    to == nullptr ? ", where nobody is" : "");
  from->calls.emplace(number, std::move(call));
  if (to == nullptr) return FailLater(from, number, Delay() + kReset, /*maybe_executed=*/false);
  if (IsCut(*from, *to)) {
    ++counts_.cut;
    const bool connected = scheduler_->random().PerMille(500);
    return FailLater(from, number, connected ? kSilence : kConnectTime, connected);
  }
  if (scheduler_->random().PerMille(weather_.lost)) {
    ++counts_.lost;
    FailLater(from, number, Detection(), /*maybe_executed=*/true);
    // Lost for the sender, and perhaps not on its way.
    if (scheduler_->random().PerMille(500)) return;
    ++counts_.late;
    to->At(now + milliseconds(scheduler_->random().Below(6000)),
           [this, from, to, number, message = std::move(message)] {
             Deliver(from, to, number, message);
           });
    return;
  }
  to->At(now + Delay(), [this, from, to, number, message = std::move(message)] {
    Deliver(from, to, number, message);
  });
}

void Network::Deliver(const std::shared_ptr<Endpoint>& from, const std::shared_ptr<Endpoint>& to,
                      uint64_t number, Message message) {
  const auto fail = [&](absl::Status status) {
    from->At(SteadyClock::now() + Delay(), [endpoint = from.get(), number, status] {
      endpoint->End(number, {.status = status});
    });
  };
  scheduler_->Trace("call ", number, " arrives");
  if (message.node != kUnknownNode && message.node != to->node) {
    return fail(absl::UnavailableError("another node answers there"));
  }
  const auto method = to->options.methods.find(message.method);
  if (method == to->options.methods.end()) return fail(absl::UnimplementedError("no such method"));
  Payload payload = method->second.buffer
                        ? method->second.buffer(from->node, message.header, message.payload.size())
                        : Payload::Allocate(message.payload.size());
  if (payload.size() < message.payload.size()) return fail(absl::ResourceExhaustedError("refused"));
  if (!message.payload.empty()) {
    std::memcpy(payload.data(), message.payload.data(), message.payload.size());
  }
  Responder responder([this, from, to, number](std::string header, Payload answer) {
    Answer(from, to, number, std::move(header), std::move(answer));
  });
  method->second.handle({from->node, std::move(message.header), std::move(payload)},
                        std::move(responder));
}

void Network::Answer(const std::shared_ptr<Endpoint>& from, const std::shared_ptr<Endpoint>& to,
                     uint64_t number, std::string header, Payload payload) {
  if (!from->calls.contains(number)) return;
  if (IsCut(*to, *from)) {
    ++counts_.cut;
    return FailLater(from, number, kSilence, /*maybe_executed=*/true);
  }
  if (scheduler_->random().PerMille(weather_.lost)) {
    ++counts_.lost;
    return FailLater(from, number, Detection(), /*maybe_executed=*/true);
  }
  from->At(SteadyClock::now() + Delay(),
           [from, number, header = std::move(header),
            bytes = std::string(payload.data() == nullptr ? "" : payload.data(), payload.size())] {
             const auto it = from->calls.find(number);
             if (it == from->calls.end()) return;
             if (bytes.size() > it->second.answer_bytes) {
               return from->End(number, {.status = absl::OutOfRangeError("a long answer")});
             }
             if (!bytes.empty()) std::memcpy(it->second.answer, bytes.data(), bytes.size());
             from->End(number, {.status = absl::OkStatus(),
                                .header = header,
                                .payload_bytes = bytes.size()});
           });
}

// ------------------------------------------------------------------ Transport

struct Transport::Shared {
  std::shared_ptr<Network::Endpoint> endpoint;
};
class Transport::Thread {};

absl::StatusOr<std::unique_ptr<Transport>> Transport::Start(TransportOptions options) {
  auto transport = std::unique_ptr<Transport>(new Transport(options.listen));
  transport->shared_ = std::make_shared<Shared>();
  transport->shared_->endpoint = network->Add(std::move(options));
  if (transport->shared_->endpoint == nullptr) return PosixError(EADDRINUSE);
  return transport;
}

Transport::~Transport() {
  if (shared_->endpoint != nullptr) network->Remove(shared_->endpoint);
}

void Transport::SetNode(NodeId node) { shared_->endpoint->node = node; }

void Transport::Start(Call call) { network->Start(shared_->endpoint, std::move(call)); }

std::vector<PeerStats> Transport::Stats() const { return {}; }

}  // namespace cfs
