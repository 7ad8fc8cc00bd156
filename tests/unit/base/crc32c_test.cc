// Goal: the values that everybody has for CRC-32C.
#include "cfs/base/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace cfs {
namespace {

// Golden: they are on the wire.
TEST(Crc32cTest, KnownValues) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(Crc32c(ascending), 0x46dd794eu);
}

// Method: bit by bit, as the polynomial says.
TEST(Crc32cTest, AnySizeAndAlignment) {
  std::string bytes;
  for (int i = 0; i < 5000; ++i) bytes += static_cast<char>(i * 7 + (i >> 8));
  for (size_t begin = 0; begin < 9; ++begin) {
    for (const size_t size : {1, 7, 8, 63, 255, 1024, 4097}) {
      uint32_t state = UINT32_MAX;
      for (size_t i = begin; i < begin + size; ++i) {
        state ^= static_cast<uint8_t>(bytes[i]);
        for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ (state & 1 ? 0x82f63b78 : 0);
      }
      EXPECT_EQ(Crc32c(absl::string_view(bytes).substr(begin, size)), ~state)
          << begin << " " << size;
    }
  }
}

}  // namespace
}  // namespace cfs
