// Goal: what nodes ask and answer is what was asked and answered, and no bytes do
// harm. Method: each kind of value there and back; every truncation.
#include "cfs/server/peer_format.h"

#include <dirent.h>
#include <gtest/gtest.h>

namespace cfs {
namespace {

Attr SomeAttr() {
  Attr attr;
  attr.st.st_ino = 0x123456789abcdef0;
  attr.st.st_mode = S_IFREG | 04755;
  attr.st.st_nlink = 3;
  attr.st.st_uid = 1000;
  attr.st.st_gid = 0xfffffffe;
  attr.st.st_rdev = 0x1234567890;
  attr.st.st_size = INT64_MAX;
  attr.st.st_blocks = 77;
  attr.st.st_blksize = 4096;
  attr.st.st_atim = {-5, 999'999'999};
  attr.st.st_mtim = {1, 2};
  attr.st.st_ctim = {3, 4};
  attr.btime = {5, 6};
  attr.stable = false;
  attr.fresh = true;
  attr.home = NodeId{42};
  attr.backing = BackingId{1u << 20};
  return attr;
}

// Encodings are compared, for the structures have no operator==.
template <typename T>
void ExpectSurvives(const T& value) {
  const std::string bytes = Packer().Add(value).Take();
  T back{};
  Unpacker in(bytes);
  ASSERT_TRUE(in.Take(&back));
  EXPECT_TRUE(in.rest().empty());
  EXPECT_EQ(Packer().Add(back).Take(), bytes);
  for (size_t length = 0; length < bytes.size(); ++length) {
    T other{};
    EXPECT_FALSE(Unpacker(absl::string_view(bytes).substr(0, length)).Take(&other)) << length;
  }
}

TEST(PeerFormatTest, ValuesSurvive) {
  ExpectSurvives(PeerHeader{1, 2, 3, 4, 5, true, false});
  ExpectSurvives(PeerAnswerHeader{EIO, true, 1, UINT64_MAX});
  ExpectSurvives(Caller{1, 2, -3, 022});
  ExpectSurvives(SetAttrRequest{kSetSize | kSetAtime, 0644, 1, 2, 3, {4, 5}, {6, 7}});
  ExpectSurvives(FileLock{0, UINT64_MAX, F_WRLCK, -1});
  ExpectSurvives(SomeAttr());
  struct statvfs space {};
  space.f_blocks = 1u << 30;
  ExpectSurvives(space);
  ExpectSurvives(FreshData{BackingId{9}, {1, 2}});
  ListedEntry plain, full;
  plain.entry = {"plain", InodeId{7}, DT_DIR, UINT64_MAX};
  full.entry = {std::string(255, 'x'), InodeId{8}, DT_REG, 9};
  full.has_attr = true;
  full.attr = SomeAttr();
  ExpectSurvives(std::vector<ListedEntry>{plain, full});
  ExpectSurvives(std::vector<std::string>{"", "user.a", std::string("\0\n", 2)});
}

TEST(PeerFormatTest, AttributesAreThose) {
  const std::string bytes = Packer().Add(SomeAttr()).Take();
  Attr attr;
  ASSERT_TRUE(Unpacker(bytes).Take(&attr));
  EXPECT_EQ(attr.st.st_ino, 0x123456789abcdef0u);
  EXPECT_EQ(attr.st.st_size, INT64_MAX);
  EXPECT_EQ(attr.st.st_gid, 0xfffffffeu);
  EXPECT_EQ(attr.st.st_atim.tv_sec, -5);
  EXPECT_EQ(attr.home, NodeId{42});
  EXPECT_EQ(attr.backing, BackingId{1u << 20});
  EXPECT_TRUE(attr.fresh);
}

TEST(PeerFormatTest, RefusesWhatIsOutOfRange) {
  const auto take = [](const std::string& bytes, auto value) {
    return Unpacker(bytes).Take(&value);
  };
  EXPECT_FALSE(take(Packer().Add(uint64_t{1} << 32).Take(), uint32_t{}));
  EXPECT_TRUE(take(Packer().Add(uint64_t{UINT32_MAX}).Take(), uint32_t{}));
  EXPECT_FALSE(take(std::string(1, '\2'), bool{}));
  EXPECT_FALSE(take(Packer().Add(int64_t{0}, int64_t{1'000'000'000}).Take(), timespec{}));
  // A count of more than there is costs nothing.
  EXPECT_FALSE(take(Packer().Add(UINT64_MAX, std::string("one")).Take(), std::vector<std::string>()));
}

TEST(PeerFormatTest, NothingFollowsAFailure) {
  const std::string bytes = Packer().Add(uint64_t{UINT64_MAX}, uint64_t{1}).Take();
  Unpacker in(bytes);
  uint32_t narrow;
  uint64_t wide;
  EXPECT_FALSE(in.Take(&narrow));
  EXPECT_FALSE(in.Take(&wide));
}

}  // namespace
}  // namespace cfs
