// Goal: percentiles that are close, and of the recent calls only.
#include "cfs/net/peer_stats.h"

#include <gtest/gtest.h>

namespace cfs {
namespace {

TEST(RecentLatenciesTest, NoneAreZero) {
  EXPECT_EQ(RecentLatencies().Percentile(.5), absl::ZeroDuration());
}

TEST(RecentLatenciesTest, IsAtMostAQuarterAbove) {
  for (int64_t us = 0; us < int64_t{1} << 30; us += 1 + us / 7) {
    RecentLatencies latencies;
    latencies.Add(absl::Microseconds(us));
    const absl::Duration found = latencies.Percentile(.5);
    ASSERT_GT(found, absl::Microseconds(us));
    ASSERT_LE(found, std::max(absl::Microseconds(us + 1), absl::Microseconds(us) * 1.25));
  }
}

TEST(RecentLatenciesTest, TakesWhatIsOutOfRange) {
  RecentLatencies latencies;
  latencies.Add(-absl::Seconds(1));
  EXPECT_EQ(latencies.Percentile(1), absl::Microseconds(1));
  latencies.Add(absl::InfiniteDuration());
  EXPECT_GT(latencies.Percentile(1), absl::Seconds(1000));
}

TEST(RecentLatenciesTest, Percentiles) {
  RecentLatencies latencies;
  for (int i = 0; i < 98; ++i) latencies.Add(absl::Microseconds(10));
  latencies.Add(absl::Milliseconds(1));
  latencies.Add(absl::Seconds(1));
  EXPECT_LE(latencies.Percentile(.5), absl::Microseconds(13));
  EXPECT_LE(latencies.Percentile(.98), absl::Microseconds(13));
  EXPECT_GT(latencies.Percentile(.99), absl::Milliseconds(1));
  EXPECT_LE(latencies.Percentile(.99), absl::Milliseconds(1.25));
  EXPECT_GT(latencies.Percentile(1), absl::Seconds(1));
}

TEST(RecentLatenciesTest, ForgetsTheOldOnes) {
  RecentLatencies latencies;
  latencies.Add(absl::Seconds(1));
  for (int i = 0; i < 1000; ++i) latencies.Add(absl::Microseconds(10));
  EXPECT_GT(latencies.Percentile(1), absl::Seconds(1)) << "of the last 1,001";
  for (int i = 0; i < 1000; ++i) latencies.Add(absl::Microseconds(10));
  EXPECT_LE(latencies.Percentile(1), absl::Microseconds(13));
}

TEST(PeerCountersTest, CountsReconnectsFromTheSecondConnection) {
  PeerCounters counters("127.0.0.1:1");
  counters.Connecting();
  EXPECT_EQ(counters.Get().reconnects, 0u);
  counters.Up(NodeId{3}, "tcp/lo");
  EXPECT_EQ(counters.Get().reconnects, 0u);
  counters.Closed(PeerStats::State::kLost);
  counters.Connecting();
  EXPECT_EQ(counters.Get().reconnects, 0u) << "not yet";
  counters.Up(NodeId{4}, "tcp/lo");
  EXPECT_EQ(counters.Get().reconnects, 1u);
  EXPECT_EQ(counters.Get().node, NodeId{4});
}

}  // namespace
}  // namespace cfs
