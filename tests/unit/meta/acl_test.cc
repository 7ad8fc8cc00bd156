// Goal: ACL arithmetic as POSIX 1003.1e has it.
#include "cfs/meta/acl.h"

#include <initializer_list>

#include "cfs/base/coding.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

struct E {
  uint16_t tag, perm;
  uint32_t id = ~0u;
};
constexpr uint16_t kUserObj = 1, kUser = 2, kGroupObj = 4, kMask = 16, kOther = 32;

std::string Xattr(std::initializer_list<E> entries) {
  std::string out;
  AppendLittle(&out, uint32_t{2});
  for (const E& e : entries) {
    AppendLittle(&out, e.tag);
    AppendLittle(&out, e.perm);
    AppendLittle(&out, e.id);
  }
  return out;
}

TEST(AclTest, MinimalAclIsItsMode) {
  const auto acl = Acl::Parse(Xattr({{kUserObj, 6}, {kGroupObj, 4}, {kOther, 0}}));
  ASSERT_TRUE(acl.ok());
  EXPECT_TRUE(acl->IsMinimal());
  EXPECT_EQ(acl->ModeBits(), 0640u);
}

TEST(AclTest, MaskStandsForTheGroupBits) {
  auto acl = Acl::Parse(Xattr({{kUserObj, 7}, {kUser, 6, 1000}, {kGroupObj, 5}, {kMask, 4}, {kOther, 1}}));
  ASSERT_TRUE(acl.ok());
  EXPECT_FALSE(acl->IsMinimal());
  EXPECT_EQ(acl->ModeBits(), 0741u);
  acl->SetModeBits(0620);
  EXPECT_EQ(acl->Encode(),
            Xattr({{kUserObj, 6}, {kUser, 6, 1000}, {kGroupObj, 5}, {kMask, 2}, {kOther, 0}}));
}

TEST(AclTest, InheritanceTakesAwayWhatTheModeDoesNotGive) {
  auto acl = Acl::Parse(Xattr({{kUserObj, 7}, {kUser, 7, 5}, {kGroupObj, 7}, {kMask, 7}, {kOther, 5}}));
  ASSERT_TRUE(acl.ok());
  EXPECT_EQ(acl->InheritInto(0100640), 0100640u);
  EXPECT_EQ(acl->ModeBits(), 0640u);
}

TEST(AclTest, RefusesWhatIsMalformed) {
  for (const std::string& bad : {
           std::string("xy"), Xattr({}), Xattr({{kUserObj, 6}, {kGroupObj, 4}}),
           Xattr({{kUserObj, 6}, {kUserObj, 6}, {kGroupObj, 4}, {kOther, 0}}),
           Xattr({{kUserObj, 8}, {kGroupObj, 4}, {kOther, 0}}),
           Xattr({{kUserObj, 6}, {kUser, 6, 1}, {kGroupObj, 4}, {kOther, 0}}),
           Xattr({{kGroupObj, 4}, {kUserObj, 6}, {kOther, 0}})}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Acl::Parse(bad).status()));
  }
}

}  // namespace
}  // namespace cfs
