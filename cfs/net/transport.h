// Calls between nodes: a request with a header and a payload, one answer with a
// header and a payload.
//
// Guarantees: no byte from a peer reaches a handler before both ends have
// proved that they know the token's secret. Each call ends exactly once. A
// payload goes from the network straight to where its receiver wants it; one of
// more than 4 KiB is checked before anybody is told of it.
//
// Nothing is tried again here; a failed call says whether the peer may have
// executed it. A connection is made by the first call to an address, and again
// by the first one after it was lost. The peer answers on it; its own calls
// make their own. Connections are closed when nobody has used them for a while,
// or when there are too many.
//
// Thread-safety: thread-safe. Callbacks run on the network threads, each of
// which serves many peers: they must not block, nor take a lock that somebody
// holds for long. They may make calls and answer requests.
#ifndef CFS_NET_TRANSPORT_H_
#define CFS_NET_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/base/check.h"
#include "cfs/base/types.h"
#include "cfs/net/handshake.h"
#include "cfs/net/payload.h"
#include "cfs/net/peer_stats.h"
#include "cfs/net/token.h"

namespace cfs {

// How a call ended.
struct CallResult {
  // OK: the peer's handler has answered. Otherwise UNAVAILABLE: the peer cannot
  // be reached, was lost, or is not who it should be; DEADLINE_EXCEEDED;
  // UNIMPLEMENTED: it knows no such method; RESOURCE_EXHAUSTED: it or we have
  // too many calls; OUT_OF_RANGE: the answer is larger than `answer`; DATA_LOSS:
  // the payload of the call or of the answer was damaged on its way.
  absl::Status status;
  // Of a failed call: its handler may have run, run now, or yet run.
  bool maybe_executed = false;
  // The answer; `header` only during the callback.
  absl::string_view header;
  size_t payload_bytes = 0;
};

struct Call {
  // Numeric "HOST:PORT".
  std::string address;
  // Who has to answer there; kUnknownNode: anyone of the cluster.
  NodeId node = kUnknownNode;
  uint16_t method = 0;
  // At most kCallHeaderBytesMax.
  std::string header;
  // At most kCallPayloadBytesMax. Both buffers are the caller's, and in use
  // until `done` is called; the payload does not change until then.
  const char* payload = nullptr;
  size_t payload_bytes = 0;
  char* answer = nullptr;
  size_t answer_bytes = 0;
  // Kept to some 50 ms; or, while the call's payload or the answer's is being
  // transferred, until that ends: at most the heartbeat's time-out later.
  absl::Time deadline = absl::InfiniteFuture();
  absl::AnyInvocable<void(CallResult)> done;
};

struct Request {
  NodeId peer;
  std::string header;
  Payload payload;
};

// Owns a request until it is answered. Move-only; each request is answered
// exactly once, from any thread, also when its connection or the Transport is
// gone.
class Responder {
 public:
  using Send = absl::AnyInvocable<void(std::string header, Payload payload)>;

  explicit Responder(Send send) : send_(std::move(send)) {}
  Responder(Responder&& other) noexcept : send_(std::exchange(other.send_, nullptr)) {}
  Responder& operator=(Responder&&) = delete;
  ~Responder() { CFS_CHECK(!send_); }

  // REQUIRES: `header` and `payload` are within the bounds of a Call. The
  // payload does not change until it is dropped: when it has been sent, or cannot
  // be any more.
  void Reply(std::string header, Payload payload = {}) {
    CFS_CHECK(send_);
    std::exchange(send_, nullptr)(std::move(header), std::move(payload));
  }

 private:
  Send send_;
};

// What serves one method.
struct Method {
  // Says where the payload of a request whose header has come is to go; one
  // that is smaller than `bytes` refuses it. Without this: to the heap.
  std::function<Payload(NodeId peer, absl::string_view header, size_t bytes)> buffer;
  // Both may run on several threads at once.
  std::function<void(Request, Responder)> handle;
};

struct TransportOptions {
  ClusterId cluster;
  Secret secret;
  NodeId node = kUnknownNode;
  // "HOST:PORT" to be reached at; port 0 takes a free one. UCX has more ports,
  // which the system chooses.
  std::string listen;
  absl::flat_hash_map<uint16_t, Method> methods;
  int threads = 2;
  // Payloads from this size on are announced, and fetched by the receiver.
  size_t rdma_threshold = 32 << 10;
  // As UCX_TLS. Two kinds of shared memory are one too many, and that of System
  // V outlives a process that is killed while it sets it up. Tests of a network
  // want "tcp", for nodes of one machine would not use it.
  std::string transports = "^sysv";
  // A peer is asked for a sign of life after this much silence,
  absl::Duration heartbeat_interval = absl::Seconds(1);
  // and given up after this much. TCP takes 3 s to get over a cut of 1.5 s.
  absl::Duration heartbeat_timeout = absl::Seconds(6);
  absl::Duration connect_timeout = absl::Seconds(5);
  // Unused connections are closed after this.
  absl::Duration idle_timeout = absl::Minutes(5);
};

class Transport {
 public:
  // Listens and starts the threads. A process forks before this, if ever, and
  // sets its handlers of SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGHUP in main():
  // the library takes them when it is loaded.
  static absl::StatusOr<std::unique_ptr<Transport>> Start(TransportOptions options);
  // Ends all calls as UNAVAILABLE and waits for the callbacks under way. No
  // call may be made any more.
  ~Transport();

  // "HOST:PORT" where it listens.
  const std::string& address() const { return address_; }

  // From now on this node is `node`: when the cluster has numbered it. Closes
  // the connections that were made under another number.
  void SetNode(NodeId node);

  // `call.done` is called exactly once, on a network thread.
  void Start(Call call);

  // Of each address that was called, but some of those without a connection
  // when they are too many. Blocks nobody.
  std::vector<PeerStats> Stats() const;

 private:
  class Thread;
  struct Shared;

  explicit Transport(std::string address) : address_(std::move(address)) {}

  const std::string address_;
  std::shared_ptr<Shared> shared_;
  std::vector<std::shared_ptr<Thread>> threads_;
};

}  // namespace cfs

#endif  // CFS_NET_TRANSPORT_H_
