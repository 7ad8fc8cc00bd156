// What a user says of a cluster on the command line.
#ifndef CFS_SERVER_CLUSTER_WORDS_H_
#define CFS_SERVER_CLUSTER_WORDS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

// The token that `value` is or, if it is "@FILE", that the file has. Errors:
// INVALID_ARGUMENT for no token, NOT_FOUND or the errno for the file.
absl::StatusOr<std::string> ReadToken(absl::string_view value);

// The id of the token's cluster, as node.json has it. REQUIRES: ReadToken gave
// the token.
std::string ClusterOfToken(absl::string_view token);

// "HOST:PORT" of HOST[:PORT], with port 0 for none. False if it is neither.
bool ParseListen(absl::string_view value, std::string* listen);

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_WORDS_H_
