// Calls, and the messages that they are made of.
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/net/transport_ucx_thread.h"

namespace cfs {

void Transport::Thread::StartCall(Call call, Instant started, uint32_t payload_checksum) {
  const uint64_t number = next_call_++;
  const Instant deadline = After(now_, call.deadline - absl::Now());
  auto owner = std::unique_ptr<Outstanding>(new Outstanding{.call = std::move(call),
                                                            .payload_checksum = payload_checksum,
                                                            .started = started,
                                                            .deadline = deadline});
  Outstanding* const added = owner.get();
  const bool full = calls_.size() >= kCallsMax;
  calls_.emplace(number, std::move(owner));
  if (full) return End(number, absl::ResourceExhaustedError("too many calls"), false);
  const auto it = by_address_.find(added->call.address);
  Connection* connection = it == by_address_.end() ? nullptr : it->second;
  if (connection == nullptr || connection->broken) {
    absl::Status status;
    connection = Dial(added->call.address, &status);
    if (connection == nullptr) return End(number, status, false);
  }
  added->connection = connection;
  added->counters = connection->counters;
  added->counters->Called();
  ++connection->calls;
  if (connection->up) {
    SendCall(added, number);
  } else {
    connection->waiting.push_back(number);
  }
}

void Transport::Thread::SendCall(Outstanding* call, uint64_t number) {
  Connection* const connection = call->connection;
  if (call->call.node != kUnknownNode && call->call.node != connection->node) {
    const auto status = absl::UnavailableError(
        absl::StrCat("another node answers at ", call->call.address, ": ", Raw(connection->node)));
    return End(number, status, false);
  }
  connection->used = now_;
  call->sending = call->sent = true;
  Send(connection,
       {.session = connection->session,
        .request = number,
        .payload_bytes = static_cast<uint32_t>(call->call.payload_bytes),
        .method = call->call.method,
        .type = MessageType::kRequest,
        .payload_checksum = call->payload_checksum},
       call->call.header,
       Payload(const_cast<char*>(call->call.payload), call->call.payload_bytes, nullptr));
}

void Transport::Thread::Send(Connection* connection, const WireHeader& header,
                             absl::string_view text, Payload payload) {
  connection->sent = now_;
  ++connection->operations;
  auto operation = std::unique_ptr<Operation>(
      new Operation{.kind = Operation::Kind::kSend, .connection = connection, .number = 0});
  if (header.type == MessageType::kRequest) operation->number = header.request;
  operation->head.reserve(kWireHeaderBytes + text.size());
  WireHeader sized = header;
  sized.header_bytes = static_cast<uint16_t>(text.size());
  AppendWireHeader(&operation->head, sized);
  operation->head.append(text.data(), text.size());
  operation->payload = std::move(payload);
  if (connection->broken) return Complete(std::move(operation), UCS_ERR_CANCELED);

  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  param.flags = operation->payload.size() < options_.rdma_threshold ? UCP_AM_SEND_FLAG_EAGER
                                                                    : UCP_AM_SEND_FLAG_RNDV;
  param.user_data = operation.get();
  param.cb.send = [](void* request, ucs_status_t status, void* arg) {
    ucp_request_free(request);
    auto* const done = static_cast<Operation*>(arg);
    done->connection->thread->Complete(std::unique_ptr<Operation>(done), status);
  };
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(connection->ep, kMessageId, operation->head.data(), operation->head.size(),
                      operation->payload.data(), operation->payload.size(), &param);
  if (UCS_PTR_IS_PTR(request)) {
    operation.release();  // The callback's.
  } else {
    Complete(std::move(operation), UCS_PTR_STATUS(request));
  }
}

ucs_status_t Transport::Thread::OnMessage(absl::string_view head, void* data, size_t bytes,
                                          bool announced) {
  WireHeader header;
  if (!ConsumeWireHeader(&head, bytes, &header)) {
    shared_->refusals.Log(LogLevel::kWarn, "dropped a message that is none of ours");
    return UCS_OK;
  }
  const bool to_server = header.type == MessageType::kRequest || header.type == MessageType::kPing;
  const auto& sessions = to_server ? served_ : dialed_;
  const auto it = sessions.find(header.session);
  // Left over from a connection that was closed, or of nobody whom we know.
  if (it == sessions.end() || it->second->ep == nullptr || it->second->broken) return UCS_OK;
  Connection* const connection = it->second;
  connection->heard = now_;
  switch (header.type) {
    case MessageType::kPing:
      Send(connection, {.session = header.session, .type = MessageType::kPong}, "", {});
      break;
    case MessageType::kPong:
      OnPong(connection);
      break;
    case MessageType::kRequest:
      connection->used = now_;
      OnRequest(connection, header, head, data, announced);
      break;
    case MessageType::kReply:
      OnReply(header, head, data, announced);
      break;
  }
  // UCX frees the data, unless a receive has begun.
  return UCS_OK;
}

void Transport::Thread::OnRequest(Connection* connection, const WireHeader& header,
                                  absl::string_view text, void* data, bool announced) {
  const auto method = options_.methods.find(header.method);
  if (method == options_.methods.end()) {
    return Refuse(connection, header.request, ReplyCode::kUnknownMethod);
  }
  if (connection->calls >= kPeerRequestsMax)
    return Refuse(connection, header.request, ReplyCode::kNoRoom);
  Payload payload;
  if (header.payload_bytes > 0) {
    payload = method->second.buffer
                  ? method->second.buffer(connection->node, text, header.payload_bytes)
                  : Payload::Allocate(header.payload_bytes);
    if (payload.size() < header.payload_bytes) {
      return Refuse(connection, header.request, ReplyCode::kNoRoom);
    }
  }
  char* const buffer = payload.data();
  Receive(std::unique_ptr<Operation>(new Operation{.kind = Operation::Kind::kReceiveRequest,
                                                   .connection = connection,
                                                   .number = header.request,
                                                   .method = header.method,
                                                   .head = std::string(text),
                                                   .payload = std::move(payload),
                                                   .checksum = header.payload_checksum}),
          buffer, header.payload_bytes, data, announced);
}

void Transport::Thread::Refuse(Connection* connection, uint64_t number, ReplyCode code) {
  Send(connection,
       {.session = connection->session,
        .request = number,
        .type = MessageType::kReply,
        .code = code},
       "", {});
}

void Transport::Thread::OnReply(const WireHeader& header, absl::string_view text, void* data,
                                bool announced) {
  const auto it = calls_.find(header.request);
  // Its deadline has passed, or the peer answers twice.
  if (it == calls_.end() || it->second->ended || it->second->receiving) return;
  Outstanding& call = *it->second;
  if (call.connection->session != header.session) return;
  if (header.code == ReplyCode::kUnknownMethod) {
    return End(header.request, absl::UnimplementedError("the peer knows no such method"), false);
  }
  if (header.code == ReplyCode::kNoRoom) {
    return End(header.request, absl::ResourceExhaustedError("the peer has no room"), false);
  }
  if (header.code == ReplyCode::kDamaged) {
    return End(header.request, absl::DataLossError("the payload was damaged on its way"), false);
  }
  if (header.payload_bytes > call.call.answer_bytes) {
    return End(header.request, absl::OutOfRangeError("the answer is too large"), true);
  }
  call.receiving = true;
  call.header = std::string(text);
  call.result.payload_bytes = header.payload_bytes;
  Receive(std::unique_ptr<Operation>(new Operation{.kind = Operation::Kind::kReceiveAnswer,
                                                   .connection = call.connection,
                                                   .number = header.request,
                                                   .checksum = header.payload_checksum}),
          call.call.answer, header.payload_bytes, data, announced);
}

void Transport::Thread::Receive(std::unique_ptr<Operation> operation, char* buffer, size_t bytes,
                                void* data, bool announced) {
  ++operation->connection->operations;
  operation->bytes = absl::string_view(buffer, bytes);
  if (!announced) {
    if (bytes > 0) std::memcpy(buffer, data, bytes);
    return Complete(std::move(operation), UCS_OK);
  }
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  param.user_data = operation.get();
  param.cb.recv_am = [](void* request, ucs_status_t status, size_t, void* arg) {
    ucp_request_free(request);
    auto* const done = static_cast<Operation*>(arg);
    done->connection->thread->Complete(std::unique_ptr<Operation>(done), status);
  };
  // It may have run the callback before it returns.
  Operation* const released = operation.release();
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(worker_, data, buffer, bytes, &param);
  if (UCS_PTR_IS_ERR(request)) {
    Complete(std::unique_ptr<Operation>(released), UCS_PTR_STATUS(request));
  }
}

bool Transport::Thread::IsWhole(const Operation& operation) {
  if (PayloadChecksum(operation.bytes) == operation.checksum) return true;
  const Connection& connection = *operation.connection;
  shared_->damages.Log(
      LogLevel::kError,
      absl::StrCat("a payload was damaged on its way peer=", connection.peer.ToString(), " node=",
                   static_cast<int32_t>(Raw(connection.node)), " bytes=", operation.bytes.size()));
  return false;
}

void Transport::Thread::Complete(std::unique_ptr<Operation> operation, ucs_status_t status) {
  Connection* const connection = operation->connection;
  if (status != UCS_OK) {
    Break(connection, ucs_status_string(status));
  } else if (operation->payload.size() >= options_.rdma_threshold ||
             operation->kind != Operation::Kind::kSend) {
    // The peer took part in the transfer.
    connection->heard = now_;
  }
  const bool whole = status == UCS_OK && IsWhole(*operation);
  const auto it = operation->kind == Operation::Kind::kReceiveRequest
                      ? calls_.end()
                      : calls_.find(operation->number);
  switch (operation->kind) {
    case Operation::Kind::kSend:
      if (it != calls_.end()) {
        it->second->sending = false;
        Finish(operation->number);
      }
      break;
    case Operation::Kind::kReceiveAnswer:
      CFS_CHECK(it != calls_.end());
      it->second->receiving = false;
      if (whole) {
        End(operation->number, absl::OkStatus(), true);
      } else if (status == UCS_OK) {
        End(operation->number, absl::DataLossError("the answer was damaged on its way"), true);
      } else {
        Finish(operation->number);  // What broke the connection ends the call.
      }
      break;
    case Operation::Kind::kReceiveRequest:
      if (status != UCS_OK || connection->broken) break;
      if (whole) {
        Handle(connection, operation->number, operation->method, std::move(operation->head),
               std::move(operation->payload));
      } else {
        Refuse(connection, operation->number, ReplyCode::kDamaged);
      }
      break;
  }
  --connection->operations;
  Forget(connection);
}

void Transport::Thread::Handle(Connection* connection, uint64_t number, uint16_t method,
                               std::string header, Payload payload) {
  ++connection->calls;
  // By session, for the connection may be gone when the answer comes.
  Responder responder([thread = shared_from_this(), session = connection->session, number](
                          std::string text, Payload answer) {
    CFS_CHECK(text.size() <= kCallHeaderBytesMax);
    CFS_CHECK(answer.size() <= kCallPayloadBytesMax);
    const uint32_t checksum = PayloadChecksum(absl::string_view(answer.data(), answer.size()));
    thread->Submit([thread = thread.get(), session, number, checksum, text = std::move(text),
                    answer = std::move(answer)]() mutable {
      const auto it = thread->served_.find(session);
      if (it == thread->served_.end()) return;
      Connection* const asker = it->second;
      --asker->calls;
      asker->used = thread->now_;
      const auto bytes = static_cast<uint32_t>(answer.size());
      thread->Send(asker,
                   {.session = session,
                    .request = number,
                    .payload_bytes = bytes,
                    .type = MessageType::kReply,
                    .payload_checksum = checksum},
                   text, std::move(answer));
    });
  });
  options_.methods.at(method).handle({connection->node, std::move(header), std::move(payload)},
                                     std::move(responder));
}

void Transport::Thread::End(uint64_t number, absl::Status status, bool maybe_executed) {
  Outstanding& call = *calls_.at(number);
  if (!call.ended) {
    call.ended = true;
    call.result.maybe_executed = !status.ok() && maybe_executed;
    const size_t bytes_sent = call.sent ? call.call.header.size() + call.call.payload_bytes : 0;
    if (call.counters == nullptr) {
      // Nobody was asked.
    } else if (status.ok()) {
      call.counters->Answered(absl::FromChrono(SteadyClock::now() - call.started), bytes_sent,
                              call.header.size() + call.result.payload_bytes);
    } else {
      call.counters->Failed(bytes_sent);
    }
    call.result.status = std::move(status);
  }
  Finish(number);
}

void Transport::Thread::Finish(uint64_t number) {
  const auto it = calls_.find(number);
  if (!it->second->ended || it->second->sending || it->second->receiving) return;
  const std::unique_ptr<Outstanding> call = std::move(it->second);
  calls_.erase(it);
  if (call->connection != nullptr) {
    --call->connection->calls;
    Forget(call->connection);
  }
  call->result.header = call->header;
  call->call.done(std::move(call->result));
}

}  // namespace cfs
