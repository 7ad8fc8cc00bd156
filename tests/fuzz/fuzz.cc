// What libFuzzer calls. `TARGET --seeds=DIRECTORY` writes the target's seeds.
#include "tests/fuzz/fuzz.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cfs/base/check.h"

extern "C" {
int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
}

int LLVMFuzzerInitialize(int* argc, char*** argv) {
  absl::string_view directory = *argc == 2 ? (*argv)[1] : "";
  if (!absl::ConsumePrefix(&directory, "--seeds=")) return 0;
  int number = 0;
  for (const std::string& seed : cfs::FuzzSeeds()) {
    CFS_CHECK(cfs::FuzzOne(seed));
    std::ofstream file(absl::StrCat(directory, "/seed-", number++), std::ios::binary);
    file << seed;
    file.close();
    CFS_CHECK(file.good());
  }
  exit(0);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cfs::FuzzOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
