#include "cfs/meta/xattr.h"

#include <gtest/gtest.h>

namespace cfs {
namespace {

TEST(FlushPolicyTest, Values) {
  ASSERT_TRUE(ParseFlushPolicy("never").has_value());
  EXPECT_TRUE(ParseFlushPolicy("never")->never);
  ASSERT_TRUE(ParseFlushPolicy("close").has_value());
  EXPECT_FALSE(ParseFlushPolicy("close")->never);
  EXPECT_EQ(ParseFlushPolicy("close")->seconds, 0);
  EXPECT_EQ(ParseFlushPolicy("30s")->seconds, 30);
  EXPECT_EQ(ParseFlushPolicy("604800s")->seconds, 604800);
}

TEST(FlushPolicyTest, OthersMeanNothing) {
  for (const char* value : {"", "s", "30", "-1s", "+1s", " 1s", "1 s", "1ss", "604801s",
                            "99999999999999999999s", "Never", "never ", "always"}) {
    EXPECT_FALSE(ParseFlushPolicy(value).has_value()) << value;
  }
}

}  // namespace
}  // namespace cfs
