// Goal: hashes that are stored never change.
#include "cfs/ring/hash.h"

#include "gtest/gtest.h"

namespace cfs {
namespace {

// Golden: another value strands every name and directory already placed.
TEST(HashTest, IsFrozen) {
  EXPECT_EQ(Hash64(""), 0x2d06800538d394c2u);
  EXPECT_EQ(Hash64("a"), 0xe6c632b61e964e1fu);
  EXPECT_EQ(Hash64("a name"), 0xb7cbbad9f0c307a9u);
  EXPECT_EQ(Raw(SpreadSlot(kRootInode, "home")), 0x6034u);
}

TEST(HashTest, DirectoriesSpreadOverAllSlots) {
  int low = 0;
  for (int i = 0; i < 10'000; ++i) {
    if (Raw(SpreadSlot(kRootInode, "d" + std::to_string(i))) < 0x8000) ++low;
  }
  EXPECT_GT(low, 4'700);
  EXPECT_LT(low, 5'300);
}

}  // namespace
}  // namespace cfs
