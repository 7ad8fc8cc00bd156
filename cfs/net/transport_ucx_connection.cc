// Connections, from the handshake to the last callback of UCX.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/net/transport_ucx_context.h"
#include "cfs/net/transport_ucx_thread.h"

namespace cfs {

// What a handshake says of this node.
Handshake::Local Transport::Thread::LocalAs(uint64_t attachment) const {
  return {.cluster = options_.cluster,
          .secret = options_.secret,
          // Relaxed: nothing else is published with it.
          .node = shared_->node.load(std::memory_order_relaxed),
          .attachment = attachment};
}

Transport::Thread::Connection* Transport::Thread::Dial(const std::string& address,
                                                       absl::Status* status) {
  const auto peer = ParseNumericAddress(address);
  if (!peer.ok()) {
    *status = peer.status();
    return nullptr;
  }
  Connection* const connection = NewConnection(true, *peer);
  connection->address = address;
  connection->counters = peers_.For(address);
  connection->counters->Connecting();
  by_address_[address] = connection;
  UniqueFd fd(socket(peer->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid() || (connect(fd.get(), peer->get(), peer->length) != 0 && errno != EINPROGRESS)) {
    Break(connection, strerror(errno));
    return connection;
  }
  connection->greeting = greeter_.Dial(
      std::move(fd), *peer, LocalAs(client_id_),
      [this, connection](const Handshake* handshake, absl::string_view why) {
        handshake != nullptr ? Dialed(connection, *handshake) : Break(connection, why);
      });
  return connection;
}

// The peer has proved itself: goes on through UCX.
void Transport::Thread::Dialed(Connection* connection, const Handshake& handshake) {
  connection->node = handshake.peer();
  connection->session = handshake.session();
  SocketAddress address = connection->peer;
  address.set_port(static_cast<uint16_t>(handshake.peer_attachment()));
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID;
  params.sockaddr = {address.get(), address.length};
  if (!MakeEndpoint(connection, &params)) return;
  connection->heard = connection->pinged = connection->used = now_;
  dialed_[connection->session] = connection;
  // UCX still chooses among its transports. What it has queued by then it may
  // send in a form that the chosen one has no room for (1.13): a ping goes
  // first, and the calls when it is answered.
  Send(connection, {.session = connection->session, .type = MessageType::kPing}, "", {});
}

// A peer has proved itself: waits for it to come through UCX.
void Transport::Thread::Expect(const Handshake& handshake, const SocketAddress& peer) {
  Connection* const connection = NewConnection(false, peer);
  connection->node = handshake.peer();
  connection->session = handshake.session();
  connection->client_id = handshake.peer_attachment();
  // One that has not come is not coming any more.
  Connection*& expected = expected_[connection->client_id];
  if (expected != nullptr) Break(expected, "dialed again");
  expected = connection;
  served_[connection->session] = connection;
}

void Transport::Thread::Admit(ucp_conn_request_h request) {
  Connection* connection = nullptr;
  ucp_conn_request_attr_t attr = {};
  attr.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID;
  // While nobody is expected, what came is not even looked at.
  if (!expected_.empty() && ucp_conn_request_query(request, &attr) == UCS_OK) {
    const auto it = expected_.find(attr.client_id);
    if (it != expected_.end() && !it->second->broken) {
      connection = it->second;
      expected_.erase(it);
    }
  }
  if (connection == nullptr) {
    ucp_listener_reject(ucx_listener_, request);
    shared_->refusals.Log(LogLevel::kWarn,
                          "refused a connection reason=\"came to UCX without a handshake\"");
    return;
  }
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  if (!MakeEndpoint(connection, &params)) return;
  connection->up = true;
  connection->heard = now_;
}

// Adds what all endpoints have. False: the connection is broken.
bool Transport::Thread::MakeEndpoint(Connection* connection, ucp_ep_params_t* params) {
  params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params->err_handler.arg = connection;
  params->err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
    auto* const failed = static_cast<Connection*>(arg);
    failed->thread->Break(failed, ucs_status_string(status));
  };
  const ucs_status_t status = ucp_ep_create(worker_, params, &connection->ep);
  if (status == UCS_OK) return true;
  connection->ep = nullptr;
  Break(connection, ucs_status_string(status));
  return false;
}

void Transport::Thread::OnPong(Connection* connection) {
  if (connection->up) return;
  connection->up = true;
  std::string transports = TransportsOf(connection->ep);
  if (transports.empty()) transports = options_.transports;
  connection->counters->Up(connection->node, std::move(transports));
  for (const uint64_t number : std::exchange(connection->waiting, {})) {
    const auto it = calls_.find(number);
    if (it != calls_.end()) SendCall(it->second.get(), number);
  }
}

Transport::Thread::Connection* Transport::Thread::NewConnection(bool dialed,
                                                                const SocketAddress& peer) {
  MakeRoom();
  auto owner = std::unique_ptr<Connection>(new Connection{.thread = this, .dialed = dialed});
  Connection* const connection = owner.get();
  connection->peer = peer;
  connection->heard = connection->sent = connection->pinged = connection->used = now_;
  connections_.emplace(connection, std::move(owner));
  return connection;
}

// Closes the connection that was idle longest when there are too many.
void Transport::Thread::MakeRoom() {
  if (connections_.size() < kConnectionsMax) return;
  Connection* oldest = nullptr;
  for (const auto& [connection, owner] : connections_) {
    if (connection->up && !connection->broken && connection->calls == 0 &&
        (oldest == nullptr || connection->used < oldest->used)) {
      oldest = connection;
    }
  }
  if (oldest != nullptr) Break(oldest, "");
}

void Transport::Thread::Break(Connection* connection, absl::string_view why) {
  if (connection->broken) return;
  connection->broken = true;
  broken_.emplace_back(connection, std::string(why));
}

void Transport::Thread::Close(Connection* connection, absl::string_view why) {
  // What ends below must not take it along.
  ++connection->operations;
  const auto erase = [connection](auto* map, const auto& key) {
    const auto it = map->find(key);
    if (it != map->end() && it->second == connection) map->erase(it);
  };
  const auto current = by_address_.find(connection->address);
  if (current != by_address_.end() && current->second == connection) {
    connection->counters->Closed(why.empty() ? PeerStats::State::kIdle : PeerStats::State::kLost);
    by_address_.erase(current);
  }
  erase(connection->dialed ? &dialed_ : &served_, connection->session);
  erase(&expected_, connection->client_id);
  greeter_.Drop(connection->greeting);
  if (!why.empty()) {
    LogInfo("connection closed peer=", connection->peer.ToString(),
            " node=", static_cast<int32_t>(Raw(connection->node)), " reason=\"", why, "\"");
  }
  if (connection->ep == nullptr) {
    connection->closed = true;
  } else {
    ucp_request_param_t param = {};
    param.op_attr_mask =
        UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
    // Not waiting for what a lost peer will not acknowledge.
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    param.user_data = connection;
    param.cb.send = [](void* request, ucs_status_t, void* arg) {
      auto* const closed = static_cast<Connection*>(arg);
      ucp_request_free(request);
      closed->closed = true;
      closed->thread->Forget(closed);
    };
    const ucs_status_ptr_t request = ucp_ep_close_nbx(connection->ep, &param);
    if (!UCS_PTR_IS_PTR(request)) connection->closed = true;
  }
  std::vector<uint64_t> numbers;
  for (const auto& [number, call] : calls_) {
    if (call->connection == connection) numbers.push_back(number);
  }
  for (const uint64_t number : numbers) {
    End(number, absl::UnavailableError(absl::StrCat(connection->peer.ToString(), " ", why)),
        calls_[number]->sent);
  }
  --connection->operations;
  Forget(connection);
}

void Transport::Thread::Forget(Connection* connection) {
  // What a peer has asked for need not be answered any more.
  if (connection->closed && connection->operations == 0 &&
      (connection->calls == 0 || !connection->dialed)) {
    connections_.erase(connection);
  }
}

void Transport::Thread::CloseDialed(absl::string_view why) {
  for (const auto& [connection, owner] : connections_) {
    if (connection->dialed) Break(connection, why);
  }
}

}  // namespace cfs
