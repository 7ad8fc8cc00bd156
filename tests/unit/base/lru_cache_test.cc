// Goal: the cache stays within its bound and forgets the oldest first.
#include "cfs/base/lru_cache.h"

#include "gtest/gtest.h"

namespace cfs {
namespace {

TEST(LruCacheTest, KeepsItsBound) {
  LruCache<int, int> cache(1000);
  for (int i = 0; i < 100'000; ++i) cache.Put(i, i);
  EXPECT_LE(cache.size(), 1016u);
  EXPECT_GT(cache.size(), 500u);
}

TEST(LruCacheTest, WhatIsUsedStays) {
  LruCache<int, int> cache(160);
  cache.Put(-1, 7);
  for (int i = 0; i < 10'000; ++i) {
    cache.Put(i, i);
    ASSERT_EQ(cache.Get(-1), 7) << i;
  }
  EXPECT_EQ(cache.Get(0), std::nullopt);
}

TEST(LruCacheTest, PutReplacesAndEraseForgets) {
  LruCache<int, int> cache(16);
  cache.Put(1, 1);
  cache.Put(1, 2);
  EXPECT_EQ(cache.Get(1), 2);
  EXPECT_EQ(cache.size(), 1u);
  cache.Erase(1);
  EXPECT_EQ(cache.Get(1), std::nullopt);
}

}  // namespace
}  // namespace cfs
