// A fuzz target: one file NAME_fuzz.cc that defines the two functions below.
//
// Built with clang's libFuzzer (meson option `fuzzers`), run by fuzz.py. A
// failed CFS_CHECK is a finding, as is what a sanitizer reports.
#ifndef CFS_TESTS_FUZZ_FUZZ_H_
#define CFS_TESTS_FUZZ_FUZZ_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace cfs {

// True when the decoder has taken the input.
bool FuzzOne(absl::string_view input);

// Inputs to begin with, all of which the decoder takes: to mutate noise would
// seldom get past its checks.
std::vector<std::string> FuzzSeeds();

// Takes the first byte off `in`: which of several things to try. 0 if there is
// none.
inline unsigned TakeSelector(absl::string_view* in) {
  if (in->empty()) return 0;
  const auto selector = static_cast<unsigned char>(in->front());
  in->remove_prefix(1);
  return selector;
}

}  // namespace cfs

#endif  // CFS_TESTS_FUZZ_FUZZ_H_
