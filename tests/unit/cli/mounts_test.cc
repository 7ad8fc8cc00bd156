// Goal: the mount table is read right, whatever names it holds.
#include "cfs/cli/mounts.h"

#include <gtest/gtest.h>

#include <vector>

namespace cfs {
namespace {

TEST(MountsTest, ReadsTheTable) {
  const std::vector<MountEntry> mounts = ParseMounts(
      "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
      "40 22 0:50 / /mnt/a\\040b rw,nosuid shared:3 master:1 - fuse.cfs cfs:/st\\134ore\\011 rw\n"
      "too short\n"
      "41 22 0:51 /sub / rw - tmpfs none rw\n");
  ASSERT_EQ(mounts.size(), 3u);
  EXPECT_EQ(mounts[1].id, 40u);
  EXPECT_EQ(mounts[1].mountpoint, "/mnt/a b");
  EXPECT_TRUE(mounts[1].is_cfs());
  EXPECT_EQ(mounts[1].store(), "/st\\ore\t");
  EXPECT_FALSE(mounts[0].is_cfs());
}

TEST(MountsTest, TheLastMountHidesTheOthers) {
  const std::vector<MountEntry> mounts = ParseMounts(
      "1 0 8:1 / /m rw - ext4 a rw\n"
      "2 1 8:2 / /m rw - ext4 b rw\n"
      "3 1 8:3 / /m/below rw - ext4 c rw\n");
  EXPECT_EQ(MountAt(mounts, "/m")->id, 2u);
  EXPECT_EQ(MountAt(mounts, "/m/"), nullptr);
  EXPECT_EQ(MountAt(mounts, "/"), nullptr);
}

TEST(MountsTest, ReadsThisMachinesTable) {
  const auto mounts = ReadMounts();
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_NE(MountAt(*mounts, "/"), nullptr);
  EXPECT_EQ(CfsMountOf("/proc/self").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace cfs
