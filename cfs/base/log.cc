#include "cfs/base/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <ctime>

#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/unique_fd.h"

namespace cfs {
namespace {

std::atomic<int> g_level{static_cast<int>(LogLevel::kInfo)};

constexpr const char* kNames[] = {"DEBUG", "INFO", "WARN", "ERROR"};

}  // namespace

void SetLogLevel(LogLevel level) {
  g_level.store(static_cast<int>(level), std::memory_order_relaxed);
}

bool LogEnabled(LogLevel level) {
  return static_cast<int>(level) >= g_level.load(std::memory_order_relaxed);
}

void LogLine(LogLevel level, absl::string_view text) {
  if (!LogEnabled(level)) return;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc;
  gmtime_r(&now.tv_sec, &utc);
  char stamp[64];
  const size_t n = strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(stamp + n, sizeof(stamp) - n, ".%06ldZ", now.tv_nsec / 1000);
  const std::string line =
      absl::StrCat(stamp, " ", kNames[static_cast<int>(level)], " ", text, "\n");
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
    // Nowhere left to report to.
  }
}

absl::Status LogToFile(const std::string& file) {
  const UniqueFd fd(
      open(file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid() || dup2(fd.get(), STDERR_FILENO) < 0) return ErrnoStatus(file);
  return absl::OkStatus();
}

void KeepLogSmall(const std::string& file) {
  struct stat st;
  if (fstat(STDERR_FILENO, &st) != 0 || st.st_size <= kLogBytesMax) return;
  // ENOENT: renamed by a call that could not make the new one.
  if (rename(file.c_str(), (file + ".1").c_str()) != 0 && errno != ENOENT) return;
  LogToFile(file).IgnoreError();  // Goes on where it is; the next call tries again.
}

}  // namespace cfs
