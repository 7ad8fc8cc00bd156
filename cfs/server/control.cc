#include "cfs/server/control.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"

namespace cfs {
namespace {

constexpr char kSocketName[] = "cfs.sock";

// Calls `use` with the address of the store's socket. It leads through
// /proc/self/fd, for a store's path may be longer than sun_path.
absl::Status WithAddress(const std::string& store_dir,
                         const std::function<absl::Status(const sockaddr*, socklen_t)>& use) {
  const UniqueFd directory(open(store_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return ErrnoStatus(absl::StrCat("store ", store_dir));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory.get(),
           kSocketName);
  return use(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

int PollMilliseconds(absl::Time deadline) {
  // One more than rounded down, or the last millisecond would be spent spinning.
  const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
  return static_cast<int>(std::min(absl::ToInt64Milliseconds(left) + 1, int64_t{1} << 30));
}

}  // namespace

struct ControlServer::Connection {
  UniqueFd fd;
  absl::Time deadline;  // Moves with every request and reply.
  std::string input;    // At most one line and a read ahead.
  std::string output;   // While there is some, nothing more is read.
  bool closing = false;
};

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Start(const std::string& store_dir,
                                                                    Handler handler,
                                                                    absl::Duration idle_max) {
  UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.valid()) return ErrnoStatus("control socket");
  // bind() gives the file the mode of the unbound socket.
  if (fchmod(listener.get(), 0600) != 0) return ErrnoStatus("control socket");
  CFS_RETURN_IF_ERROR(
      WithAddress(store_dir, [&](const sockaddr* address, socklen_t length) -> absl::Status {
        unlink(reinterpret_cast<const sockaddr_un*>(address)->sun_path);
        if (bind(listener.get(), address, length) != 0 || listen(listener.get(), SOMAXCONN) != 0) {
          return ErrnoStatus(absl::StrCat("control socket ", store_dir, "/", kSocketName));
        }
        return absl::OkStatus();
      }));
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return ErrnoStatus("eventfd");
  return std::unique_ptr<ControlServer>(new ControlServer(store_dir, std::move(handler), idle_max,
                                                          std::move(listener), std::move(stop)));
}

ControlServer::ControlServer(std::string store_dir, Handler handler, absl::Duration idle_max,
                             UniqueFd listener, UniqueFd stop)
    : store_dir_(std::move(store_dir)),
      handler_(std::move(handler)),
      idle_max_(idle_max),
      listener_(std::move(listener)),
      stop_(std::move(stop)) {
  // Signals are for the thread that waits for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ControlServer::~ControlServer() {
  CFS_CHECK(eventfd_write(stop_.get(), 1) == 0);
  thread_.join();
  unlink(absl::StrCat(store_dir_, "/", kSocketName).c_str());
}

void ControlServer::Run() {
  NameThread("cfs-control");
  std::vector<pollfd> polls;
  while (true) {
    const bool full = connections_.size() >= kControlConnectionsMax;
    polls.assign({{stop_.get(), POLLIN, 0},
                  // A negative descriptor is not polled: the next ones wait in the backlog.
                  {full ? -1 : listener_.get(), POLLIN, 0}});
    absl::Time deadline = absl::InfiniteFuture();
    for (const Connection& connection : connections_) {
      polls.push_back({connection.fd.get(),
                       static_cast<short>(connection.output.empty() ? POLLIN : POLLOUT), 0});
      deadline = std::min(deadline, connection.deadline);
    }
    const int timeout = deadline == absl::InfiniteFuture() ? -1 : PollMilliseconds(deadline);
    const int ready = poll(polls.data(), polls.size(), timeout);
    CFS_CHECK(ready >= 0 || errno == EINTR || errno == ENOMEM);
    if (ready < 0) continue;
    if (polls[0].revents != 0) return;

    const absl::Time now = absl::Now();
    size_t i = 2;
    for (auto it = connections_.begin(); it != connections_.end(); ++i) {
      const bool alive = polls[i].revents != 0 ? Serve(&*it) : now < it->deadline;
      it = alive ? std::next(it) : connections_.erase(it);
    }
    if (polls[1].revents != 0) Accept();
  }
}

void ControlServer::Accept() {
  UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd.valid()) {
    connections_.push_back({std::move(fd), absl::Now() + idle_max_, "", ""});
  } else if (errno == EMFILE || errno == ENFILE) {
    // The connection stays in the backlog, and poll() would report it at once.
    absl::SleepFor(absl::Milliseconds(100));
  }
}

bool ControlServer::Serve(Connection* connection) {
  if (connection->output.empty()) {
    char buffer[4096];
    const ssize_t n = recv(connection->fd.get(), buffer, sizeof(buffer), 0);
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    connection->input.append(buffer, n);
  }
  // All whole lines, as long as their replies leave without waiting.
  while (true) {
    if (!connection->output.empty()) {
      const ssize_t n = send(connection->fd.get(), connection->output.data(),
                             connection->output.size(), MSG_NOSIGNAL);
      if (n < 0) return errno == EAGAIN || errno == EINTR;
      connection->deadline = absl::Now() + idle_max_;
      connection->output.erase(0, n);
      if (!connection->output.empty()) return true;
    }
    if (connection->closing) return false;
    const size_t end = connection->input.find('\n');
    if (end == std::string::npos && connection->input.size() <= kControlLineBytesMax) return true;
    nlohmann::json reply;
    if (end == std::string::npos || end > kControlLineBytesMax) {
      reply = ControlError(PosixError(EMSGSIZE, "the request is too long"));
      connection->closing = true;
    } else {
      const auto request =
          nlohmann::json::parse(connection->input.begin(), connection->input.begin() + end, nullptr,
                                /*allow_exceptions=*/false);
      reply = request.is_object()
                  ? handler_(request)
                  : ControlError(PosixError(EINVAL, "the request is not a JSON object"));
      connection->input.erase(0, end + 1);
    }
    connection->output = ToText(reply) + "\n";
  }
}

absl::StatusOr<nlohmann::json> ControlCall(const std::string& store_dir,
                                           const nlohmann::json& request, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("control socket");
  const auto too_slow = [&] {
    return absl::DeadlineExceededError(
        absl::StrCat("the process in charge of ", store_dir, " has not answered within ",
                     absl::FormatDuration(timeout), "; see ", store_dir, "/cfs.log"));
  };
  const auto wait_for = [&](short events) {
    pollfd poll_fd = {fd.get(), events, 0};
    while (absl::Now() < deadline) {
      if (poll(&poll_fd, 1, PollMilliseconds(deadline)) > 0) return true;
    }
    return false;
  };

  CFS_RETURN_IF_ERROR(
      WithAddress(store_dir, [&](const sockaddr* address, socklen_t length) -> absl::Status {
        while (connect(fd.get(), address, length) != 0) {
          if (errno == EAGAIN) {  // The backlog is full, and poll() can't wait for it.
            if (absl::Now() >= deadline) return too_slow();
            absl::SleepFor(absl::Milliseconds(10));
          } else if (errno == ENOENT || errno == ECONNREFUSED) {
            return absl::UnavailableError(
                absl::StrCat("no cfs runs on store ", store_dir, "; `cfs mount` starts one"));
          } else if (errno != EINTR) {
            return ErrnoStatus(absl::StrCat("control socket of ", store_dir));
          }
        }
        return absl::OkStatus();
      }));

  const std::string line = ToText(request) + "\n";
  const auto lost = [&] {
    return absl::UnavailableError(absl::StrCat("the process in charge of ", store_dir,
                                               " ended before it answered; see ", store_dir,
                                               "/cfs.log"));
  };
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t n = send(fd.get(), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += n;
    } else if (errno != EAGAIN && errno != EINTR) {
      return lost();
    } else if (!wait_for(POLLOUT)) {
      return too_slow();
    }
  }
  std::string reply;
  while (reply.empty() || reply.back() != '\n') {
    char buffer[64 << 10];
    const ssize_t n = recv(fd.get(), buffer, sizeof(buffer), 0);
    if (n > 0 && reply.size() + n <= kControlReplyBytesMax) {
      reply.append(buffer, n);
    } else if (n >= 0 || (errno != EAGAIN && errno != EINTR)) {
      return lost();
    } else if (!wait_for(POLLIN)) {
      return too_slow();
    }
  }
  auto json = nlohmann::json::parse(reply, nullptr, /*allow_exceptions=*/false);
  if (BoolMember(json, "ok")) return json;
  const uint64_t err = UintMember(json, "errno");
  const std::string message = StringMember(json, "error");
  return PosixError(err > 0 && err < 4096 ? static_cast<int>(err) : EPROTO,
                    message.empty() ? "the reply makes no sense" : message);
}

nlohmann::json ControlError(const absl::Status& status) {
  return {{"ok", false}, {"error", std::string(status.message())}, {"errno", ErrnoOf(status)}};
}

std::string StringMember(const nlohmann::json& object, absl::string_view name) {
  const auto it = object.find(std::string(name));
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

uint64_t UintMember(const nlohmann::json& object, absl::string_view name) {
  const auto it = object.find(std::string(name));
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

bool BoolMember(const nlohmann::json& object, absl::string_view name) {
  const auto it = object.find(std::string(name));
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

std::string ToText(const nlohmann::json& value, int indent) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

}  // namespace cfs
