#include "cfs/server/cluster_words.h"

#include <fcntl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"
#include "cfs/net/token.h"
#include "cfs/server/cluster_store.h"
#include "cfs/server/small_file.h"

namespace cfs {

absl::StatusOr<std::string> ReadToken(absl::string_view value) {
  std::string text(value);
  if (absl::ConsumePrefix(&value, "@")) {
    const std::string file(value);
    const UniqueFd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return ErrnoStatus(absl::StrCat("token file ", file));
    text = ReadSmallFile(AT_FDCWD, file, kTokenBytesMax + 1);
  }
  CFS_ASSIGN_OR_RETURN(const Token token, ParseToken(text));
  return FormatToken(token);
}

std::string ClusterOfToken(absl::string_view text) {
  const auto token = ParseToken(text);
  CFS_CHECK(token.ok());
  return HexOf(token->cluster);
}

bool ParseListen(absl::string_view value, std::string* listen) {
  for (const std::string& address : {std::string(value), absl::StrCat(value, ":0")}) {
    if (!SplitAddress(address).ok()) continue;
    *listen = address;
    return true;
  }
  return false;
}

}  // namespace cfs
