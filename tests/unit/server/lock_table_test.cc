// Goal: the rules of fcntl(2) and flock(2), and no waiter is ever lost.
#include "cfs/server/lock_table.h"

#include <cerrno>

#include "cfs/base/error.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

constexpr InodeId kFile{10};
constexpr HandleId kHandle{1};
using Space = LockTable::Space;

FileLock Lock(int type, uint64_t start, uint64_t end) { return {start, end, type, 1}; }

class LockTableTest : public testing::Test {
 protected:
  // The result so far: -1 while it waits.
  std::shared_ptr<int> Set(uint64_t owner, FileLock lock, bool wait = false, InodeId ino = kFile,
                           Space space = Space::kRecord, HandleId handle = kHandle) {
    auto result = std::make_shared<int>(-1);
    last_ = LockRequestId(++requests_);
    table_.Set(space, ino, handle, owner, lock, wait, last_,
               [result](absl::Status s) { *result = ErrnoOf(s); });
    return result;
  }
  LockTable table_;
  uint64_t requests_ = 0;
  LockRequestId last_{};
};

TEST_F(LockTableTest, ReadersShareAndWritersDoNot) {
  EXPECT_EQ(*Set(1, Lock(F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(*Set(2, Lock(F_RDLCK, 5, 14)), 0);
  EXPECT_EQ(*Set(3, Lock(F_WRLCK, 12, 20)), EAGAIN);
  EXPECT_EQ(*Set(3, Lock(F_WRLCK, 15, 20)), 0);
  EXPECT_EQ(table_.Test(kFile, 4, Lock(F_WRLCK, 0, 0)).type, F_RDLCK);
  EXPECT_EQ(table_.Test(kFile, 4, Lock(F_WRLCK, 30, 40)).type, F_UNLCK);
}

TEST_F(LockTableTest, RangesSplitAndMerge) {
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, 99)), 0);
  EXPECT_EQ(*Set(1, Lock(F_UNLCK, 40, 59)), 0);
  EXPECT_EQ(table_.locks(), 2u);
  EXPECT_EQ(*Set(2, Lock(F_WRLCK, 40, 59)), 0);
  EXPECT_EQ(*Set(2, Lock(F_WRLCK, 39, 39)), EAGAIN);
  EXPECT_EQ(*Set(2, Lock(F_UNLCK, 0, INT64_MAX)), 0);
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 40, 59)), 0);
  EXPECT_EQ(table_.locks(), 1u) << "neighbours of one type are one lock";
  EXPECT_EQ(*Set(1, Lock(F_RDLCK, 10, 20)), 0);
  EXPECT_EQ(table_.locks(), 3u);
}

TEST_F(LockTableTest, WaitersAreServedInTurnAndOnlyOnce) {
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, 9)), 0);
  const auto two = Set(2, Lock(F_RDLCK, 0, 9), true);
  const auto three = Set(3, Lock(F_RDLCK, 5, 9), true);
  const auto four = Set(4, Lock(F_WRLCK, 0, 0), true);
  EXPECT_EQ(*two, -1);
  EXPECT_EQ(table_.waiters(), 3u);
  table_.DropOwner(kFile, 1);
  EXPECT_EQ(*two, 0);
  EXPECT_EQ(*three, 0);
  EXPECT_EQ(*four, -1);
  EXPECT_EQ(*Set(2, Lock(F_UNLCK, 0, 9)), 0);
  EXPECT_EQ(*four, 0);
  EXPECT_EQ(table_.waiters(), 0u);
}

TEST_F(LockTableTest, ACycleOfOwnersIsRefused) {
  constexpr InodeId kOther{11};
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, 0)), 0);
  EXPECT_EQ(*Set(2, Lock(F_WRLCK, 0, 0), false, kOther), 0);
  EXPECT_EQ(*Set(3, Lock(F_WRLCK, 5, 5)), 0);
  const auto two = Set(2, Lock(F_WRLCK, 0, 0), true);         // 2 waits for 1
  const auto three = Set(3, Lock(F_WRLCK, 0, 0), true, kOther);  // 3 waits for 2
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 5, 5), true), EDEADLK);     // 1 for 3: a cycle
  EXPECT_EQ(*two, -1);
  EXPECT_EQ(*three, -1);
  table_.CancelAll();
  EXPECT_EQ(*two, EINTR);
  EXPECT_EQ(*three, EINTR);
}

TEST_F(LockTableTest, CancelEndsOneWaiter) {
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, 9)), 0);
  const auto two = Set(2, Lock(F_WRLCK, 0, 9), true);
  const LockRequestId two_id = last_;
  const auto three = Set(3, Lock(F_WRLCK, 0, 9), true);
  table_.Cancel(two_id);
  table_.Cancel(two_id);
  EXPECT_EQ(*two, EINTR);
  EXPECT_EQ(*three, -1);
  table_.DropOwner(kFile, 1);
  EXPECT_EQ(*three, 0);
}

TEST_F(LockTableTest, WholeFileLocksAreASpaceOfTheirOwn) {
  const FileLock all = Lock(F_WRLCK, 0, INT64_MAX);
  EXPECT_EQ(*Set(1, all, false, kFile, Space::kWholeFile, HandleId{1}), 0);
  EXPECT_EQ(*Set(2, all), 0) << "fcntl does not see flock";
  EXPECT_EQ(*Set(3, all, false, kFile, Space::kWholeFile, HandleId{3}), EAGAIN);
  table_.DropOwner(kFile, 1);
  EXPECT_EQ(*Set(3, all, false, kFile, Space::kWholeFile, HandleId{3}), EAGAIN)
      << "close of one descriptor does not end flock";
  table_.DropHandle(kFile, HandleId{1});
  EXPECT_EQ(*Set(3, all, false, kFile, Space::kWholeFile, HandleId{3}), 0);
}

TEST_F(LockTableTest, AFailedConversionOfFlockLosesTheOldLock) {
  const FileLock shared = Lock(F_RDLCK, 0, INT64_MAX);
  EXPECT_EQ(*Set(1, shared, false, kFile, Space::kWholeFile, HandleId{1}), 0);
  EXPECT_EQ(*Set(2, shared, false, kFile, Space::kWholeFile, HandleId{2}), 0);
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, INT64_MAX), false, kFile, Space::kWholeFile, HandleId{1}),
            EAGAIN);
  EXPECT_EQ(table_.locks(), 1u);
}

TEST_F(LockTableTest, NothingStaysBehind) {
  EXPECT_EQ(*Set(1, Lock(F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(*Set(1, Lock(F_UNLCK, 0, INT64_MAX)), 0);
  EXPECT_EQ(table_.locks(), 0u);
}

}  // namespace
}  // namespace cfs
