#include "cfs/net/greeter.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"

namespace cfs {

void Greeter::Open(Options options) {
  options_ = std::move(options);
  next_ = options_.first_number;
}

void Greeter::Accept(UniqueFd fd, const SocketAddress& peer, const Handshake::Local& local) {
  // A flood costs the oldest, which would have finished if it were honest.
  if (greetings_.size() >= kHandshakesMax) {
    const auto oldest = std::find_if(greetings_.begin(), greetings_.end(),
                                     [](const auto& entry) { return !entry.second.dialed; });
    if (oldest != greetings_.end()) Fail(oldest->first, "too many handshakes at once");
  }
  Begin(Handshake::Role::kAcceptor, std::move(fd), peer, local, nullptr);
}

uint64_t Greeter::Dial(UniqueFd fd, const SocketAddress& peer, const Handshake::Local& local,
                       Dialed dialed) {
  return Begin(Handshake::Role::kInitiator, std::move(fd), peer, local, std::move(dialed));
}

uint64_t Greeter::Begin(Handshake::Role role, UniqueFd fd, const SocketAddress& peer,
                        const Handshake::Local& local, Dialed dialed) {
  const uint64_t number = next_++;
  const bool connecting = role == Handshake::Role::kInitiator;
  epoll_event event = {.events = connecting ? EPOLLOUT : EPOLLIN, .data = {.u64 = number}};
  const int raw_fd = fd.get();
  greetings_.emplace(
      number, Greeting{std::move(fd), Handshake(role, local, RandomNonce()), peer,
                       After(SteadyClock::now(), options_.timeout), std::move(dialed), connecting});
  if (epoll_ctl(options_.epoll, EPOLL_CTL_ADD, raw_fd, &event) != 0) {
    Fail(number, "cannot be waited for");
  }
  return number;
}

void Greeter::OnReady(uint64_t number) {
  const auto it = greetings_.find(number);
  if (it == greetings_.end()) return;
  Greeting& greeting = it->second;
  std::string out;
  char buffer[256];
  if (greeting.connecting) {
    int error = 0;
    socklen_t length = sizeof(error);
    CFS_CHECK(getsockopt(greeting.fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) == 0);
    if (error != 0) return Fail(number, strerror(error));
    greeting.connecting = false;
    epoll_event event = {.events = EPOLLIN, .data = {.u64 = number}};
    CFS_CHECK(epoll_ctl(options_.epoll, EPOLL_CTL_MOD, greeting.fd.get(), &event) == 0);
    out = greeting.handshake.Hello();
  } else {
    const ssize_t size = recv(greeting.fd.get(), buffer, sizeof(buffer), 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return Fail(number, "closed the connection during the handshake");
    out = greeting.handshake.Receive(absl::string_view(buffer, size));
  }
  // Before the peer learns that it may go on.
  if (greeting.handshake.done() && !greeting.dialed) {
    options_.accepted(greeting.handshake, greeting.peer);
  }
  // So few bytes fit into the buffer of a new socket.
  const bool sent = out.empty() || send(greeting.fd.get(), out.data(), out.size(), MSG_NOSIGNAL) ==
                                       static_cast<ssize_t>(out.size());
  if (greeting.handshake.refusal() != Refusal::kNone) {
    return Fail(number, RefusalText(greeting.handshake.refusal()));
  }
  if (!sent) return Fail(number, "closed the connection during the handshake");
  if (!greeting.handshake.done()) return;
  const auto node = greetings_.extract(it);
  if (node.mapped().dialed) node.mapped().dialed(&node.mapped().handshake, "");
}

void Greeter::Expire(Instant now) {
  std::vector<uint64_t> late;
  for (const auto& [number, greeting] : greetings_) {
    if (greeting.deadline <= now) late.push_back(number);
  }
  for (const uint64_t number : late) Fail(number, "did not finish the handshake in time");
}

void Greeter::Fail(uint64_t number, absl::string_view why) {
  const auto node = greetings_.extract(number);
  Greeting& greeting = node.mapped();
  if (greeting.dialed) {
    greeting.dialed(nullptr, why);
  } else {
    options_.refusals->Log(LogLevel::kWarn,
                           absl::StrCat("refused a connection peer=", greeting.peer.ToString(),
                                        " reason=\"", why, "\""));
  }
}

}  // namespace cfs
