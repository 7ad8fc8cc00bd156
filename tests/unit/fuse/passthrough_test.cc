// Goal: the kernel's rules for I/O modes are kept, whatever the order of opens.
#include "cfs/fuse/passthrough.h"

#include <fcntl.h>

#include <set>
#include <thread>
#include <vector>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

// Fault model: refuses while `refuse` is set.
class FakeRegistry final : public BackingRegistry {
 public:
  absl::StatusOr<int> Register(int) override {
    MutexLock lock(&mutex_);
    if (refuse) return PosixError(EPERM);
    ids.insert(++last);
    return last;
  }
  void Unregister(int id) override {
    MutexLock lock(&mutex_);
    EXPECT_EQ(ids.erase(id), 1u) << id;
  }
  Mutex mutex_;
  std::set<int> ids;
  int last = 0;
  bool refuse = false;
};

absl::StatusOr<UniqueFd> OpenNull() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }
absl::StatusOr<UniqueFd> MustNotOpen() {
  ADD_FAILURE() << "opened a file that is registered";
  return UniqueFd();
}

TEST(PassthroughTest, AllOpensOfAnInodeShareOneId) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  const int id = passthrough.Acquire(InodeId(5), 0, true, OpenNull);
  EXPECT_GT(id, 0);
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, true, MustNotOpen), id);
  passthrough.Release(InodeId(5));
  passthrough.Release(InodeId(5));
  // Kept for the next open, until the file is gone.
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, true, MustNotOpen), id);
  passthrough.Drop(InodeId(5));
  EXPECT_EQ(registry.ids.size(), 1u) << "an open file lost its id";
  passthrough.Release(InodeId(5));
  EXPECT_TRUE(registry.ids.empty()) << "the id of a file that is gone outlives the last open";
  passthrough.Drop(InodeId(5));  // Unknown by now, which is no error.
}

TEST(PassthroughTest, ModeStaysUntilTheLastRelease) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  registry.refuse = true;
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, true, OpenNull), 0);
  registry.refuse = false;
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, true, OpenNull), 0) << "mixed modes are EIO";
  passthrough.Release(InodeId(5));
  passthrough.Release(InodeId(5));
  EXPECT_GT(passthrough.Acquire(InodeId(5), 0, true, OpenNull), 0);
}

TEST(PassthroughTest, NotWantedIsThroughTheDaemon) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  const int fresh = *registry.Register(0);
  EXPECT_EQ(passthrough.Acquire(InodeId(5), fresh, false, MustNotOpen), 0);
  EXPECT_TRUE(registry.ids.empty()) << "the id of a fresh file is not given back";
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, true, MustNotOpen), 0) << "mixed modes are EIO";
  passthrough.Release(InodeId(5));
  passthrough.Release(InodeId(5));
  const int id = passthrough.Acquire(InodeId(5), 0, true, OpenNull);
  EXPECT_GT(id, 0);
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, false, MustNotOpen), id) << "mixed modes are EIO";
  passthrough.Release(InodeId(5));
  passthrough.Release(InodeId(5));
  // Kept for the next open, which does not want it.
  EXPECT_EQ(passthrough.Acquire(InodeId(5), 0, false, MustNotOpen), 0);
  EXPECT_TRUE(registry.ids.empty());
  passthrough.Release(InodeId(5));
}

TEST(PassthroughTest, TakesOverAFreshFilesId) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  const int fresh = *registry.Register(0);
  EXPECT_EQ(passthrough.Acquire(InodeId(9), fresh, true, MustNotOpen), fresh);
  passthrough.Release(InodeId(9));
  passthrough.Drop(InodeId(9));
  EXPECT_TRUE(registry.ids.empty());
}

TEST(PassthroughTest, IdleIdsAreBounded) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  for (uint64_t i = 1; i <= 2 * kIdleBackingsMax; ++i) {
    passthrough.Acquire(InodeId(i), 0, true, OpenNull);
    passthrough.Release(InodeId(i));
  }
  EXPECT_LE(registry.ids.size(), kIdleBackingsMax);
  EXPECT_EQ(registry.ids.size(), passthrough.registered());
}

TEST(PassthroughTest, DisabledMeansDaemon) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  passthrough.Disable();
  EXPECT_EQ(passthrough.Acquire(InodeId(1), 0, true, MustNotOpen), 0);
  passthrough.Release(InodeId(1));
  EXPECT_TRUE(registry.ids.empty());
}

TEST(PassthroughTest, RacingOpensAgreeOnTheId) {
  FakeRegistry registry;
  Passthrough passthrough(&registry);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const int first = passthrough.Acquire(InodeId(7), 0, true, OpenNull);
        EXPECT_EQ(passthrough.Acquire(InodeId(7), 0, true, MustNotOpen), first);
        passthrough.Release(InodeId(7));
        passthrough.Release(InodeId(7));
        if (i % 16 == 0) passthrough.Drop(InodeId(7));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(registry.ids.size(), 1u);
}

}  // namespace
}  // namespace cfs
