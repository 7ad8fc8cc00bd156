// Goal: what a LocalFileSystem promises across restarts, clean and not, and that
// nothing leaks backing files. A "crash" is an end without Close: what a kill -9
// leaves, for RocksDB has no buffers of its own.
#include "cfs/server/local_file_system.h"

#include <fcntl.h>

#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <mutex>

#include "cfs/base/error.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

// A crash leaves its handles behind.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace cfs {
namespace {

// Waits for a completion and gives its result.
template <typename T>
class Await {
 public:
  absl::AnyInvocable<void(T)> done() {
    return [this](T value) {
      std::lock_guard<std::mutex> lock(mutex_);
      value_ = std::move(value);
      ready_.notify_all();
    };
  }
  T Get() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return value_.has_value(); });
    return *std::move(value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<T> value_;
};

class LocalFileSystemTest : public testing::Test {
 protected:
  LocalFileSystemTest() {
    std::string path = std::filesystem::temp_directory_path() / "cfs-local-XXXXXX";
    directory_ = mkdtemp(path.data());
    std::filesystem::create_directory(directory_ + "/data");
    Start();
  }
  ~LocalFileSystemTest() override {
    fs_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Start() {
    auto fs = LocalFileSystem::Open(
        {directory_ + "/meta", directory_ + "/data", NodeId(1), /*daemon_io=*/true}, &clock_);
    ASSERT_TRUE(fs.ok()) << fs.status();
    fs_ = *std::move(fs);
    fs_->Start([](int) { return 0; });
  }
  void Restart() {
    ASSERT_TRUE(fs_->Close().ok());
    fs_.reset();
    Start();
  }
  void Crash() {
    fs_.reset();
    Start();
  }
  CreateResult Create(const std::string& name, int flags = O_RDWR) {
    Await<absl::StatusOr<CreateResult>> await;
    fs_->Create({}, kRootInode, name, 0644, flags, await.done());
    auto created = await.Get();
    EXPECT_TRUE(created.ok()) << created.status();
    return *created;
  }
  absl::StatusOr<Attr> Lookup(const std::string& name) {
    Await<absl::StatusOr<Attr>> await;
    fs_->Lookup(kRootInode, name, await.done());
    return await.Get();
  }
  int Unlink(const std::string& name) {
    Await<absl::Status> await;
    fs_->Unlink(kRootInode, name, await.done());
    return ErrnoOf(await.Get());
  }
  // As a passthrough writer does it: unseen.
  void WriteUnseen(BackingId backing, const std::string& text) {
    char relative[64];
    snprintf(relative, sizeof(relative), "/data/%03x/%03x/%012llx", 0,
             static_cast<unsigned>(Raw(backing) >> 10 & 0x3ff),
             static_cast<unsigned long long>(Raw(backing)));
    const UniqueFd fd(open((directory_ + relative).c_str(), O_WRONLY));
    ASSERT_TRUE(fd.valid()) << relative;
    ASSERT_EQ(write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  size_t BackingFiles() {
    size_t count = 0;
    for (const auto& e : std::filesystem::recursive_directory_iterator(directory_ + "/data")) {
      count += e.is_regular_file();
    }
    return count;
  }
  // Ends in good order, so that only what is referenced is left.
  size_t BackingFilesAtRest() {
    EXPECT_TRUE(fs_->Close().ok());
    fs_.reset();
    const size_t count = BackingFiles();
    Start();
    return count;
  }

  RealClock clock_;
  std::string directory_;
  std::unique_ptr<LocalFileSystem> fs_;
};

TEST_F(LocalFileSystemTest, SizeIsRightWhileOpenAndAfterRestart) {
  const CreateResult f = Create("f");
  WriteUnseen(f.open.backing, "12345");
  EXPECT_EQ(Lookup("f")->st.st_size, 5);
  EXPECT_FALSE(Lookup("f")->stable);
  fs_->Release(f.open.handle);
  Restart();
  EXPECT_EQ(Lookup("f")->st.st_size, 5);
}

TEST_F(LocalFileSystemTest, ACrashKeepsWhatReturned) {
  const CreateResult f = Create("f");
  WriteUnseen(f.open.backing, "12345");
  // Left open: the mark makes recovery look at the file.
  Crash();
  EXPECT_EQ(Lookup("f")->st.st_size, 5);
  EXPECT_EQ(BackingFilesAtRest(), 1u);
}

TEST_F(LocalFileSystemTest, ACrashCollectsOrphansPoolAndDoomed) {
  fs_->Release(Create("kept").open.handle);
  Create("orphan");  // Left open.
  EXPECT_EQ(Unlink("orphan"), 0);
  fs_->Release(Create("doomed").open.handle);
  EXPECT_EQ(Unlink("doomed"), 0);
  Crash();
  EXPECT_EQ(ErrnoOf(Lookup("orphan").status()), ENOENT);
  EXPECT_EQ(BackingFilesAtRest(), 1u);
}

TEST_F(LocalFileSystemTest, AnUnlinkedFileIsKnownUntilForgotten) {
  const CreateResult f = Create("f");
  const InodeId ino{f.open.ino};
  fs_->Release(f.open.handle);
  EXPECT_EQ(Unlink("f"), 0);
  Await<absl::StatusOr<Attr>> known;
  fs_->GetAttr(ino, known.done());
  const auto attr = known.Get();
  ASSERT_TRUE(attr.ok());
  EXPECT_EQ(attr->st.st_nlink, 0u);
  fs_->Forget(ino);
  Await<absl::StatusOr<Attr>> forgotten;
  fs_->GetAttr(ino, forgotten.done());
  EXPECT_EQ(ErrnoOf(forgotten.Get().status()), ESTALE);
}

TEST_F(LocalFileSystemTest, AMappingKeepsTheFileUnstable) {
  const CreateResult f = Create("f");
  const auto path = fs_->Describe(f.open.ino)["backing"].get<std::string>();
  UniqueFd ghost(open(path.c_str(), O_RDWR));
  fs_->Release(f.open.handle);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(Lookup("f")->stable) << "somebody may still write";
  ghost.reset();
  for (int i = 0; i < 100 && !Lookup("f")->stable; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_TRUE(Lookup("f")->stable);
}

TEST_F(LocalFileSystemTest, NumbersAreNeverUsedAgain) {
  uint64_t last = 0;
  for (int run = 0; run < 3; ++run) {
    const CreateResult f = Create("f" + std::to_string(run));
    EXPECT_GT(f.attr.st.st_ino, last);
    last = f.attr.st.st_ino;
    fs_->Release(f.open.handle);
    if (run % 2 == 0) {
      Crash();
    } else {
      Restart();
    }
  }
}

TEST_F(LocalFileSystemTest, AFileThatPowerLossTookIsEmptyNotAnError) {
  const CreateResult f = Create("f");
  const std::string path =
      fs_->Describe(f.open.ino)["backing"].get<std::string>();
  fs_->Release(f.open.handle);
  fs_.reset();
  ASSERT_EQ(unlink(path.c_str()), 0);
  Start();
  ASSERT_TRUE(Lookup("f").ok());
  EXPECT_EQ(Lookup("f")->st.st_size, 0);
}

}  // namespace
}  // namespace cfs
