#include "cfs/net/address.h"

#include <arpa/inet.h>
#include <netdb.h>

#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

absl::StatusOr<SocketAddress> Look(absl::string_view address, int flags) {
  CFS_ASSIGN_OR_RETURN(const HostPort parts, SplitAddress(address));
  addrinfo hints = {};
  hints.ai_flags = flags | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(parts.host.c_str(), absl::StrCat(parts.port).c_str(), &hints, &found);
  if (error == EAI_NONAME && (flags & AI_NUMERICHOST) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(address, ": not a numeric address"));
  }
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat(address, ": ", gai_strerror(error)));
  }
  SocketAddress result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.length = found->ai_addrlen;
  freeaddrinfo(found);
  return result;
}

}  // namespace

absl::StatusOr<HostPort> SplitAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  absl::string_view host = address.substr(0, colon);
  uint32_t port = 0;
  bool good = colon != absl::string_view::npos && colon + 1 < address.size() &&
              absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= UINT16_MAX;
  if (good && host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else {
    good = good && host.find(':') == absl::string_view::npos;
  }
  for (const char c : host) good = good && c > ' ' && c < 0x7f && c != '[' && c != ']';
  if (!good || host.empty() || host.size() > kHostBytesMax) {
    return absl::InvalidArgumentError("an address is HOST:PORT, or [IPV6]:PORT");
  }
  return HostPort{std::string(host), static_cast<uint16_t>(port)};
}

absl::StatusOr<SocketAddress> ParseNumericAddress(absl::string_view address) {
  return Look(address, AI_NUMERICHOST);
}

absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view address) { return Look(address, 0); }

uint16_t SocketAddress::port() const {
  return ntohs(storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

void SocketAddress::set_port(uint16_t port) {
  (storage.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port
                                 : reinterpret_cast<sockaddr_in*>(&storage)->sin_port) =
      htons(port);
}

std::string SocketAddress::ToString() const {
  char host[NI_MAXHOST];
  CFS_CHECK(getnameinfo(get(), length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0);
  return storage.ss_family == AF_INET6 ? absl::StrCat("[", host, "]:", port())
                                       : absl::StrCat(host, ":", port());
}

}  // namespace cfs
