// A set of slots, as a value and as an atomic one.
#ifndef CFS_BASE_SLOT_SET_H_
#define CFS_BASE_SLOT_SET_H_

#include <array>
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>

#include "cfs/base/types.h"

namespace cfs {

inline constexpr size_t kSlots = 65536;
using SlotSet = std::bitset<kSlots>;

// Thread-safe. Relaxed: who changes it sees to the order.
class AtomicSlotSet {
 public:
  bool Has(Slot slot) const {
    return words_[Raw(slot) / 64].load(std::memory_order_relaxed) >> (Raw(slot) % 64) & 1;
  }
  void Set(Slot slot, bool has) {
    const uint64_t bit = uint64_t{1} << (Raw(slot) % 64);
    std::atomic<uint64_t>& word = words_[Raw(slot) / 64];
    has ? word.fetch_or(bit, std::memory_order_relaxed)
        : word.fetch_and(~bit, std::memory_order_relaxed);
  }
  void Set(const SlotSet& slots) {
    for (size_t i = 0; i < kSlots; ++i) Set(Slot(static_cast<uint16_t>(i)), slots[i]);
  }
  SlotSet Get() const {
    SlotSet slots;
    for (size_t i = 0; i < kSlots; ++i) slots[i] = Has(Slot(static_cast<uint16_t>(i)));
    return slots;
  }

 private:
  std::array<std::atomic<uint64_t>, kSlots / 64> words_{};
};

}  // namespace cfs

#endif  // CFS_BASE_SLOT_SET_H_
