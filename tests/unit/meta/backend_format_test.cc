// Goal: what the records say of the backend never changes by accident, and damage is
// noticed.
#include "cfs/meta/backend_format.h"

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

BackendIdentity Sample() {
  return {InodeId(258), "name", {3, 4, {5, 6}, {-7, 999999999}}, {8, 9}};
}

// Golden bytes: a change here is a new version, and needs an ADR.
TEST(BackendFormatTest, BytesAreFrozen) {
  EXPECT_EQ(absl::BytesToHexString(Encode(Sample())),
            "01020100000000000003000000000000000400000000000000050000000000000006000000f9ffffff"
            "ffffffffffc99a3b080000000000000009000000"
            "04006e616d65");
  EXPECT_EQ(absl::BytesToHexString(BackendLinkKey(258)), "0330790000000000000102");
}

TEST(BackendFormatTest, RoundTrips) {
  const auto identity = DecodeBackendIdentity(Encode(Sample()));
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ(Encode(*identity), Encode(Sample()));
  EXPECT_TRUE(identity->stamp == Sample().stamp);
}

TEST(BackendFormatTest, DamageIsNoticed) {
  const std::string good = Encode(Sample());
  for (size_t i = 0; i < good.size(); ++i) {
    EXPECT_FALSE(DecodeBackendIdentity(good.substr(0, i)).ok()) << i;
  }
  EXPECT_FALSE(DecodeBackendIdentity(good + "x").ok());
  std::string newer = good;
  newer[0] = 2;
  EXPECT_TRUE(absl::IsUnimplemented(DecodeBackendIdentity(newer).status()));
}

}  // namespace
}  // namespace cfs
