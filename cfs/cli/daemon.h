// The long-running process that a verb leaves behind.
#ifndef CFS_CLI_DAEMON_H_
#define CFS_CLI_DAEMON_H_

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace cfs {

using ServeFn = std::function<absl::Status(std::function<void()> on_ready)>;

// Runs `serve` in a new process, in a session of its own, and returns when it has
// called on_ready (OK) or has ended before that (its Status; `log` is where the
// user is sent when it could not even say that). Only the calling process returns.
// A Status that `serve` returns later is logged.
// REQUIRES: the calling process has one thread, and `serve` needs no descriptor of it.
absl::Status RunAsDaemon(const std::string& log, const ServeFn& serve);

// Takes the process off its terminal: stderr goes to the end of the file `log`,
// stdin and stdout to /dev/null, the working directory is /.
absl::Status DetachFromTerminal(const std::string& log);

}  // namespace cfs

#endif  // CFS_CLI_DAEMON_H_
