// Chance, as the seed has it.
#ifndef CFS_TESTS_SIMULATOR_RANDOM_H_
#define CFS_TESTS_SIMULATOR_RANDOM_H_

#include <cstdint>

namespace cfs {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // SplitMix64.
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [0, end).
  uint64_t Below(uint64_t end) { return Next() % end; }
  bool PerMille(uint64_t chance) { return Below(1000) < chance; }

 private:
  uint64_t state_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_RANDOM_H_
