#include "cfs/net/acceptor.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"

namespace cfs {
namespace {

// Before others have their turn.
constexpr int kBurst = 64;

}  // namespace

absl::StatusOr<UniqueFd> ListenOn(SocketAddress* address) {
  UniqueFd fd(socket(address->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int yes = 1;
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      bind(fd.get(), address->get(), address->length) != 0 || listen(fd.get(), SOMAXCONN) != 0) {
    return ErrnoStatus(absl::StrCat("listen on ", address->ToString()));
  }
  CFS_CHECK(
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address->storage), &address->length) == 0);
  return fd;
}

void Acceptor::Open(int epoll, uint64_t number, UniqueFd listener) {
  epoll_ = epoll;
  number_ = number;
  listener_ = std::move(listener);
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = number_}};
  CFS_CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_.get(), &event) == 0);
}

void Acceptor::Close() {
  listener_.reset();
  paused_ = false;
}

void Acceptor::OnReady(absl::FunctionRef<void(UniqueFd, const SocketAddress& peer)> come) {
  for (int i = 0; i < kBurst; ++i) {
    SocketAddress peer;
    peer.length = sizeof(peer.storage);
    UniqueFd fd(accept4(listener_.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.length,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        // The connection stays in the backlog, and epoll would report it at once.
        paused_ = Watch(false);
      }
      return;
    }
    come(std::move(fd), peer);
  }
}

void Acceptor::Resume() { paused_ = !Watch(true); }

bool Acceptor::Watch(bool on) {
  epoll_event event = {.events = on ? EPOLLIN : 0u, .data = {.u64 = number_}};
  return epoll_ctl(epoll_, EPOLL_CTL_MOD, listener_.get(), &event) == 0;
}

}  // namespace cfs
