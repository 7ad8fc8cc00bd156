// Where a node listens, as people write it: "HOST:PORT", "[IPV6]:PORT".
#ifndef CFS_NET_ADDRESS_H_
#define CFS_NET_ADDRESS_H_

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

struct HostPort {
  std::string host;
  uint16_t port;
};

// INVALID_ARGUMENT unless `address` is a host of at most kHostBytesMax
// characters, a colon and a port. Does not look the host up.
absl::StatusOr<HostPort> SplitAddress(absl::string_view address);

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  uint16_t port() const;
  void set_port(uint16_t port);
  // "10.0.0.1:7000", "[::1]:7000".
  std::string ToString() const;
};

// Takes numbers only, so that it never waits for a name server.
absl::StatusOr<SocketAddress> ParseNumericAddress(absl::string_view address);

// Asks the resolver, which may take many seconds. UNAVAILABLE when it does not
// know the host.
absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view address);

}  // namespace cfs

#endif  // CFS_NET_ADDRESS_H_
