// What nodes say to each other about their membership; methods 0x0100-0x01ff of
// a Transport. A change here is a new version, and needs an ADR.
//
// Integers are little-endian. All requests have
//
//   version(1) flags(1) node(4) incarnation(8) epoch(8)
//
// as their header: who says it, and what map it has, 0 for none. Payloads:
//
//   join       store(8) weight(4) machine text count(1) {address text}
//   heartbeat  nothing
//   map        a map or a delta, as in ring/cluster_map_format.h
//   claim      the slots that it owns where the map says otherwise: a bit each. All
//              that it owns, if a node is being removed by the map of `epoch`
//   remove     the nodes that are to be given up as lost: EncodeNodes
//
// An answer's header is version(1) code(1) epoch(8) length(2) text, and its
// payload, if any, a map or a delta.
#ifndef CFS_SERVER_MEMBERSHIP_FORMAT_H_
#define CFS_SERVER_MEMBERSHIP_FORMAT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/ring/cluster_map.h"

namespace cfs {

inline constexpr uint8_t kMembershipVersion = 1;

inline constexpr uint16_t kJoinMethod = 0x0100;       // To the keeper.
inline constexpr uint16_t kHeartbeatMethod = 0x0101;  // To the keeper, each second.
inline constexpr uint16_t kMapMethod = 0x0102;        // From the keeper.
inline constexpr uint16_t kClaimMethod = 0x0103;      // To the keeper.
inline constexpr uint16_t kRemoveMethod = 0x0104;     // To the keeper.

struct MemberRequest {
  enum Flag : uint8_t {
    kServing = 1,  // It answers the file system's calls.
    kEnding = 2,   // It ends now, in good order.
    kFirst = 4,    // A join: it has never been a member.
  };
  uint8_t flags = 0;
  NodeId node{0};
  uint64_t incarnation = 0;
  Epoch epoch{0};

  bool operator==(const MemberRequest&) const = default;
};

// Sent: values never change.
enum class MemberCode : uint8_t {
  kOk = 0,
  kNotKeeper = 1,    // `text`: an address of the keeper, or "".
  kIdTaken = 2,      // Another store has this number.
  kRefused = 3,      // `text` says why; no use in trying again.
  kNotNow = 4,       // `text` says why; to be tried again.
  kUnknownNode = 5,  // Join first.
  kGone = 6,         // Lost or removed: for ever.
  kReplaced = 7,     // Another process runs as this node.
};

struct MemberAnswer {
  MemberCode code = MemberCode::kOk;
  Epoch epoch{0};  // That the peer is at.
  std::string text;

  bool operator==(const MemberAnswer&) const = default;
};

std::string EncodeMemberRequest(const MemberRequest& request);
std::string EncodeMemberAnswer(const MemberAnswer& answer);
// Of a joiner: its state and what else is in the request are left out.
std::string EncodeJoiner(const ClusterNode& node);

// INVALID_ARGUMENT for anything that was not encoded so, UNIMPLEMENTED for
// another version. A node's texts are within the limits of a map.
absl::StatusOr<MemberRequest> DecodeMemberRequest(absl::string_view bytes);
absl::StatusOr<MemberAnswer> DecodeMemberAnswer(absl::string_view bytes);
absl::StatusOr<ClusterNode> DecodeJoiner(absl::string_view bytes);

}  // namespace cfs

#endif  // CFS_SERVER_MEMBERSHIP_FORMAT_H_
