// The checksum of iSCSI, ext4 and many others (Castagnoli's polynomial).
// Thread-safe. Cost: 50 GB/s with data in the cache (x86-64 of 2025).
#ifndef CFS_BASE_CRC32C_H_
#define CFS_BASE_CRC32C_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace cfs {

uint32_t Crc32c(absl::string_view bytes);

}  // namespace cfs

#endif  // CFS_BASE_CRC32C_H_
