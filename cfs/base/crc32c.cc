#include "cfs/base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace cfs {

uint32_t Crc32c(absl::string_view bytes) {
  // The library counts in int, and leaves the inversions to its callers.
  constexpr size_t kPieceMax = 1 << 30;
  uint32_t state = UINT32_MAX;
  while (!bytes.empty()) {
    const size_t size = std::min(bytes.size(), kPieceMax);
    auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
    state = crc32_iscsi(const_cast<unsigned char*>(data), static_cast<int>(size), state);
    bytes.remove_prefix(size);
  }
  return ~state;
}

}  // namespace cfs
