// Goal: a full device costs no acknowledged write, and a sync that meets it is
// not the end of all syncs.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/unique_fd.h"
#include "cfs/meta/store.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

constexpr char kDeviceBytes[] = "size=160m";

class StoreFullTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / "cfs-store-full-XXXXXX";
    ASSERT_NE(mkdtemp(path_.data()), nullptr);
    mounted_ = mount("tmpfs", path_.c_str(), "tmpfs", 0, kDeviceBytes) == 0;
    if (!mounted_) GTEST_SKIP() << "may not mount a tmpfs";
  }
  void TearDown() override {
    store_.reset();
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
    rmdir(path_.c_str());
  }

  void Open() {
    store_.reset();
    auto store = OpenRocksdbStore(path_ + "/meta");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // Leaves `bytes` of the device.
  void Fill(uint64_t bytes) {
    struct statvfs space;
    ASSERT_EQ(statvfs(path_.c_str(), &space), 0);
    const UniqueFd fd(open((path_ + "/filler").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    const uint64_t free = space.f_bavail * space.f_frsize;
    ASSERT_GT(free, bytes);
    ASSERT_EQ(fallocate(fd.get(), 0, 0, static_cast<off_t>(free - bytes)), 0);
  }

  absl::Status Put(int number) {
    WriteSet writes;
    // Values that do not compress.
    std::string value(8000, '\0');
    for (char& c : value) c = static_cast<char>(random_());
    writes.Put(Family::kRecords, absl::StrCat("key", number), std::move(value));
    writes.Put(Family::kQueue, absl::StrCat("key", number), "v");
    return store_->Apply(writes);
  }

  void ExpectAll(const std::vector<int>& numbers) {
    Open();
    for (const int number : numbers) {
      std::string value;
      const std::string key = absl::StrCat("key", number);
      ASSERT_TRUE(store_->Get(Family::kRecords, key, &value).ok()) << number;
      ASSERT_TRUE(store_->Get(Family::kQueue, key, &value).ok()) << number;
    }
  }

  std::mt19937 random_{1};
  std::string path_;
  bool mounted_ = false;
  std::unique_ptr<Store> store_;
};

// First: a child has no use of the threads that RocksDB starts in its parent.
TEST_F(StoreFullTest, KilledWhileFull) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    Open();
    Fill(6 << 20);
    for (int number = 0, refused = 0; refused < 50; ++number) {
      if (!Put(number).ok()) {
        ++refused;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      } else if (write(pipe_ends[1], &number, sizeof(number)) != sizeof(number)) {
        break;
      }
    }
    raise(SIGKILL);
  }
  close(pipe_ends[1]);
  std::vector<int> written;
  int number;
  while (read(pipe_ends[0], &number, sizeof(number)) == sizeof(number)) written.push_back(number);
  close(pipe_ends[0]);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_GT(written.size(), 100u);
  std::filesystem::remove(path_ + "/filler");
  ExpectAll(written);
}

TEST_F(StoreFullTest, SyncsAndWritesGoOnAfterwards) {
  Open();
  Fill(6 << 20);
  std::atomic<bool> stop{false};
  std::atomic<int> failed_syncs{0};
  std::thread syncer([&] {
    while (!stop.load()) {
      const absl::Status status = store_->SyncWal();
      if (status.ok()) continue;
      EXPECT_EQ(ErrnoOf(status), ENOSPC) << status;
      ++failed_syncs;
    }
  });
  std::vector<int> written;
  int refused = 0;
  for (int number = 0; refused < 300 && number < 100000; ++number) {
    const absl::Status status = Put(number);
    if (status.ok()) {
      written.push_back(number);
    } else {
      EXPECT_EQ(ErrnoOf(status), ENOSPC) << status;
      ++refused;
    }
  }
  stop.store(true);
  syncer.join();
  EXPECT_EQ(refused, 300) << "never full";

  std::filesystem::remove(path_ + "/filler");
  absl::Status again;
  // RocksDB looks every 5 s whether it can write out what it has in memory.
  for (int attempt = 0; attempt < 200; ++attempt) {
    again = Put(1000000);
    if (again.ok()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  ASSERT_TRUE(again.ok()) << again;
  ASSERT_TRUE(store_->SyncWal().ok());
  written.push_back(1000000);
  ExpectAll(written);
}

}  // namespace
}  // namespace cfs
