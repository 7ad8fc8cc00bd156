// The announced port: whoever connects to it is handed on.
#ifndef CFS_NET_ACCEPTOR_H_
#define CFS_NET_ACCEPTOR_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"

namespace cfs {

// A socket that listens on `address`, whose port is set if it was 0.
absl::StatusOr<UniqueFd> ListenOn(SocketAddress* address);

// Thread-compatible.
class Acceptor {
 public:
  // `number` is what `epoll` reports when somebody has come; then OnReady().
  void Open(int epoll, uint64_t number, UniqueFd listener);
  void Close();

  void OnReady(absl::FunctionRef<void(UniqueFd, const SocketAddress& peer)> come);

  // Without descriptors or memory nobody can be let in: then it waits for a
  // Resume(), which may be too early.
  bool paused() const { return paused_; }
  void Resume();

 private:
  bool Watch(bool on);

  UniqueFd listener_;
  int epoll_ = -1;
  uint64_t number_ = 0;
  bool paused_ = false;
};

}  // namespace cfs

#endif  // CFS_NET_ACCEPTOR_H_
