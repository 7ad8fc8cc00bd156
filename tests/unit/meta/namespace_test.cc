// Goal: names, counts and links agree after every operation, on a real RocksDB.
#include "cfs/meta/namespace.h"

#include <cerrno>
#include <filesystem>
#include <set>

#include <linux/fs.h>

#include "cfs/base/error.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

class NamespaceTest : public testing::Test, public InodeUses {
 protected:
  NamespaceTest() {
    std::string path = std::filesystem::temp_directory_path() / "cfs-namespace-XXXXXX";
    directory_ = mkdtemp(path.data());
    auto store = OpenRocksdbStore(directory_ + "/meta");
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    syncer_ = std::make_unique<WalSyncer>(store_.get());
    shard_ = std::make_unique<Shard>(store_.get(), syncer_.get());
    names_ = std::make_unique<Namespace>(shard_.get(), &clock_, this);
    EXPECT_TRUE(names_->Format(0, 0).ok());
  }
  ~NamespaceTest() override {
    syncer_.reset();
    shard_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  bool MayLink(InodeId) override { return true; }
  InodeUse UseOf(InodeId ino, const InodeRecord&) override { return {open_.contains(ino), false}; }
  void OnRemoved(const Removed& removed) override {
    (removed.orphaned ? orphaned_ : erased_).insert(removed.ino);
  }

  InodeId Make(InodeId dir, absl::string_view name, uint32_t mode) {
    const InodeId ino = MakeInode(SlotOf(dir), next_++);
    InodeRecord record;
    record.mode = mode;
    record.backing = S_ISREG(mode) ? BackingId(next_) : kNoBacking;
    const auto made = names_->Create({}, dir, name, {ino, record, false});
    EXPECT_TRUE(made.ok()) << made.status();
    return ino;
  }
  InodeId File(InodeId dir, absl::string_view name) { return Make(dir, name, S_IFREG | 0644); }
  InodeId Directory(InodeId dir, absl::string_view name) {
    return Make(dir, name, S_IFDIR | 0755);
  }
  std::multiset<std::string> List(InodeId dir, uint64_t offset = 0) {
    std::multiset<std::string> found;
    EXPECT_TRUE(ReadDirectory(shard_.get(), dir, offset, [&](const DirectoryEntry& e) {
                  found.insert(e.name);
                  return true;
                }).ok());
    return found;
  }
  BucketRecord Bucket(InodeId dir) {
    StripeLocks::Hold hold(&shard_->locks(), {dir});
    return *shard_->GetBucket(dir);
  }
  bool HasInode(InodeId ino) {
    std::string value;
    return store_->Get(Family::kRecords, InodeKey(ino), &value).ok();
  }

  std::string directory_;
  RealClock clock_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<WalSyncer> syncer_;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<Namespace> names_;
  std::set<InodeId> open_, erased_, orphaned_;
  uint64_t next_ = 100;
};

TEST_F(NamespaceTest, CountsFollowEntries) {
  File(kRootInode, "f");
  const InodeId d = Directory(kRootInode, "d");
  EXPECT_EQ(Bucket(kRootInode).entries, 2u);
  EXPECT_EQ(Bucket(kRootInode).subdirs, 1u);
  File(d, "g");
  EXPECT_EQ(ErrnoOf(names_->RemoveDirectory(kRootInode, "d").status()), ENOTEMPTY);
  EXPECT_TRUE(names_->Unlink(d, "g").ok());
  EXPECT_TRUE(names_->RemoveDirectory(kRootInode, "d").ok());
  EXPECT_EQ(Bucket(kRootInode).entries, 1u);
  EXPECT_EQ(Bucket(kRootInode).subdirs, 0u);
  EXPECT_TRUE(orphaned_.contains(d));
  EXPECT_EQ(ErrnoOf(names_->Create({}, d, "x", {InodeId(99), {}, false}).status()), ENOENT);
}

TEST_F(NamespaceTest, AnOpenFileIsAnOrphanUntilItIsErased) {
  const InodeId f = File(kRootInode, "f");
  open_.insert(f);
  const auto removed = names_->Unlink(kRootInode, "f");
  ASSERT_TRUE(removed.ok());
  EXPECT_TRUE(removed->orphaned);
  EXPECT_TRUE(HasInode(f));
  EXPECT_FALSE(erased_.contains(f));
  int orphans = 0;
  EXPECT_TRUE(shard_->ScanQueue([&](QueueKind kind, InodeId ino, absl::string_view) {
                orphans += kind == QueueKind::kOrphan && ino == f;
              }).ok());
  EXPECT_EQ(orphans, 1);
}

TEST_F(NamespaceTest, AnUnlinkedFileIsDoomedWithItsRecord) {
  const InodeId f = File(kRootInode, "f");
  EXPECT_TRUE(names_->Unlink(kRootInode, "f").ok());
  EXPECT_FALSE(HasInode(f));
  std::string value;
  EXPECT_TRUE(store_->Get(Family::kLocal, DoomedKey(BackingId(next_)), &value).ok());
}

TEST_F(NamespaceTest, RenameKeepsCountsInAllItsKinds) {
  const InodeId a = Directory(kRootInode, "a");
  const InodeId b = Directory(kRootInode, "b");
  const InodeId f = File(a, "f");
  const InodeId d = Directory(a, "d");
  // Across, to a free name, a file and a directory.
  EXPECT_TRUE(names_->Rename(a, "f", b, "f", 0).ok());
  const auto moved = names_->Rename(a, "d", b, "d", 0);
  ASSERT_TRUE(moved.ok());
  EXPECT_EQ(moved->moved[0], d);
  EXPECT_EQ(Bucket(a).entries, 0u);
  EXPECT_EQ(Bucket(a).subdirs, 0u);
  EXPECT_EQ(Bucket(b).entries, 2u);
  EXPECT_EQ(Bucket(b).subdirs, 1u);
  // Exchange a file and a directory across.
  const InodeId g = Directory(a, "g");
  EXPECT_TRUE(names_->Rename(a, "g", b, "f", RENAME_EXCHANGE).ok());
  EXPECT_EQ(Bucket(a).subdirs, 0u);
  EXPECT_EQ(Bucket(b).subdirs, 2u);
  {
    StripeLocks::Hold hold(&shard_->locks(), {g});
    EXPECT_EQ(shard_->GetInode(g)->parent, b);
  }
  // Over a file, and refused.
  File(b, "h");
  EXPECT_EQ(ErrnoOf(names_->Rename(a, "g", b, "h", RENAME_NOREPLACE).status()), EEXIST);
  EXPECT_EQ(ErrnoOf(names_->Rename(a, "g", b, "h", RENAME_WHITEOUT).status()), EINVAL);
  EXPECT_TRUE(names_->Rename(a, "g", b, "h", 0).ok());
  EXPECT_TRUE(HasInode(f));
  EXPECT_EQ(Bucket(a).entries, 0u);
  EXPECT_EQ(Bucket(b).entries, 3u);
  // Into its own subtree.
  EXPECT_EQ(ErrnoOf(names_->Rename(kRootInode, "b", d, "x", 0).status()), EINVAL);
}

TEST_F(NamespaceTest, ListingContinuesAfterAnyEntry) {
  std::set<std::string> made = {".", ".."};
  for (int i = 0; i < 500; ++i) {
    made.insert("n" + std::to_string(i));
    File(kRootInode, "n" + std::to_string(i));
  }
  // Three entries at a time, with removals of what was met already.
  std::multiset<std::string> met;
  uint64_t offset = 0;
  for (bool more = true; more;) {
    int count = 0;
    std::string last;
    EXPECT_TRUE(ReadDirectory(shard_.get(), kRootInode, offset, [&](const DirectoryEntry& e) {
                  if (count == 3) return false;
                  met.insert(e.name);
                  last = e.name;
                  offset = e.next;
                  ++count;
                  return true;
                }).ok());
    more = count > 0;
    if (more && last[0] == 'n') {
      EXPECT_TRUE(names_->Unlink(kRootInode, last).ok());
    }
  }
  EXPECT_EQ(met, std::multiset<std::string>(made.begin(), made.end()));
}

TEST_F(NamespaceTest, LinksAreCounted) {
  const InodeId f = File(kRootInode, "f");
  EXPECT_EQ(names_->Link(f, kRootInode, "g")->nlink, 2u);
  EXPECT_EQ(ErrnoOf(names_->Link(f, kRootInode, "g").status()), EEXIST);
  EXPECT_TRUE(names_->Unlink(kRootInode, "f").ok());
  EXPECT_TRUE(HasInode(f));
  EXPECT_TRUE(names_->Unlink(kRootInode, "g").ok());
  EXPECT_FALSE(HasInode(f));
  EXPECT_EQ(List(kRootInode), (std::multiset<std::string>{".", ".."}));
}

}  // namespace
}  // namespace cfs
