// What a Status says to the shell.
#ifndef CFS_CLI_EXIT_CODE_H_
#define CFS_CLI_EXIT_CODE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace cfs {

// A code of <sysexits.h>, or that of WrongFound; cfs(1) lists them.
int ExitCode(const absl::Status& status);

// The verb has done its work and found what is wrong: 1.
absl::Status WrongFound(absl::string_view message);

}  // namespace cfs

#endif  // CFS_CLI_EXIT_CODE_H_
