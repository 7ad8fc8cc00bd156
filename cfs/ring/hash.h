// Hashes that are stored or sent: equal on every node, compiler and release.
#ifndef CFS_RING_HASH_H_
#define CFS_RING_HASH_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "cfs/base/coding.h"
#include "cfs/base/types.h"

namespace cfs {

// XXH3, 64 bits, seed 0.
uint64_t Hash64(absl::string_view bytes);

// Where a new directory's own dentries live under the placement `spread`: a
// function of its parent and name. Golden values in tests/unit/ring/hash_test.cc.
Slot SpreadSlot(InodeId parent, absl::string_view name);

}  // namespace cfs

#endif  // CFS_RING_HASH_H_
