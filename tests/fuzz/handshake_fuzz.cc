// What a peer sends during the handshake, to the acceptor (selector 0) and the
// initiator (1), in pieces of the selector's other bits. Only the bytes of the
// peer that has the secret, which are the seeds, get to the end.
#include <algorithm>

#include "cfs/base/check.h"
#include "cfs/net/handshake.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {
namespace {

using Role = Handshake::Role;

Handshake Make(Role role) {
  Handshake::Local local = {.cluster = {9, 9}, .secret = {}, .node = NodeId{1}, .attachment = 0x11};
  std::fill_n(local.secret.data(), Secret::kBytes, uint8_t{7});
  Nonce nonce = {};
  nonce.fill(0xaa);
  if (role == Role::kAcceptor) {
    local.node = NodeId{2};
    local.attachment = 0x22;
    nonce.fill(0xbb);
  }
  return Handshake(role, local, nonce);
}

struct Conversation {
  // All that each of them sends.
  std::string to_acceptor, to_initiator;
  uint64_t session;
};

Conversation Converse() {
  Handshake initiator = Make(Role::kInitiator), acceptor = Make(Role::kAcceptor);
  const std::string hello = initiator.Hello();
  const std::string challenge = acceptor.Receive(hello);
  const std::string proof = initiator.Receive(challenge);
  const std::string accepted = acceptor.Receive(proof);
  CFS_CHECK(initiator.Receive(accepted).empty());
  CFS_CHECK(initiator.done() && acceptor.done());
  return {hello + proof, challenge + accepted, acceptor.session()};
}

// No message is longer, or a stranger could have much sent for little.
constexpr size_t kMessageBytesMax = 84;

}  // namespace

bool FuzzOne(absl::string_view input) {
  static const Conversation* const genuine = new Conversation(Converse());
  const unsigned selector = TakeSelector(&input);
  const Role role = selector % 2 == 0 ? Role::kAcceptor : Role::kInitiator;
  const size_t piece = 1 + selector / 2;
  Handshake end = Make(role);
  if (role == Role::kInitiator) CFS_CHECK(!end.Hello().empty());
  std::string taken;
  while (!input.empty() && !end.done() && end.refusal() == Refusal::kNone) {
    const absl::string_view bytes = input.substr(0, piece);
    input.remove_prefix(bytes.size());
    taken.append(bytes.data(), bytes.size());
    CFS_CHECK(end.Receive(bytes).size() <= kMessageBytesMax);
  }
  CFS_CHECK(!end.done() || end.refusal() == Refusal::kNone);
  if (!end.done()) return false;
  CFS_CHECK(taken == (role == Role::kAcceptor ? genuine->to_acceptor : genuine->to_initiator));
  CFS_CHECK(end.session() == genuine->session);
  CFS_CHECK(end.peer() == NodeId{role == Role::kAcceptor ? 1u : 2u});
  return true;
}

std::vector<std::string> FuzzSeeds() {
  const Conversation genuine = Converse();
  std::vector<std::string> seeds;
  // Selectors for pieces of one byte and of two; the messages have even lengths.
  for (const char selector : {0, 2}) {
    seeds.push_back(std::string(1, selector) + genuine.to_acceptor);
    seeds.push_back(std::string(1, static_cast<char>(selector + 1)) + genuine.to_initiator);
  }
  return seeds;
}

}  // namespace cfs
