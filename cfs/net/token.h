// What a node needs to join a cluster, as one line to paste:
//
//     cfs1-BASE64URL(version 1, cluster id, secret, seed addresses, checksum)
//
// Who has the token is a member. The secret is in no log line and no error.
#ifndef CFS_NET_TOKEN_H_
#define CFS_NET_TOKEN_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

using ClusterId = std::array<uint8_t, 16>;

// 32 random bytes. Has no text form, and leaves nothing behind in memory.
class Secret {
 public:
  static constexpr size_t kBytes = 32;

  Secret() = default;
  Secret(const Secret&) = default;
  Secret& operator=(const Secret&) = default;
  ~Secret();

  uint8_t* data() { return bytes_.data(); }
  const uint8_t* data() const { return bytes_.data(); }
  bool operator==(const Secret& other) const;

 private:
  std::array<uint8_t, kBytes> bytes_ = {};
};

struct Token {
  ClusterId cluster;
  Secret secret;
  // "HOST:PORT" of nodes to ask first; 1..kSeedsMax.
  std::vector<std::string> seeds;
};

// Of a new cluster. INVALID_ARGUMENT when a seed is no address, or they are
// none or too many.
absl::StatusOr<Token> MakeToken(std::vector<std::string> seeds);

// One line without spaces or newline.
// REQUIRES: `token` comes from MakeToken or ParseToken.
std::string FormatToken(const Token& token);

// Ignores white space around the token. INVALID_ARGUMENT with one line that
// says what is wrong: no token, damaged, or of a newer cfs.
absl::StatusOr<Token> ParseToken(absl::string_view text);

}  // namespace cfs

#endif  // CFS_NET_TOKEN_H_
