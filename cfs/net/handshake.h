// Mutual proof that both ends hold the token's secret, before anything else.
//
//     initiator -> hello                acceptor
//               <- challenge, with the acceptor's MAC
//               -> proof, with the initiator's MAC
//               <- accepted
//
// The MACs are HMAC-SHA-512/256 under the secret over role, protocol version,
// cluster id, both node ids, both nonces and the attachments: none can be
// replayed, reflected or moved to another cluster. The end that refuses says
// why, which the other can believe or not.
//
// Pure: bytes in, bytes out. Thread-compatible. Keeps at most one message, of
// less than 100 bytes, whatever the peer sends.
#ifndef CFS_NET_HANDSHAKE_H_
#define CFS_NET_HANDSHAKE_H_

#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "cfs/base/types.h"
#include "cfs/net/token.h"
#include "cfs/net/wire_format.h"

namespace cfs {

// Of a node that the cluster has not numbered yet.
inline constexpr NodeId kUnknownNode{UINT32_MAX};

using Nonce = std::array<uint8_t, kNonceBytes>;
Nonce RandomNonce();

// "has another secret": follows the peer's name.
absl::string_view RefusalText(Refusal refusal);

class Handshake {
 public:
  enum class Role { kInitiator, kAcceptor };
  struct Local {
    ClusterId cluster;
    Secret secret;
    NodeId node;
    // Eight bytes for the peer, covered by the MACs.
    uint64_t attachment;
  };

  // `nonce` is used in no other handshake.
  Handshake(Role role, const Local& local, const Nonce& nonce);

  // What the initiator sends first.
  // REQUIRES: its role; called once, before Receive.
  std::string Hello();

  // Takes what the peer sent, in whatever pieces. Returns what to send now,
  // also after a refusal. REQUIRES: neither done() nor refused.
  std::string Receive(absl::string_view bytes);

  bool done() const { return done_; }
  // kNone while nothing is wrong.
  Refusal refusal() const { return refusal_; }

  // REQUIRES: done().
  NodeId peer() const { return peer_; }
  uint64_t peer_attachment() const { return peer_attachment_; }
  // A number that only the two ends know.
  uint64_t session() const { return session_; }

 private:
  using Mac = std::array<uint8_t, kMacBytes>;

  std::string ReceiveMessage(HandshakeType type, absl::string_view body);
  std::string Refuse(Refusal refusal);
  // Under the secret, over both sides' part; `purpose` keeps one from serving
  // as another.
  Mac MacFor(char purpose) const;
  bool TakeMac(absl::string_view* in, char purpose) const;

  const Role role_;
  const Local local_;
  // By role, initiator first.
  std::array<Nonce, 2> nonces_ = {};
  std::array<NodeId, 2> nodes_ = {};
  std::array<uint64_t, 2> attachments_ = {};
  HandshakeType expected_;
  std::string buffer_;
  bool done_ = false;
  Refusal refusal_ = Refusal::kNone;
  NodeId peer_ = kUnknownNode;
  uint64_t peer_attachment_ = 0;
  uint64_t session_ = 0;
};

}  // namespace cfs

#endif  // CFS_NET_HANDSHAKE_H_
