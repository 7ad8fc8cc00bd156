#include "cfs/ring/hash.h"

#include <xxhash.h>

namespace cfs {

uint64_t Hash64(absl::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

Slot SpreadSlot(InodeId parent, absl::string_view name) {
  std::string key;
  AppendBig(&key, Raw(parent));
  key.append(name.data(), name.size());
  return Slot(static_cast<uint16_t>(Hash64(key) >> 48));
}

}  // namespace cfs
