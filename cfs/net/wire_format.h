// What nodes say to each other. A change here is a new kProtocolVersion, new
// golden bytes in tests/unit/net, and a decision record.
#ifndef CFS_NET_WIRE_FORMAT_H_
#define CFS_NET_WIRE_FORMAT_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "cfs/base/coding.h"
#include "cfs/base/crc32c.h"
#include "cfs/base/limits.h"

namespace cfs {

// 2: checksums of payloads. 3: lost nodes.
inline constexpr uint16_t kProtocolVersion = 3;

// ---- The handshake, over a TCP connection of its own, little-endian ----
//
// Each message begins with the magic number (4), the protocol version (2), the
// type (1) and a Refusal (1); these eight bytes stay as they are for ever.
//     hello      cluster id (16), node (4), nonce (32)
//     challenge  node (4), nonce (32), attachment (8), MAC (32)
//     proof      attachment (8), MAC (32)
//     accepted   nothing
//     refused    nothing
inline constexpr uint32_t kHandshakeMagic = 0x48736663;  // "cfsH"
inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kMacBytes = 32;

enum class HandshakeType : uint8_t {
  kHello = 1,
  kChallenge = 2,
  kProof = 3,
  kAccepted = 4,
  kRefused = 5,
};

// Why a peer is not talked to.
enum class Refusal : uint8_t {
  kNone = 0,
  kGarbage = 1,
  kOtherProtocol = 2,
  kOtherCluster = 3,
  kWrongSecret = 4,
};

// ---- Active Messages ----

enum class MessageType : uint8_t { kRequest = 1, kReply = 2, kPing = 3, kPong = 4 };

// Of a reply: why the transport answers instead of the method's handler.
enum class ReplyCode : uint8_t { kOk = 0, kUnknownMethod = 1, kNoRoom = 2, kDamaged = 3 };

// The first 32 bytes of each message; the caller's header follows, then, as the
// data of the Active Message, the payload.
struct WireHeader {
  uint64_t session = 0;  // That the handshake gave. Unguessable.
  uint64_t request = 0;  // The caller's number of the call.
  uint32_t payload_bytes = 0;
  uint16_t header_bytes = 0;
  uint16_t method = 0;
  MessageType type{};
  ReplyCode code{};
  // Two bytes of zeros, then
  uint32_t payload_checksum = 0;
};
inline constexpr size_t kWireHeaderBytes = 32;

// CRC-32C; 0 for a payload of up to this size, which has none.
inline constexpr size_t kUncheckedPayloadBytesMax = 4096;
inline uint32_t PayloadChecksum(absl::string_view payload) {
  return payload.size() <= kUncheckedPayloadBytesMax ? 0 : Crc32c(payload);
}

inline void AppendWireHeader(std::string* out, const WireHeader& header) {
  AppendLittle(out, header.session);
  AppendLittle(out, header.request);
  AppendLittle(out, header.payload_bytes);
  AppendLittle(out, header.header_bytes);
  AppendLittle(out, header.method);
  AppendLittle(out, static_cast<uint8_t>(header.type));
  AppendLittle(out, static_cast<uint8_t>(header.code));
  AppendLittle(out, uint16_t{0});
  AppendLittle(out, header.payload_checksum);
}

// Takes a message's header off `in`, so that the caller's is left. False when
// it is none, or contradicts the sizes of what has come.
[[nodiscard]] inline bool ConsumeWireHeader(absl::string_view* in, size_t payload_bytes,
                                            WireHeader* header) {
  uint8_t type = 0, code = 0;
  uint16_t zeros = 0;
  if (!ConsumeLittle(in, &header->session) || !ConsumeLittle(in, &header->request) ||
      !ConsumeLittle(in, &header->payload_bytes) || !ConsumeLittle(in, &header->header_bytes) ||
      !ConsumeLittle(in, &header->method) || !ConsumeLittle(in, &type) ||
      !ConsumeLittle(in, &code) || !ConsumeLittle(in, &zeros) ||
      !ConsumeLittle(in, &header->payload_checksum)) {
    return false;
  }
  header->type = static_cast<MessageType>(type);
  header->code = static_cast<ReplyCode>(code);
  return type >= 1 && type <= static_cast<uint8_t>(MessageType::kPong) &&
         code <= static_cast<uint8_t>(ReplyCode::kDamaged) && zeros == 0 &&
         (payload_bytes > kUncheckedPayloadBytesMax || header->payload_checksum == 0) &&
         header->header_bytes == in->size() && header->payload_bytes == payload_bytes &&
         header->header_bytes <= kCallHeaderBytesMax && payload_bytes <= kCallPayloadBytesMax;
}

}  // namespace cfs

#endif  // CFS_NET_WIRE_FORMAT_H_
