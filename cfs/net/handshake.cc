#include "cfs/net/handshake.h"

#include <sodium.h>

#include <algorithm>

#include "cfs/base/check.h"
#include "cfs/base/coding.h"

namespace cfs {
namespace {

static_assert(kMacBytes == crypto_auth_BYTES && Secret::kBytes == crypto_auth_KEYBYTES);

constexpr size_t kPrefixBytes = 8;
constexpr int kInitiator = 0, kAcceptor = 1;
constexpr char kAcceptorProof = 'A', kInitiatorProof = 'I', kSession = 'S';

std::string Message(HandshakeType type, Refusal refusal = Refusal::kNone) {
  std::string out;
  AppendLittle(&out, kHandshakeMagic);
  AppendLittle(&out, kProtocolVersion);
  AppendLittle(&out, static_cast<uint8_t>(type));
  AppendLittle(&out, static_cast<uint8_t>(refusal));
  return out;
}

size_t BodyBytes(HandshakeType type) {
  switch (type) {
    case HandshakeType::kHello:
      return sizeof(ClusterId) + sizeof(uint32_t) + kNonceBytes;
    case HandshakeType::kChallenge:
      return sizeof(uint32_t) + kNonceBytes + sizeof(uint64_t) + kMacBytes;
    case HandshakeType::kProof:
      return sizeof(uint64_t) + kMacBytes;
    case HandshakeType::kAccepted:
    case HandshakeType::kRefused:
      break;
  }
  return 0;
}

template <typename Bytes>
void AppendBytes(std::string* out, const Bytes& bytes) {
  out->append(bytes.begin(), bytes.end());
}

// REQUIRES: `in` is long enough.
template <typename Bytes>
void TakeBytes(absl::string_view* in, Bytes* bytes) {
  CFS_CHECK(in->size() >= bytes->size());
  std::copy_n(in->begin(), bytes->size(), bytes->begin());
  in->remove_prefix(bytes->size());
}

template <typename T>
T TakeLittle(absl::string_view* in) {
  T value;
  CFS_CHECK(ConsumeLittle(in, &value));
  return value;
}

}  // namespace

Nonce RandomNonce() {
  Nonce nonce;
  randombytes_buf(nonce.data(), nonce.size());
  return nonce;
}

absl::string_view RefusalText(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "";
    case Refusal::kGarbage:
      return "does not speak the protocol of cfs";
    case Refusal::kOtherProtocol:
      return "speaks another version of the protocol";
    case Refusal::kOtherCluster:
      return "belongs to another cluster";
    case Refusal::kWrongSecret:
      return "has another secret";
  }
  return "";
}

Handshake::Handshake(Role role, const Local& local, const Nonce& nonce)
    : role_(role),
      local_(local),
      expected_(role == Role::kInitiator ? HandshakeType::kChallenge : HandshakeType::kHello) {
  const int self = role == Role::kInitiator ? kInitiator : kAcceptor;
  nonces_[self] = nonce;
  nodes_[self] = local.node;
  attachments_[self] = local.attachment;
}

std::string Handshake::Hello() {
  CFS_CHECK(role_ == Role::kInitiator && buffer_.empty());
  std::string out = Message(HandshakeType::kHello);
  AppendBytes(&out, local_.cluster);
  AppendLittle(&out, Raw(local_.node));
  AppendBytes(&out, nonces_[kInitiator]);
  return out;
}

std::string Handshake::Receive(absl::string_view bytes) {
  CFS_CHECK(!done_);
  CFS_CHECK(refusal_ == Refusal::kNone);
  // Nobody sends ahead: a message too many is as wrong as another one.
  const size_t wanted = kPrefixBytes + BodyBytes(expected_);
  if (bytes.size() > wanted - buffer_.size()) {
    bytes = bytes.substr(0, wanted - buffer_.size() + 1);
  }
  buffer_.append(bytes.data(), bytes.size());

  absl::string_view in = buffer_;
  uint32_t magic = 0;
  uint16_t version = 0;
  uint8_t type = 0, code = 0;
  if (in.substr(0, 4) != absl::string_view("cfsH").substr(0, in.size())) {
    return Refuse(Refusal::kGarbage);
  }
  if (!ConsumeLittle(&in, &magic) || !ConsumeLittle(&in, &version) || !ConsumeLittle(&in, &type) ||
      !ConsumeLittle(&in, &code)) {
    return "";
  }
  if (type == static_cast<uint8_t>(HandshakeType::kRefused)) {
    // Without an answer, or two ends could refuse each other for ever.
    refusal_ = code >= 1 && code <= static_cast<uint8_t>(Refusal::kWrongSecret)
                   ? static_cast<Refusal>(code)
                   : Refusal::kGarbage;
    return "";
  }
  if (version != kProtocolVersion) return Refuse(Refusal::kOtherProtocol);
  if (type != static_cast<uint8_t>(expected_) || code != 0 || buffer_.size() > wanted) {
    return Refuse(Refusal::kGarbage);
  }
  if (buffer_.size() < wanted) return "";
  std::string out = ReceiveMessage(expected_, in);
  buffer_.clear();
  return out;
}

