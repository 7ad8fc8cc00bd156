// Goal: what is decoded is what was encoded, and no bytes do harm. Method: every
// truncation, every value of every byte.
#include "cfs/server/membership_format.h"

#include <gtest/gtest.h>

#include "cfs/base/limits.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

using absl::StatusCode;

ClusterNode Joiner() {
  ClusterNode node;
  node.store = 0x1122334455667788;
  node.weight = 70;
  node.machine = "machine";
  node.addresses = {"10.0.0.1:7000", "[fe80::1]:7000"};
  return node;
}

MemberRequest Request() {
  return {MemberRequest::kServing | MemberRequest::kFirst, NodeId{7}, 0x8877665544332211, Epoch{9}};
}

TEST(MembershipFormatTest, MessagesSurvive) {
  const auto request = DecodeMemberRequest(EncodeMemberRequest(Request()));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(*request, Request());
  for (int code = 0; code <= static_cast<int>(MemberCode::kReplaced); ++code) {
    const MemberAnswer sent = {static_cast<MemberCode>(code), Epoch{5}, "a reason"};
    const auto answer = DecodeMemberAnswer(EncodeMemberAnswer(sent));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(*answer, sent);
  }
  const auto joiner = DecodeJoiner(EncodeJoiner(Joiner()));
  ASSERT_TRUE(joiner.ok()) << joiner.status();
  EXPECT_EQ(*joiner, Joiner());
}

TEST(MembershipFormatTest, ALongTextIsCut) {
  const auto answer = DecodeMemberAnswer(
      EncodeMemberAnswer({MemberCode::kRefused, Epoch{1}, std::string(5'000, 'x')}));
  ASSERT_TRUE(answer.ok());
  EXPECT_LT(EncodeMemberAnswer(*answer).size(), kCallHeaderBytesMax);
}

TEST(MembershipFormatTest, NothingElseIsAccepted) {
  const std::string request = EncodeMemberRequest(Request());
  const std::string answer = EncodeMemberAnswer({MemberCode::kOk, Epoch{5}, "text"});
  const std::string joiner = EncodeJoiner(Joiner());
  for (size_t size = 0; size < request.size(); ++size) {
    EXPECT_FALSE(DecodeMemberRequest(request.substr(0, size)).ok());
  }
  for (size_t size = 0; size < answer.size(); ++size) {
    EXPECT_FALSE(DecodeMemberAnswer(answer.substr(0, size)).ok());
  }
  for (size_t size = 0; size < joiner.size(); ++size) {
    EXPECT_FALSE(DecodeJoiner(joiner.substr(0, size)).ok());
  }
  EXPECT_FALSE(DecodeMemberRequest(request + "x").ok());
  EXPECT_FALSE(DecodeMemberAnswer(answer + "x").ok());
  EXPECT_FALSE(DecodeJoiner(joiner + "x").ok());

  std::string bad = request;
  bad[0] = kMembershipVersion + 1;
  EXPECT_EQ(DecodeMemberRequest(bad).status().code(), StatusCode::kUnimplemented);
  bad = request;
  bad[1] = 8;  // An unknown flag.
  EXPECT_FALSE(DecodeMemberRequest(bad).ok());
  bad = answer;
  bad[1] = static_cast<char>(MemberCode::kReplaced) + 1;
  EXPECT_FALSE(DecodeMemberAnswer(bad).ok());
  MemberRequest nobody = Request();
  nobody.node = NodeId{0};
  EXPECT_FALSE(DecodeMemberRequest(EncodeMemberRequest(nobody)).ok());
  nobody = Request();
  nobody.incarnation = 0;
  EXPECT_FALSE(DecodeMemberRequest(EncodeMemberRequest(nobody)).ok());
  for (auto spoil : {+[](ClusterNode* n) { n->addresses.clear(); },
                     +[](ClusterNode* n) { n->addresses.resize(kNodeAddressesMax + 1, "a:1"); },
                     +[](ClusterNode* n) { n->addresses[0].clear(); },
                     +[](ClusterNode* n) { n->machine.clear(); },
                     +[](ClusterNode* n) { n->weight = kNodeWeightMax + 1; }}) {
    ClusterNode node = Joiner();
    spoil(&node);
    EXPECT_FALSE(DecodeJoiner(EncodeJoiner(node)).ok());
  }
}

TEST(MembershipFormatTest, AnyByteDoesNoHarm) {
  const std::string joiner = EncodeJoiner(Joiner());
  int accepted = 0;
  for (size_t i = 0; i < joiner.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      std::string bytes = joiner;
      bytes[i] = static_cast<char>(value);
      const auto node = DecodeJoiner(bytes);
      if (!node.ok()) continue;
      ++accepted;
      EXPECT_EQ(EncodeJoiner(*node), bytes);
    }
  }
  EXPECT_GT(accepted, 1'000);
}

// Golden bytes: a change here is a new version, and needs an ADR.
TEST(MembershipFormatTest, BytesAreFrozen) {
  EXPECT_EQ(Hash64(EncodeMemberRequest(Request())), 0xad41718a15c4ed2fu);
  EXPECT_EQ(Hash64(EncodeMemberAnswer({MemberCode::kGone, Epoch{5}, "text"})), 0x7859b6a6ce6d3de7u);
  EXPECT_EQ(Hash64(EncodeJoiner(Joiner())), 0x4588d01b3abb232cu);
}

}  // namespace
}  // namespace cfs
