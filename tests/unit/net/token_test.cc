// Goal: a token survives being pasted, damage is noticed, and no error shows
// what was in it.
#include "cfs/net/token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/net/address.h"

namespace cfs {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Token NewToken(std::vector<std::string> seeds = {"10.0.0.1:7000", "[fe80::1]:7001"}) {
  auto token = MakeToken(std::move(seeds));
  EXPECT_TRUE(token.ok()) << token.status();
  return *std::move(token);
}

void ExpectRefused(absl::string_view text, absl::string_view why) {
  const auto token = ParseToken(text);
  ASSERT_FALSE(token.ok()) << text;
  EXPECT_EQ(token.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(token.status().message()), HasSubstr(std::string(why)));
  EXPECT_THAT(std::string(token.status().message()), Not(HasSubstr("\n")));
}

TEST(TokenTest, SurvivesBeingPasted) {
  const Token token = NewToken();
  const std::string text = FormatToken(token);
  EXPECT_EQ(text.find_first_of(" \n\t'\"$+/="), std::string::npos) << "needs no quotes";
  // Also with the line breaks of a narrow terminal.
  const auto parsed =
      ParseToken(absl::StrCat("  ", text.substr(0, 40), "\n", text.substr(40), "\r\n"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->cluster, token.cluster);
  EXPECT_TRUE(parsed->secret == token.secret);
  EXPECT_EQ(parsed->seeds, token.seeds);
}

TEST(TokenTest, EveryDamageIsNoticed) {
  const std::string text = FormatToken(NewToken());
  for (size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    // The last character's lower bits say nothing.
    damaged[i] = damaged[i] == 'A' ? 'w' : 'A';
    EXPECT_FALSE(ParseToken(damaged).ok()) << i;
    ExpectRefused(text.substr(0, i), i < 5 ? "not a token" : "damaged token");
  }
  ExpectRefused(text + "A", "damaged token");
  ExpectRefused(absl::StrCat("cfs1-", std::string(kTokenBytesMax + 1, 'A')), "damaged token");
  ExpectRefused("", "not a token");
  ExpectRefused("hunter2", "not a token");
}

TEST(TokenTest, ErrorsDoNotShowTheText) {
  const std::string text = FormatToken(NewToken());
  const auto token = ParseToken(text.substr(0, text.size() - 1));
  for (size_t i = 0; i + 8 <= text.size(); ++i) {
    EXPECT_THAT(std::string(token.status().message()), Not(HasSubstr(text.substr(i, 8))));
  }
}

TEST(TokenTest, TwoAreNeverEqual) {
  const Token a = NewToken(), b = NewToken();
  EXPECT_NE(a.cluster, b.cluster);
  EXPECT_FALSE(a.secret == b.secret);
}

TEST(TokenTest, SeedsAreAddresses) {
  EXPECT_FALSE(MakeToken({}).ok());
  EXPECT_FALSE(MakeToken({"host"}).ok());
  EXPECT_FALSE(MakeToken(std::vector<std::string>(kSeedsMax + 1, "a:1")).ok());
  const std::string longest = std::string(kHostBytesMax, 'h') + ":65535";
  const Token token = NewToken(std::vector<std::string>(kSeedsMax, longest));
  EXPECT_TRUE(ParseToken(FormatToken(token)).ok());
}

TEST(AddressTest, HostAndPort) {
  EXPECT_EQ(SplitAddress("node1:70")->host, "node1");
  EXPECT_EQ(SplitAddress("node1:70")->port, 70);
  EXPECT_EQ(SplitAddress("[::1]:0")->host, "::1");
  for (const char* bad : {"", ":", "a", "a:", ":1", "a:65536", "a:-1", "a:1x", "::1", "::1:5",
                          "[::1]", "[]:1", "a b:1", "a\n:1", "[a:1"}) {
    EXPECT_FALSE(SplitAddress(bad).ok()) << bad;
  }
  EXPECT_EQ(ParseNumericAddress("127.0.0.1:70")->ToString(), "127.0.0.1:70");
  EXPECT_EQ(ParseNumericAddress("[::1]:70")->ToString(), "[::1]:70");
  EXPECT_FALSE(ParseNumericAddress("localhost:70").ok()) << "would ask a name server";
}

}  // namespace
}  // namespace cfs
