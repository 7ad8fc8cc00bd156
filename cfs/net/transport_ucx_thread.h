// One network thread of a Transport: see docs/adr/0011-transport.md.
//
// A connection begins as an ordinary TCP connection to the address that the
// peer listens on, on which the handshake runs and nothing else. Only then does
// the initiator connect, through UCX, to a port that the handshake named; the
// acceptor lets in whom it has just met and nobody else. UCX parses what comes
// to it without checks, so that it must not be the first to look.
#ifndef CFS_NET_TRANSPORT_UCX_THREAD_H_
#define CFS_NET_TRANSPORT_UCX_THREAD_H_

#include <ucp/api/ucp.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/acceptor.h"
#include "cfs/net/address.h"
#include "cfs/net/greeter.h"
#include "cfs/net/instant.h"
#include "cfs/net/linger.h"
#include "cfs/net/peer_stats.h"
#include "cfs/net/task_queue.h"
#include "cfs/net/transport.h"
#include "cfs/net/wire_format.h"

namespace cfs {

// What all threads of a Transport see.
struct Transport::Shared {
  explicit Shared(TransportOptions o) : options(std::move(o)), node(options.node) {}
  ~Shared() {
    if (context != nullptr) ucp_cleanup(context);
  }

  // Not `options.node`, which is what it was at the start.
  const TransportOptions options;
  std::atomic<NodeId> node;
  ucp_context_h context = nullptr;
  LineLimit refusals, damages;
};

// A worker, its listener and its connections, and the thread that owns them. It
// shares nothing with other threads but its queue.
class Transport::Thread : public std::enable_shared_from_this<Transport::Thread> {
 public:
  explicit Thread(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  // Makes everything that can fail.
  absl::Status Prepare(const SocketAddress& listen);
  // `listener`, if any, is this thread's to accept from, for all `threads`.
  void Run(UniqueFd listener, std::vector<std::shared_ptr<Thread>> threads);
  // Ends all calls and joins; nothing can be submitted any more. Does nothing
  // unless it was run.
  void Stop();
  ~Thread() { Destroy(); }

  // Runs `task` on the thread; false, with the task dropped, when that has
  // stopped. Thread-safe.
  bool Submit(TaskQueue::Task task) { return queue_.Submit(std::move(task)); }
  void StartCall(Call call, Instant started, uint32_t payload_checksum);
  // Closes the connections that this node has made.
  void CloseDialed(absl::string_view why);
  // Thread-safe.
  void AddStats(std::vector<PeerStats>* stats) const { peers_.AddStats(stats); }

 private:
  static constexpr unsigned kMessageId = 0;

  struct Connection {
    Thread* thread;
    const bool dialed;
    // "" and null when the peer dialed.
    std::string address;
    std::shared_ptr<PeerCounters> counters;
    SocketAddress peer;
    NodeId node = kUnknownNode;
    uint64_t session = 0;
    // Of a peer that dialed, and has not come through UCX yet.
    uint64_t client_id = 0;
    // The number of its handshake, also when that has ended.
    uint64_t greeting = 0;
    ucp_ep_h ep = nullptr;
    bool up = false;
    bool broken = false;
    bool closed = false;
    // What UCX is doing with it.
    int operations = 0;
    size_t calls = 0;
    // Numbers of calls that wait until it is up.
    std::vector<uint64_t> waiting;
    Instant heard, sent, pinged, used;
  };

  struct Outstanding {
    Call call;
    Connection* connection = nullptr;
    uint32_t payload_checksum = 0;
    Instant started, deadline;
    // Null until it has a connection.
    std::shared_ptr<PeerCounters> counters;
    // UCX uses the payload; the answer's buffer.
    bool sending = false, receiving = false;
    bool sent = false;
    // The outcome is known; `done` is called when UCX has let go.
    bool ended = false;
    CallResult result;
    std::string header;
  };

  // A send or a receive that UCX has not finished.
  struct Operation {
    enum class Kind { kSend, kReceiveRequest, kReceiveAnswer };
    Kind kind;
    Connection* connection;
    uint64_t number;  // Of the call.
    uint16_t method = 0;
    std::string head;  // UCX wants it to the end.
    Payload payload;
    // What is received, and what its checksum has to be.
    absl::string_view bytes = {};
    uint32_t checksum = 0;
  };

  void Loop();
  void Wait();
  // Looks for that long who is at the listener and in handshakes.
  void Poll(int milliseconds);
  void Tick();
  void ExpireCalls();
  void TendConnection(Connection* connection);
  void Destroy();
  void Drain();

  Handshake::Local LocalAs(uint64_t attachment) const;
  void Expect(const Handshake& handshake, const SocketAddress& peer);
  void Admit(ucp_conn_request_h request);
  void Dialed(Connection* connection, const Handshake& handshake);
  bool MakeEndpoint(Connection* connection, ucp_ep_params_t* params);
  void OnPong(Connection* connection);

  Connection* Dial(const std::string& address, absl::Status* status);
  Connection* NewConnection(bool dialed, const SocketAddress& peer);
  void MakeRoom();
  // At the end of the turn: UCX may be in the middle of something.
  void Break(Connection* connection, absl::string_view why);
  void Close(Connection* connection, absl::string_view why);
  void Forget(Connection* connection);

  void Send(Connection* connection, const WireHeader& header, absl::string_view text,
            Payload payload);
  void SendCall(Outstanding* call, uint64_t number);
  ucs_status_t OnMessage(absl::string_view head, void* data, size_t bytes, bool announced);
  void OnRequest(Connection* connection, const WireHeader& header, absl::string_view text,
                 void* data, bool announced);
  void OnReply(const WireHeader& header, absl::string_view text, void* data, bool announced);
  void Receive(std::unique_ptr<Operation> operation, char* buffer, size_t bytes, void* data,
               bool announced);
  void Handle(Connection* connection, uint64_t number, uint16_t method, std::string header,
              Payload payload);
  void Refuse(Connection* connection, uint64_t number, ReplyCode code);
  bool IsWhole(const Operation& operation);
  void Complete(std::unique_ptr<Operation> operation, ucs_status_t status);
  void End(uint64_t number, absl::Status status, bool maybe_executed);
  void Finish(uint64_t number);

  const std::shared_ptr<Shared> shared_;
  const TransportOptions& options_ = shared_->options;
  std::thread thread_;
  std::vector<std::shared_ptr<Thread>> threads_;
  size_t next_thread_ = 0;

  TaskQueue queue_;
  PeerTable peers_;

  // All below belongs to the thread.
  ucp_worker_h worker_ = nullptr;
  ucp_listener_h ucx_listener_ = nullptr;
  uint64_t client_id_ = 0;
  uint16_t ucx_port_ = 0;
  UniqueFd epoll_;
  Acceptor acceptor_;
  Greeter greeter_;
  bool stopping_ = false;
  Linger linger_;
  Instant now_ = SteadyClock::now(), last_tick_ = now_;

  absl::flat_hash_map<Connection*, std::unique_ptr<Connection>> connections_;
  absl::flat_hash_map<std::string, Connection*> by_address_;
  // By session. A message says by its type which of them it is for, so that a
  // node can call itself.
  absl::flat_hash_map<uint64_t, Connection*> dialed_, served_;
  // By client id.
  absl::flat_hash_map<uint64_t, Connection*> expected_;
  std::vector<std::pair<Connection*, std::string>> broken_;
  std::vector<ucp_conn_request_h> arrivals_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Outstanding>> calls_;
  uint64_t next_call_ = 1;
};

}  // namespace cfs

#endif  // CFS_NET_TRANSPORT_UCX_THREAD_H_
