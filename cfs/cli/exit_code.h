// What a Status says to the shell.
#ifndef CFS_CLI_EXIT_CODE_H_
#define CFS_CLI_EXIT_CODE_H_

#include "absl/status/status.h"

namespace cfs {

// A code of <sysexits.h>; cfs(1) lists them.
int ExitCode(const absl::Status& status);

}  // namespace cfs

#endif  // CFS_CLI_EXIT_CODE_H_
