#include "cfs/net/transport_ucx_thread.h"

#include <signal.h>
#include <sodium.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "absl/time/time.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/net/transport_ucx_context.h"

namespace cfs {
namespace {

// How often deadlines are looked at while there are any.
constexpr auto kTick = std::chrono::milliseconds(50);
// Events and messages handled before the queue is looked at again.
constexpr int kBurst = 64;
// What epoll says is ready; other values are numbers of handshakes.
constexpr uint64_t kQueueEvent = 0, kWorkerEvent = 1, kListenerEvent = 2, kFirstGreeting = 3;

}  // namespace

absl::Status Transport::Thread::Prepare(const SocketAddress& listen) {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return ErrnoStatus("network thread");
  CFS_RETURN_IF_ERROR(queue_.Open(epoll_.get(), kQueueEvent));
  while (client_id_ == 0) randombytes_buf(&client_id_, sizeof(client_id_));

  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  params.client_id = client_id_;
  ucs_status_t status = ucp_worker_create(shared_->context, &params, &worker_);
  if (status != UCS_OK) return UcxError("ucp_worker_create", status);
  ucp_worker_attr_t worker_attr = {};
  worker_attr.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  status = ucp_worker_query(worker_, &worker_attr);
  if (status != UCS_OK) return UcxError("ucp_worker_query", status);
  if (worker_attr.max_am_header < kWireHeaderBytes + kCallHeaderBytesMax) {
    return absl::UnavailableError("UCX has no room for our headers");
  }

  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.arg = this;
  handler.cb = [](void* arg, const void* head, size_t head_bytes, void* data, size_t bytes,
                  const ucp_am_recv_param_t* param) {
    return static_cast<Thread*>(arg)->OnMessage(
        absl::string_view(static_cast<const char*>(head), head_bytes), data, bytes,
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
  };
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return UcxError("ucp_worker_set_am_recv_handler", status);

  SocketAddress any_port = listen;
  any_port.set_port(0);
  ucp_listener_params_t listener = {};
  listener.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  listener.sockaddr = {any_port.get(), any_port.length};
  listener.conn_handler.arg = this;
  listener.conn_handler.cb = [](ucp_conn_request_h request, void* arg) {
    static_cast<Thread*>(arg)->arrivals_.push_back(request);
  };
  status = ucp_listener_create(worker_, &listener, &ucx_listener_);
  if (status != UCS_OK) return UcxError("ucp_listener_create", status);
  ucp_listener_attr_t attr = {};
  attr.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(ucx_listener_, &attr);
  if (status != UCS_OK) return UcxError("ucp_listener_query", status);
  SocketAddress bound;
  bound.storage = attr.sockaddr;
  ucx_port_ = bound.port();

  int worker_event = -1;
  status = ucp_worker_get_efd(worker_, &worker_event);
  if (status != UCS_OK) return UcxError("ucp_worker_get_efd", status);
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = kWorkerEvent}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, worker_event, &event) != 0) {
    return ErrnoStatus("network thread");
  }
  greeter_.Open({.epoll = epoll_.get(),
                 .first_number = kFirstGreeting,
                 .timeout = options_.connect_timeout,
                 .refusals = &shared_->refusals,
                 .accepted = [this](const Handshake& handshake, const SocketAddress& peer) {
                   Expect(handshake, peer);
                 }});
  return absl::OkStatus();
}

void Transport::Thread::Run(UniqueFd listener, std::vector<std::shared_ptr<Thread>> threads) {
  threads_ = std::move(threads);
  if (listener.valid()) acceptor_.Open(epoll_.get(), kListenerEvent, std::move(listener));
  // Signals are for the thread that waits for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  thread_ = std::thread([this] { Loop(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Transport::Thread::Stop() {
  if (!thread_.joinable()) return;
  Submit([this] { stopping_ = true; });
  thread_.join();
}

void Transport::Thread::Loop() {
  NameThread("cfs-net");
  while (!stopping_) {
    bool busy = false;
    for (int i = 0; i < kBurst && ucp_worker_progress(worker_) != 0; ++i) busy = true;
    now_ = SteadyClock::now();
    busy |= queue_.RunAll();
    for (ucp_conn_request_h request : std::exchange(arrivals_, {})) Admit(request);
    // Who never sleeps must not forget those who want to connect.
    const bool tick = now_ - last_tick_ >= kTick;
    if (tick || !greeter_.empty()) Poll(0);
    if (tick) Tick();
    for (auto& [connection, why] : std::exchange(broken_, {})) {
      Close(connection, why);
      // UCX closes the rest as it goes on, but does not ask to be woken for it.
      busy = true;
    }
    if (busy || linger_.Until([this] {
          return ucp_worker_progress(worker_) != 0 || !queue_.empty();
        })) {
      continue;
    }
    if (ucp_worker_arm(worker_) == UCS_OK) Wait();
  }
  Drain();
}

