// Goal: numbers settle in order, the pool gives each file once, and the lease
// probe sees descriptors and mappings.
#include "cfs/tier/chunk_store.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "gtest/gtest.h"

namespace cfs {
namespace {

class ChunkStoreTest : public testing::Test {
 protected:
  ChunkStoreTest() {
    std::string path = std::filesystem::temp_directory_path() / "cfs-chunks-XXXXXX";
    directory_ = mkdtemp(path.data());
    auto chunks = ChunkStore::Open(directory_, [this] { return absl::StatusOr<uint64_t>(next_++); });
    EXPECT_TRUE(chunks.ok()) << chunks.status();
    chunks_ = *std::move(chunks);
    chunks_->SetFirst(100);
  }
  ~ChunkStoreTest() override {
    chunks_.reset();
    std::filesystem::remove_all(directory_);
  }
  size_t Files() {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_)) {
      count += entry.is_regular_file();
    }
    return count;
  }
  std::string directory_;
  std::atomic<uint64_t> next_{100};
  std::unique_ptr<ChunkStore> chunks_;
};

TEST_F(ChunkStoreTest, SettledRisesOverTheLowestGap) {
  const BackingId a = chunks_->TakeFresh()->backing;
  const BackingId b = chunks_->TakeFresh()->backing;
  const BackingId c = chunks_->TakeFresh()->backing;
  chunks_->Settle(b);
  EXPECT_EQ(chunks_->settled(), 100u);
  chunks_->Settle(a);
  EXPECT_EQ(chunks_->settled(), 102u);
  chunks_->Settle(c);
  EXPECT_EQ(chunks_->settled(), 103u);
}

TEST_F(ChunkStoreTest, PoolGivesEachFileOnceAndLeavesNoneBehind) {
  std::atomic<int> registered{0};
  chunks_->StartPool([&](int fd) {
    EXPECT_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    return ++registered;
  });
  std::set<BackingId> taken;
  for (int i = 0; i < 3000; ++i) {
    const auto fresh = chunks_->TakeFresh();
    ASSERT_TRUE(fresh.ok());
    EXPECT_TRUE(taken.insert(fresh->backing).second);
    chunks_->Settle(fresh->backing);
  }
  chunks_->StopPool();
  EXPECT_EQ(Files(), 3000u);
  EXPECT_EQ(chunks_->settled(), next_.load());
}

TEST_F(ChunkStoreTest, CreateIsExclusive) {
  const BackingId a = chunks_->TakeFresh()->backing;
  EXPECT_FALSE(chunks_->CreateEmpty(a).ok());
  EXPECT_TRUE(chunks_->Remove(a).ok());
  EXPECT_TRUE(chunks_->CreateEmpty(a).ok());
}

TEST_F(ChunkStoreTest, ProbeSeesDescriptorsAndMappings) {
  const BackingId a = chunks_->TakeFresh()->backing;
  EXPECT_FALSE(*chunks_->HasWriter(a));
  auto reader = chunks_->OpenFile(a, O_RDONLY);
  EXPECT_FALSE(*chunks_->HasWriter(a));
  auto writer = chunks_->OpenFile(a, O_RDWR);
  EXPECT_TRUE(*chunks_->HasWriter(a));
  ASSERT_EQ(ftruncate(writer->get(), 4096), 0);
  void* map = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer->get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  writer->reset();
  EXPECT_TRUE(*chunks_->HasWriter(a)) << "a mapping outlives its descriptor";
  munmap(map, 4096);
  EXPECT_FALSE(*chunks_->HasWriter(a));
}

}  // namespace
}  // namespace cfs
