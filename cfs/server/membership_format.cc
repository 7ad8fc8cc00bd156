#include "cfs/server/membership_format.h"

#include "absl/strings/str_cat.h"
#include "cfs/base/coding.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"

namespace cfs {
namespace {

constexpr uint8_t kFlags = MemberRequest::kServing | MemberRequest::kEnding | MemberRequest::kFirst;
constexpr size_t kTextBytesMax = 512;
static_assert(kTextBytesMax + 12 <= kCallHeaderBytesMax);

absl::Status Garbage() { return absl::InvalidArgumentError("membership: not a message"); }

absl::Status ConsumeVersion(absl::string_view* in) {
  uint8_t version;
  if (!ConsumeLittle(in, &version)) return Garbage();
  if (version == kMembershipVersion) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("membership: a message of version ", version,
                                               "; this cfs knows ", kMembershipVersion));
}

}  // namespace

std::string EncodeMemberRequest(const MemberRequest& request) {
  std::string out;
  AppendLittle(&out, kMembershipVersion);
  AppendLittle(&out, request.flags);
  AppendLittle(&out, Raw(request.node));
  AppendLittle(&out, request.incarnation);
  AppendLittle(&out, Raw(request.epoch));
  return out;
}

std::string EncodeMemberAnswer(const MemberAnswer& answer) {
  std::string out;
  AppendLittle(&out, kMembershipVersion);
  AppendLittle(&out, static_cast<uint8_t>(answer.code));
  AppendLittle(&out, Raw(answer.epoch));
  AppendSized<uint16_t>(&out, absl::string_view(answer.text).substr(0, kTextBytesMax));
  return out;
}

std::string EncodeJoiner(const ClusterNode& node) {
  std::string out;
  AppendLittle(&out, node.store);
  AppendLittle(&out, node.weight);
  AppendSized<uint8_t>(&out, node.machine);
  AppendLittle(&out, static_cast<uint8_t>(node.addresses.size()));
  for (const std::string& address : node.addresses) AppendSized<uint8_t>(&out, address);
  return out;
}

absl::StatusOr<MemberRequest> DecodeMemberRequest(absl::string_view in) {
  CFS_RETURN_IF_ERROR(ConsumeVersion(&in));
  MemberRequest request;
  uint32_t node;
  uint64_t epoch;
  if (!ConsumeLittle(&in, &request.flags) || !ConsumeLittle(&in, &node) ||
      !ConsumeLittle(&in, &request.incarnation) || !ConsumeLittle(&in, &epoch) || !in.empty() ||
      (request.flags & ~kFlags) != 0 || node == 0 || request.incarnation == 0) {
    return Garbage();
  }
  request.node = NodeId{node};
  request.epoch = Epoch{epoch};
  return request;
}

absl::StatusOr<MemberAnswer> DecodeMemberAnswer(absl::string_view in) {
  CFS_RETURN_IF_ERROR(ConsumeVersion(&in));
  MemberAnswer answer;
  uint8_t code;
  uint64_t epoch;
  if (!ConsumeLittle(&in, &code) || !ConsumeLittle(&in, &epoch) ||
      !ConsumeSized<uint16_t>(&in, &answer.text) || !in.empty() ||
      answer.text.size() > kTextBytesMax || code > static_cast<uint8_t>(MemberCode::kReplaced)) {
    return Garbage();
  }
  answer.code = static_cast<MemberCode>(code);
  answer.epoch = Epoch{epoch};
  return answer;
}

absl::StatusOr<ClusterNode> DecodeJoiner(absl::string_view in) {
  ClusterNode node;
  uint8_t addresses;
  if (!ConsumeLittle(&in, &node.store) || !ConsumeLittle(&in, &node.weight) ||
      !ConsumeSized<uint8_t>(&in, &node.machine) || !ConsumeLittle(&in, &addresses) ||
      addresses == 0 || addresses > kNodeAddressesMax || node.machine.empty() ||
      node.weight > kNodeWeightMax) {
    return Garbage();
  }
  for (; addresses > 0; --addresses) {
    std::string& address = node.addresses.emplace_back();
    if (!ConsumeSized<uint8_t>(&in, &address) || address.empty()) return Garbage();
  }
  if (!in.empty()) return Garbage();
  return node;
}

}  // namespace cfs
