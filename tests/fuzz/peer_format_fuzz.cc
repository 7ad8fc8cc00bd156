// What nodes send each other of files and of membership; the selector says which.
// What is taken is, byte for byte, what would be sent.
#include "cfs/server/peer_format.h"

#include "cfs/base/check.h"
#include "cfs/server/membership_format.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {
namespace {

enum Selector : char {
  kRequestHeader,
  kAnswerHeader,
  kCaller,
  kSetAttr,
  kLock,
  kAttr,
  kSpace,
  kEntries,
  kNames,
  kMemberRequest,
  kMemberAnswer,
  kJoiner,
  kFreshData,
  kSelectors,
};

template <typename T>
bool Check(absl::string_view input) {
  T value{};
  Unpacker in(input);
  if (!in.Take(&value)) return false;
  CFS_CHECK(Packer().Add(value).Take() == input.substr(0, input.size() - in.rest().size()));
  return true;
}

template <typename T, typename Encode>
bool CheckMember(const absl::StatusOr<T>& value, absl::string_view input, Encode encode) {
  if (!value.ok()) return false;
  CFS_CHECK(encode(*value) == input);
  return true;
}

}  // namespace

bool FuzzOne(absl::string_view input) {
  switch (static_cast<Selector>(TakeSelector(&input) % kSelectors)) {
    case kRequestHeader:
      return Check<PeerHeader>(input);
    case kAnswerHeader:
      return Check<PeerAnswerHeader>(input);
    case kCaller:
      return Check<Caller>(input);
    case kSetAttr:
      return Check<SetAttrRequest>(input);
    case kLock:
      return Check<FileLock>(input);
    case kAttr:
      return Check<Attr>(input);
    case kSpace:
      return Check<struct statvfs>(input);
    case kFreshData:
      return Check<FreshData>(input);
    case kEntries:
      return Check<std::vector<ListedEntry>>(input);
    case kNames:
      return Check<std::vector<std::string>>(input);
    case kMemberRequest:
      return CheckMember(DecodeMemberRequest(input), input, EncodeMemberRequest);
    case kMemberAnswer:
      return CheckMember(DecodeMemberAnswer(input), input, EncodeMemberAnswer);
    case kJoiner:
      return CheckMember(DecodeJoiner(input), input, EncodeJoiner);
    case kSelectors:
      break;
  }
  return false;
}

std::vector<std::string> FuzzSeeds() {
  const struct statvfs space {};
  ListedEntry plain, full;
  plain.entry.name = "plain";
  full.entry.name = "full";
  full.has_attr = true;
  ClusterNode node;
  node.machine = "machine";
  node.addresses = {"10.0.0.1:7000"};
  std::vector<std::string> seeds;
  for (const auto& [selector, bytes] : {
           std::pair(kRequestHeader, Packer().Add(PeerHeader()).Take()),
           {kAnswerHeader, Packer().Add(PeerAnswerHeader()).Take()},
           {kCaller, Packer().Add(Caller()).Take()},
           {kSetAttr, Packer().Add(SetAttrRequest()).Take()},
           {kLock, Packer().Add(FileLock()).Take()},
           {kAttr, Packer().Add(Attr()).Take()},
           {kSpace, Packer().Add(space).Take()},
           {kFreshData, Packer().Add(FreshData()).Take()},
           {kEntries, Packer().Add(std::vector<ListedEntry>{plain, full}).Take()},
           {kNames, Packer().Add(std::vector<std::string>{"user.a", "user.b"}).Take()},
           {kMemberRequest, EncodeMemberRequest({0, NodeId{7}, 1, Epoch{9}})},
           {kMemberAnswer, EncodeMemberAnswer({MemberCode::kOk, Epoch{5}, "text"})},
           {kJoiner, EncodeJoiner(node)},
       }) {
    seeds.push_back(std::string(1, selector) + bytes);
  }
  return seeds;
}

}  // namespace cfs