std::string Handshake::ReceiveMessage(HandshakeType type, absl::string_view body) {
  if (type == HandshakeType::kHello) {
    ClusterId cluster;
    TakeBytes(&body, &cluster);
    if (cluster != local_.cluster) return Refuse(Refusal::kOtherCluster);
    nodes_[kInitiator] = NodeId{TakeLittle<uint32_t>(&body)};
    TakeBytes(&body, &nonces_[kInitiator]);
    std::string out = Message(HandshakeType::kChallenge);
    AppendLittle(&out, Raw(nodes_[kAcceptor]));
    AppendBytes(&out, nonces_[kAcceptor]);
    AppendLittle(&out, attachments_[kAcceptor]);
    AppendBytes(&out, MacFor(kAcceptorProof));
    expected_ = HandshakeType::kProof;
    return out;
  }
  if (type == HandshakeType::kChallenge) {
    nodes_[kAcceptor] = NodeId{TakeLittle<uint32_t>(&body)};
    TakeBytes(&body, &nonces_[kAcceptor]);
    attachments_[kAcceptor] = TakeLittle<uint64_t>(&body);
    if (!TakeMac(&body, kAcceptorProof)) return Refuse(Refusal::kWrongSecret);
    std::string out = Message(HandshakeType::kProof);
    AppendLittle(&out, attachments_[kInitiator]);
    AppendBytes(&out, MacFor(kInitiatorProof));
    expected_ = HandshakeType::kAccepted;
    return out;
  }
  if (type == HandshakeType::kProof) {
    attachments_[kInitiator] = TakeLittle<uint64_t>(&body);
    if (!TakeMac(&body, kInitiatorProof)) return Refuse(Refusal::kWrongSecret);
  }
  const int other = role_ == Role::kInitiator ? kAcceptor : kInitiator;
  peer_ = nodes_[other];
  peer_attachment_ = attachments_[other];
  const Mac session = MacFor(kSession);
  absl::string_view bytes(reinterpret_cast<const char*>(session.data()), session.size());
  session_ = TakeLittle<uint64_t>(&bytes);
  done_ = true;
  return type == HandshakeType::kProof ? Message(HandshakeType::kAccepted) : "";
}

std::string Handshake::Refuse(Refusal refusal) {
  refusal_ = refusal;
  return Message(HandshakeType::kRefused, refusal);
}

Handshake::Mac Handshake::MacFor(char purpose) const {
  std::string text(1, purpose);
  AppendLittle(&text, kProtocolVersion);
  AppendBytes(&text, local_.cluster);
  for (const NodeId node : nodes_) AppendLittle(&text, Raw(node));
  for (const Nonce& nonce : nonces_) AppendBytes(&text, nonce);
  AppendLittle(&text, attachments_[kAcceptor]);
  // The acceptor proves itself before it has seen the initiator's attachment.
  if (purpose != kAcceptorProof) AppendLittle(&text, attachments_[kInitiator]);
  Mac mac;
  crypto_auth(mac.data(), reinterpret_cast<const unsigned char*>(text.data()), text.size(),
              local_.secret.data());
  return mac;
}

bool Handshake::TakeMac(absl::string_view* in, char purpose) const {
  Mac mac;
  TakeBytes(in, &mac);
  const Mac wanted = MacFor(purpose);
  return sodium_memcmp(mac.data(), wanted.data(), mac.size()) == 0;
}

}  // namespace cfs
