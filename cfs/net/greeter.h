// The handshakes of one network thread, each on an ordinary TCP connection that
// ends with it: with peers that have come, and with those that were dialed.
//
// Bounded: each has a deadline, and of those with peers that have come there are
// at most kHandshakesMax; the oldest goes. Refusals are logged.
//
// Thread-compatible. Callbacks run in the calls that lead to them, and may not
// call back.
#ifndef CFS_NET_GREETER_H_
#define CFS_NET_GREETER_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/functional/any_invocable.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"
#include "cfs/net/handshake.h"
#include "cfs/net/instant.h"

namespace cfs {

class Greeter {
 public:
  // A peer that has come has proved itself; it does not know yet that it may go
  // on.
  using Accepted = std::function<void(const Handshake&, const SocketAddress& peer)>;
  // A dialed peer has proved itself; null: why not.
  using Dialed = absl::AnyInvocable<void(const Handshake*, absl::string_view why)>;

  struct Options {
    // Reports what happens, by numbers from `first_number` on: then OnReady().
    int epoll = -1;
    uint64_t first_number = 0;
    absl::Duration timeout;
    // Outlives this.
    LineLimit* refusals = nullptr;
    Accepted accepted;
  };

  void Open(Options options);

  // Begins a handshake with a peer that has come.
  void Accept(UniqueFd fd, const SocketAddress& peer, const Handshake::Local& local);
  // Begins one with a peer that `fd` is connected or being connected to. Returns
  // its number.
  uint64_t Dial(UniqueFd fd, const SocketAddress& peer, const Handshake::Local& local,
                Dialed dialed);
  // Ends one without a callback. Does nothing if it has ended.
  void Drop(uint64_t number) { greetings_.erase(number); }
  void DropAll() { greetings_.clear(); }

  void OnReady(uint64_t number);
  // Ends those whose deadline has passed.
  void Expire(Instant now);
  bool empty() const { return greetings_.empty(); }

 private:
  struct Greeting {
    UniqueFd fd;
    Handshake handshake;
    SocketAddress peer;
    Instant deadline;
    // Null when the peer has come.
    Dialed dialed;
    bool connecting;
  };

  uint64_t Begin(Handshake::Role role, UniqueFd fd, const SocketAddress& peer,
                 const Handshake::Local& local, Dialed dialed);
  void Fail(uint64_t number, absl::string_view why);

  Options options_;
  // In order of age.
  std::map<uint64_t, Greeting> greetings_;
  uint64_t next_ = 0;
};

}  // namespace cfs

#endif  // CFS_NET_GREETER_H_
