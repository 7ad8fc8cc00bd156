// Goal: no task is missed by an owner that sleeps, and one that does not is not woken.
#include "cfs/net/task_queue.h"

#include <sys/epoll.h>

#include <thread>

#include "gtest/gtest.h"

namespace cfs {
namespace {

class TaskQueueTest : public testing::Test {
 protected:
  void SetUp() override {
    epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
    ASSERT_TRUE(queue_.Open(epoll_.get(), 7).ok());
  }
  bool Woken(int milliseconds = 0) {
    epoll_event event;
    const bool woken = epoll_wait(epoll_.get(), &event, 1, milliseconds) == 1;
    return woken && event.data.u64 == 7;
  }

  UniqueFd epoll_;
  TaskQueue queue_;
  int ran_ = 0;
};

TEST_F(TaskQueueTest, WakesOnlyWhoSleeps) {
  EXPECT_TRUE(queue_.Submit([this] { ++ran_; }));
  EXPECT_FALSE(Woken());
  EXPECT_FALSE(queue_.Sleep());  // It has something to do.
  queue_.WakeUp();
  EXPECT_TRUE(queue_.RunAll());
  EXPECT_EQ(ran_, 1);

  EXPECT_TRUE(queue_.Sleep());
  EXPECT_FALSE(Woken());
  EXPECT_TRUE(queue_.Submit([this] { ++ran_; }));
  EXPECT_TRUE(queue_.Submit([this] { ++ran_; }));
  EXPECT_TRUE(Woken());
  queue_.WakeUp();
  EXPECT_FALSE(Woken());  // Not once more for what has been told.
  EXPECT_TRUE(queue_.RunAll());
  EXPECT_EQ(ran_, 3);
  EXPECT_TRUE(queue_.Sleep());
}

TEST_F(TaskQueueTest, WhatComesWhileItFallsAsleepWakesIt) {
  constexpr int kTasks = 20'000;
  std::thread other([this] {
    for (int i = 0; i < kTasks; ++i) {
      ASSERT_TRUE(queue_.Submit([this] { ++ran_; }));
      if (i % 8 == 0) std::this_thread::yield();
    }
  });
  while (ran_ < kTasks) {
    if (queue_.RunAll()) continue;
    if (queue_.Sleep()) {
      EXPECT_TRUE(Woken(10'000)) << "after " << ran_;
    }
    queue_.WakeUp();
  }
  other.join();
}

TEST_F(TaskQueueTest, ClosedQueueTakesNothing) {
  EXPECT_TRUE(queue_.Submit([this] { ++ran_; }));
  queue_.Close();
  EXPECT_FALSE(queue_.Submit([this] { ++ran_; }));
  EXPECT_TRUE(queue_.RunAll());
  EXPECT_EQ(ran_, 1);
}

}  // namespace
}  // namespace cfs
