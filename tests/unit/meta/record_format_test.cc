// Goal: the disk format never changes by accident, and damage is noticed.
#include "cfs/meta/record_format.h"

#include <dirent.h>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

std::string Hex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }

InodeRecord Sample() {
  InodeRecord r;
  r.mode = S_IFREG | 0640;
  r.nlink = 2;
  r.uid = 1000;
  r.gid = 100;
  r.rdev = 0x0102;
  r.size = 123456789;
  r.blocks = 8;
  r.atime = {1, 2};
  r.mtime = {-3, 999999999};
  r.ctime = {5, 6};
  r.btime = {7, 8};
  r.flags = kHasAccessAcl;
  r.xattr_list_bytes = 0x0506;
  r.layout = Layout::kStriped;
  r.home = NodeId(0xa1b2c3d4);
  r.backing = BackingId(77);
  r.attr_epoch = 9;
  r.parent = InodeId(11);
  r.target = "to";
  r.backend_identity = "id";
  r.chunk_bytes = 1 << 20;
  r.stripe_nodes = {NodeId(1), NodeId(2)};
  return r;
}

// Golden bytes: a change here is a new record version, and needs an ADR.
TEST(RecordFormatTest, BytesAreFrozen) {
  EXPECT_EQ(Hex(Encode(Sample())),
            "010300000100000006050000a081000002000000e8030000640000000201000000000000"
            "15cd5b07000000000800000000000000010000000000000002000000fdffffffffffffff"
            "ffc99a3b05000000000000000600000007000000000000000800000"
            "0d4c3b2a14d00000000000000090000000b00000000000000"
            "0200746f0200696400001000020001000000"
            "02000000");
  EXPECT_EQ(Hex(Encode(BucketRecord{5, 2, {1, 2}, {3, 4}})),
            "0105000000000000000200000000000000010000000000000002000000030000000000000004000000");
  EXPECT_EQ(Hex(Encode(DentryRecord{InodeId(258), DT_REG})), "01020100000000000008");
  EXPECT_EQ(Hex(Encode(StoreState{10, 7, 4, 3, true})),
            "010a00000000000000070000000000000004000000000000000300000001");
}

TEST(RecordFormatTest, KeysAreFrozenAndSortByInode) {
  const InodeId ino = MakeInode(Slot(0x0102), 3);
  EXPECT_EQ(Hex(InodeKey(ino)), "0102690102000000000003");
  EXPECT_EQ(Hex(BucketKey(ino, 1)), "01026201020000000000030001");
  EXPECT_EQ(Hex(DentryKey(ino, "a")), "0102640102000000000003e6c632b61e964e1f61");
  EXPECT_EQ(Hex(XattrKey(ino, "user.a")), "0102780102000000000003757365722e61");
  EXPECT_EQ(Hex(QueueKey(QueueKind::kOpen, ino)), "0102716f0102000000000003");
  EXPECT_EQ(Hex(DoomedKey(BackingId(258))), "640000000000000102");
  EXPECT_LT(InodeKey(InodeId(255)), InodeKey(InodeId(256)));
}

TEST(RecordFormatTest, RoundTrips) {
  const auto inode = DecodeInode(Encode(Sample()));
  ASSERT_TRUE(inode.ok()) << inode.status();
  EXPECT_EQ(Encode(*inode), Encode(Sample()));
  EXPECT_EQ(inode->mtime.tv_sec, -3);
  uint64_t hash;
  absl::string_view name;
  const std::string key = DentryKey(kRootInode, "name");
  ASSERT_TRUE(ParseDentryKey(key, &hash, &name));
  EXPECT_EQ(name, "name");
  QueueKind kind;
  InodeId ino;
  ASSERT_TRUE(ParseQueueKey(QueueKey(QueueKind::kOrphan, InodeId(5)), &kind, &ino));
  EXPECT_EQ(kind, QueueKind::kOrphan);
  EXPECT_EQ(ino, InodeId(5));
}

TEST(RecordFormatTest, EveryTruncationIsDataLoss) {
  const std::string whole = Encode(Sample());
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeInode(whole.substr(0, length)).status())) << length;
  }
  EXPECT_TRUE(absl::IsDataLoss(DecodeInode(whole + "x").status()));
}

TEST(RecordFormatTest, NewerVersionIsSaidToBeNewer) {
  std::string newer = Encode(Sample());
  newer[0] = 2;
  EXPECT_TRUE(absl::IsUnimplemented(DecodeInode(newer).status()));
}

}  // namespace
}  // namespace cfs
