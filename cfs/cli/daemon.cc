#include "cfs/cli/daemon.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/cli/exit_code.h"

namespace cfs {
namespace {

// One report crosses the pipe: a byte with the status code, then the message.
void Report(int fd, const absl::Status& status) {
  std::string report(1, static_cast<char>(status.code()));
  absl::StrAppend(&report, status.message());
  if (write(fd, report.data(), report.size()) < 0) {
    // The process that waited is gone, and so is who would have read this.
  }
  close(fd);
}

[[noreturn]] void RunChild(int report_fd, const ServeFn& serve) {
  setsid();
  umask(077);
  signal(SIGPIPE, SIG_IGN);
  bool ready = false;
  const absl::Status status = serve([&] {
    Report(report_fd, absl::OkStatus());
    ready = true;
  });
  if (!ready) {
    Report(report_fd, status.ok() ? absl::AbortedError("stopped before it was ready") : status);
  } else if (!status.ok()) {
    LogError(status.message());
  }
  std::exit(ExitCode(status));
}

}  // namespace

absl::Status RunAsDaemon(const std::string& log, const ServeFn& serve) {
  // Nothing of the caller's shell may stay open for as long as the mount lives.
  close_range(STDERR_FILENO + 1, ~0U, 0);
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus("fork");
  if (pid == 0) {
    close(pipe_fds[0]);
    RunChild(pipe_fds[1], serve);
  }
  const UniqueFd reports(pipe_fds[0]);
  close(pipe_fds[1]);
  std::string report;
  char buffer[512];
  while (true) {
    const ssize_t n = read(reports.get(), buffer, sizeof(buffer));
    if (n > 0) report.append(buffer, n);
    if (n == 0 || (n < 0 && errno != EINTR)) break;
  }
  if (!report.empty()) {
    return absl::Status(static_cast<absl::StatusCode>(report[0]), report.substr(1));
  }
  int wait_status = 0;
  while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
  }
  return absl::InternalError(absl::StrCat(
      "the daemon died at its start (", WIFSIGNALED(wait_status) ? "signal " : "exit code ",
      WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : WEXITSTATUS(wait_status),
      "); see the end of ", log));
}

absl::Status DetachFromTerminal(const std::string& log) {
  CFS_RETURN_IF_ERROR(LogToFile(log));
  KeepLogSmall(log);
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus("/dev/null");
  dup2(null.get(), STDIN_FILENO);
  dup2(null.get(), STDOUT_FILENO);
  return chdir("/") == 0 ? absl::OkStatus() : ErrnoStatus("chdir /");
}

}  // namespace cfs