void Transport::Thread::Wait() {
  int milliseconds = -1;
  if (!calls_.empty() || !greeter_.empty() || !expected_.empty() || acceptor_.paused()) {
    milliseconds = kTick.count();
  } else if (!connections_.empty()) {
    milliseconds = std::max<int64_t>(absl::ToInt64Milliseconds(options_.heartbeat_interval) / 2, 1);
  }
  // Callbacks may have submitted since the last look.
  if (!queue_.Sleep() || !broken_.empty() || !arrivals_.empty()) milliseconds = 0;
  Poll(milliseconds);
  queue_.WakeUp();
}

void Transport::Thread::Poll(int milliseconds) {
  epoll_event events[kBurst];
  const int ready = epoll_wait(epoll_.get(), events, kBurst, milliseconds);
  CFS_CHECK(ready >= 0 || errno == EINTR);
  now_ = SteadyClock::now();
  for (int i = 0; i < ready; ++i) {
    const uint64_t number = events[i].data.u64;
    if (number == kListenerEvent) {
      acceptor_.OnReady([this](UniqueFd fd, const SocketAddress& peer) {
        const std::shared_ptr<Thread>& thread = threads_[next_thread_++ % threads_.size()];
        thread->Submit([thread = thread.get(), fd = std::move(fd), peer]() mutable {
          thread->greeter_.Accept(std::move(fd), peer, thread->LocalAs(thread->ucx_port_));
        });
      });
    } else if (number >= kFirstGreeting) {
      greeter_.OnReady(number);
    }
  }
}

void Transport::Thread::Tick() {
  last_tick_ = now_;
  if (acceptor_.paused()) acceptor_.Resume();
  greeter_.Expire(now_);
  ExpireCalls();
  for (const auto& [connection, owner] : connections_) TendConnection(connection);
}

void Transport::Thread::ExpireCalls() {
  std::vector<uint64_t> late;
  for (const auto& [number, call] : calls_) {
    if (call->deadline > now_) continue;
    late.push_back(number);
    // A live peer ends a transfer sooner or later; this one takes too long.
    if (call->ended &&
        call->deadline + absl::ToChronoNanoseconds(options_.heartbeat_timeout) <= now_) {
      Break(call->connection, "a transfer hangs");
    }
  }
  for (const uint64_t number : late) {
    const auto it = calls_.find(number);
    if (it != calls_.end()) {
      End(number, absl::DeadlineExceededError("the peer did not answer in time"), it->second->sent);
    }
  }
}

// Gives up one that says nothing or that nobody uses, and asks for a sign of life.
void Transport::Thread::TendConnection(Connection* connection) {
  // A handshake has a deadline of its own.
  if (connection->broken || (connection->dialed && connection->ep == nullptr)) return;
  const auto interval = absl::ToChronoNanoseconds(options_.heartbeat_interval);
  const auto silence = now_ - connection->heard;
  auto patience = absl::ToChronoNanoseconds(options_.heartbeat_timeout);
  if (!connection->dialed) patience += interval;
  if (silence > patience) return Break(connection, "no sign of life");
  if (!connection->dialed) return;
  if (connection->calls == 0 &&
      now_ - connection->used > absl::ToChronoNanoseconds(options_.idle_timeout)) {
    return Break(connection, "");
  }
  if (now_ - connection->pinged >= interval &&
      (silence >= interval || now_ - connection->sent >= interval)) {
    connection->pinged = now_;
    Send(connection, {.session = connection->session, .type = MessageType::kPing}, "", {});
  }
}

// Lets UCX finish with every buffer before the calls end.
void Transport::Thread::Drain() {
  queue_.Close();
  queue_.RunAll();
  // A Responder keeps this object, but nobody accepts any more.
  acceptor_.Close();
  for (const auto& [connection, owner] : connections_) Break(connection, "shutting down");
  const Instant patience = SteadyClock::now() + std::chrono::seconds(1);
  while (!connections_.empty() && SteadyClock::now() < patience) {
    for (auto& [connection, why] : std::exchange(broken_, {})) Close(connection, why);
    ucp_worker_progress(worker_);
  }
  greeter_.DropAll();
  for (ucp_conn_request_h request : std::exchange(arrivals_, {})) {
    ucp_listener_reject(ucx_listener_, request);
  }
  Destroy();
  // Without a worker, nothing uses their buffers any more.
  while (!calls_.empty()) {
    Outstanding* const call = calls_.begin()->second.get();
    call->sending = call->receiving = false;
    End(calls_.begin()->first, absl::UnavailableError("shutting down"), call->sent);
  }
  threads_.clear();
}

void Transport::Thread::Destroy() {
  if (ucx_listener_ != nullptr) ucp_listener_destroy(std::exchange(ucx_listener_, nullptr));
  if (worker_ != nullptr) ucp_worker_destroy(std::exchange(worker_, nullptr));
}

}  // namespace cfs
