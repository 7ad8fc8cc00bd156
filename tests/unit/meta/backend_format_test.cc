// Goal: what the records say of the backend never changes by accident, and damage is
// noticed.
#include "cfs/meta/backend_format.h"

#include "absl/strings/escaping.h"
#include "cfs/meta/record_format.h"
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

TEST(BackendFormatTest, BytesOfWritebackAreFrozen) {
  const DirtyName mark{9, InodeId(258), Sample().stamp, InodeId(7), 8};
  EXPECT_EQ(absl::BytesToHexString(Encode(mark)),
            "0109000000000000000201000000000000"
            "03000000000000000400000000000000050000000000000006000000f9ffffffffffffffffc99a3b"
            "07000000000000000800000000000000");
  EXPECT_EQ(absl::BytesToHexString(Encode(BackendLinks{InodeId(7), {{InodeId(258), "ab"}}})),
            "010700000000000000020100000000000002006162");
  // As that of the name, but for the kind.
  std::string key = DentryKey(InodeId(258), "name");
  key[2] = 'm';
  EXPECT_EQ(DirtyNameKey(InodeId(258), "name"), key);
}

TEST(BackendFormatTest, MarksRoundTrip) {
  const DirtyName mark{9, InodeId(258), Sample().stamp, InodeId(7), 8};
  const auto decoded = DecodeDirtyName(Encode(mark));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(Encode(*decoded), Encode(mark));
  const BackendLinks links{InodeId(7), {{InodeId(258), "ab"}, {InodeId(3), "c"}}};
  const auto names = DecodeBackendLinks(Encode(links));
  ASSERT_TRUE(names.ok()) << names.status();
  EXPECT_EQ(names->places, links.places);
  InodeId dir;
  absl::string_view name;
  const std::string key = DirtyNameKey(InodeId(258), "name");
  ASSERT_TRUE(ParseDirtyNameKey(key, &dir, &name));
  EXPECT_EQ(dir, InodeId(258));
  EXPECT_EQ(name, "name");
  EXPECT_FALSE(ParseDirtyNameKey(DentryKey(InodeId(258), "name"), &dir, &name));
}

TEST(BackendFormatTest, DamageOfMarksIsNoticed) {
  const std::string mark = Encode(DirtyName{.since = 1});
  for (size_t i = 0; i < mark.size(); ++i) EXPECT_FALSE(DecodeDirtyName(mark.substr(0, i)).ok());
  EXPECT_FALSE(DecodeDirtyName(mark + "x").ok());
  const std::string links = Encode(BackendLinks{InodeId(7), {{InodeId(258), "ab"}}});
  for (size_t i = 0; i < links.size(); ++i) {
    // Without places it is one, too.
    EXPECT_EQ(DecodeBackendLinks(links.substr(0, i)).ok(), i == 9) << i;
  }
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
