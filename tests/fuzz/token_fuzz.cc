// Token lines as somebody pastes them (selector 0), and what they say behind a
// checksum that fits (1). What is taken can be formatted and read again.
#include <sodium.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/net/token.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {
namespace {

constexpr size_t kChecksumBytes = 4;
constexpr absl::string_view kPrefix = "cfs1-";

std::string Sealed(absl::string_view bytes) {
  unsigned char hash[crypto_generichash_BYTES];
  crypto_generichash(hash, sizeof(hash), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size(), nullptr, 0);
  return absl::StrCat(bytes,
                      absl::string_view(reinterpret_cast<const char*>(hash), kChecksumBytes));
}

}  // namespace

bool FuzzOne(absl::string_view input) {
  const bool sealed = TakeSelector(&input) % 2 == 1;
  const auto token =
      ParseToken(sealed ? absl::StrCat(kPrefix, absl::WebSafeBase64Escape(Sealed(input)))
                        : std::string(input));
  if (!token.ok()) return false;
  const auto again = ParseToken(FormatToken(*token));
  CFS_CHECK(again.ok());
  CFS_CHECK(again->cluster == token->cluster);
  CFS_CHECK(again->secret == token->secret);
  CFS_CHECK(again->seeds == token->seeds);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (const std::vector<std::string>& addresses :
       {std::vector<std::string>{"127.0.0.1:7000"}, {"[fe80::1]:7000", "node-1.example:1"}}) {
    const std::string line = FormatToken({.cluster = {1, 2}, .secret = {}, .seeds = addresses});
    std::string bytes;
    CFS_CHECK(absl::WebSafeBase64Unescape(line.substr(kPrefix.size()), &bytes));
    bytes.resize(bytes.size() - kChecksumBytes);
    seeds.push_back(std::string(1, '\0') + line);
    seeds.push_back(std::string(1, '\1') + bytes);
  }
  return seeds;
}

}  // namespace cfs
