// Goal: a large copy has the same bytes, in memory or not, and whatever the alignment; holes stay
// holes; what cannot be copied past the page cache is copied through it.
#include "cfs/tier/io_uring.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>

#include "cfs/base/error.h"
#include "cfs/base/unique_fd.h"
#include "cfs/tier/backend.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

constexpr off_t kMiB = 1 << 20;
constexpr off_t kSize = 37 * kMiB + 1234;

class LargeCopierTest : public testing::TestWithParam<const char*> {
 protected:
  LargeCopierTest() : from_(Make("from")), to_(Make("to")) {
    std::string data(kMiB, '\0');
    for (off_t at = 0; at < kSize; at += kMiB) {
      for (size_t i = 0; i < data.size(); i += 8)
        data[i] = static_cast<char>(at / kMiB + i / 8 + 1);
      EXPECT_EQ(pwrite(from_.get(), data.data(), std::min(kMiB, kSize - at), at),
                std::min(kMiB, kSize - at));
    }
  }
  UniqueFd Make(const std::string& name) const {
    const std::string path = std::string(GetParam()) + "/cfs-copy-" + name;
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    unlink(path.c_str());
    EXPECT_TRUE(fd.valid()) << path;
    return fd;
  }
  static std::string All(int fd) {
    struct stat st {};
    EXPECT_EQ(fstat(fd, &st), 0);
    std::string all(static_cast<size_t>(st.st_size), '\0');
    EXPECT_EQ(pread(fd, all.data(), all.size(), 0), st.st_size);
    return all;
  }
  void DropCache() const {
    fsync(from_.get());
    posix_fadvise(from_.get(), 0, 0, POSIX_FADV_DONTNEED);
  }

  LargeCopier copier_;
  std::atomic<bool> stop_{false};
  UniqueFd from_, to_;
};

TEST_P(LargeCopierTest, CopiesWhatIsInMemoryAndWhatIsNot) {
  for (const bool cached : {true, false}) {
    if (!cached) DropCache();
    ASSERT_EQ(ftruncate(to_.get(), 0), 0);
    const auto copied = CopyContents(from_.get(), to_.get(), stop_, &copier_);
    ASSERT_TRUE(copied.ok()) << copied.status();
    EXPECT_EQ(*copied, static_cast<uint64_t>(kSize));
    EXPECT_TRUE(All(from_.get()) == All(to_.get()));
  }
}

TEST_P(LargeCopierTest, HolesStayHoles) {
  ASSERT_EQ(ftruncate(from_.get(), 200 * kMiB), 0);
  ASSERT_EQ(pwrite(from_.get(), "x", 1, 150 * kMiB + 7), 1);
  const auto copied = CopyContents(from_.get(), to_.get(), stop_, &copier_);
  ASSERT_TRUE(copied.ok()) << copied.status();
  EXPECT_LT(*copied, static_cast<uint64_t>(40 * kMiB));
  EXPECT_TRUE(All(from_.get()) == All(to_.get()));
  struct stat st {};
  ASSERT_EQ(fstat(to_.get(), &st), 0);
  EXPECT_LT(st.st_blocks * 512, 40 * kMiB);
}

TEST_P(LargeCopierTest, EndsWhenItIsTold) {
  stop_ = true;
  const auto copied = CopyContents(from_.get(), to_.get(), stop_, &copier_);
  EXPECT_EQ(ErrnoOf(copied.status()), EINTR);
}

TEST_P(LargeCopierTest, AFileThatBecameShorterIsSaidToBe) {
  uint64_t bytes = 0;
  ASSERT_EQ(ftruncate(to_.get(), kSize), 0);
  ASSERT_EQ(ftruncate(from_.get(), 20 * kMiB), 0);
  const auto copied = copier_.Copy(from_.get(), to_.get(), 0, 32 * kMiB, stop_, &bytes);
  // Where it cannot tell, the caller looks for itself.
  EXPECT_TRUE(copied.ok() ? !*copied : ErrnoOf(copied.status()) == EAGAIN) << copied.status();
  EXPECT_EQ(bytes, 0u);
}

// A disk, perhaps, and a file system in memory.
INSTANTIATE_TEST_SUITE_P(FileSystems, LargeCopierTest, testing::Values("/var/tmp", "/dev/shm"));

}  // namespace
}  // namespace cfs
