// UCX as we configure it, and what it says for itself.
#ifndef CFS_NET_TRANSPORT_UCX_CONTEXT_H_
#define CFS_NET_TRANSPORT_UCX_CONTEXT_H_

#include <ucp/api/ucp.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/net/address.h"

namespace cfs {

absl::Status UcxError(absl::string_view what, ucs_status_t status);

// UCX's lines become ours, for good: it would print to stdout, once for each bad
// connection.
void TakeUcxLog();

// With `transports` as in UCX_TLS, on the interface that has the address `listen`
// and all RDMA devices. The caller's, for ucp_cleanup().
absl::StatusOr<ucp_context_h> MakeUcxContext(const std::string& transports,
                                             const SocketAddress& listen);

// What UCX has chosen for an endpoint: "posix/memory,tcp/eth0", first what small
// messages take. Empty when it does not say so.
std::string TransportsOf(ucp_ep_h ep);

}  // namespace cfs

#endif  // CFS_NET_TRANSPORT_UCX_CONTEXT_H_
