#include "cfs/net/token.h"

#include <sodium.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cfs/base/check.h"
#include "cfs/base/coding.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/net/address.h"

namespace cfs {
namespace {

constexpr absl::string_view kPrefix = "cfs1-";
constexpr uint8_t kVersion = 1;
constexpr size_t kChecksumBytes = 4;

// BLAKE2b, cut. It finds a damaged paste; an attacker can make his own.
std::string Checksum(absl::string_view bytes) {
  unsigned char hash[crypto_generichash_BYTES];
  crypto_generichash(hash, sizeof(hash), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size(), nullptr, 0);
  return std::string(reinterpret_cast<const char*>(hash), kChecksumBytes);
}

absl::Status CheckSeeds(const std::vector<std::string>& seeds) {
  if (seeds.empty() || seeds.size() > kSeedsMax) {
    return absl::InvalidArgumentError(absl::StrCat("a token has 1 to ", kSeedsMax, " addresses"));
  }
  for (const std::string& seed : seeds) {
    CFS_RETURN_IF_ERROR(SplitAddress(seed).status());
  }
  return absl::OkStatus();
}

// Moves sizes of the front of `in` to `out`; false when there is too little.
template <typename Container>
bool Take(absl::string_view* in, size_t size, Container* out) {
  if (in->size() < size) return false;
  std::copy_n(in->begin(), size, out->data());
  in->remove_prefix(size);
  return true;
}

}  // namespace

Secret::~Secret() { sodium_memzero(bytes_.data(), bytes_.size()); }

bool Secret::operator==(const Secret& other) const {
  return sodium_memcmp(bytes_.data(), other.bytes_.data(), kBytes) == 0;
}

absl::StatusOr<Token> MakeToken(std::vector<std::string> seeds) {
  CFS_CHECK(sodium_init() >= 0);
  CFS_RETURN_IF_ERROR(CheckSeeds(seeds));
  Token token;
  randombytes_buf(token.cluster.data(), token.cluster.size());
  randombytes_buf(token.secret.data(), Secret::kBytes);
  token.seeds = std::move(seeds);
  return token;
}

std::string FormatToken(const Token& token) {
  CFS_CHECK(CheckSeeds(token.seeds).ok());
  std::string bytes(1, kVersion);
  bytes.append(token.cluster.begin(), token.cluster.end());
  bytes.append(token.secret.data(), token.secret.data() + Secret::kBytes);
  AppendLittle(&bytes, static_cast<uint8_t>(token.seeds.size()));
  for (const std::string& seed : token.seeds) {
    AppendLittle(&bytes, static_cast<uint16_t>(seed.size()));
    bytes += seed;
  }
  bytes += Checksum(bytes);
  return absl::StrCat(kPrefix, absl::WebSafeBase64Escape(bytes));
}

absl::StatusOr<Token> ParseToken(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  if (!absl::ConsumePrefix(&text, kPrefix)) {
    return absl::InvalidArgumentError(absl::StrCat("not a token: one begins with ", kPrefix));
  }
  const auto damaged = absl::InvalidArgumentError("damaged token: copy it again, all of it");
  std::string bytes;
  if (text.size() > kTokenBytesMax || !absl::WebSafeBase64Unescape(text, &bytes) ||
      bytes.size() < kChecksumBytes) {
    return damaged;
  }
  absl::string_view in = absl::string_view(bytes).substr(0, bytes.size() - kChecksumBytes);
  if (Checksum(in) != bytes.substr(in.size())) return damaged;

  Token token;
  uint8_t version = 0, seed_count = 0;
  if (!ConsumeLittle(&in, &version)) return damaged;
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("token of version ", version, "; this cfs knows ", kVersion));
  }
  if (!Take(&in, token.cluster.size(), &token.cluster) ||
      !Take(&in, Secret::kBytes, &token.secret) || !ConsumeLittle(&in, &seed_count)) {
    return damaged;
  }
  for (int i = 0; i < seed_count; ++i) {
    uint16_t size = 0;
    if (!ConsumeLittle(&in, &size)) return damaged;
    std::string seed(std::min<size_t>(size, in.size()), '\0');
    if (!Take(&in, size, &seed)) return damaged;
    token.seeds.push_back(std::move(seed));
  }
  if (!in.empty() || !CheckSeeds(token.seeds).ok()) return damaged;
  return token;
}

}  // namespace cfs
