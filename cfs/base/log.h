// Log lines: `2026-01-02T03:04:05.678901Z LEVEL text key=value ...`.
//
// ERROR: an operation or data is lost and someone must act. WARN: odd, and the
// message says what happens next. INFO: a change of the node. DEBUG: per object,
// off by default. Lower-case text, then key=value; no user paths above DEBUG.
//
// Thread-safe, but for KeepLogSmall. A line is one write(2) to stderr, which the
// daemon points at STORE/cfs.log.
#ifndef CFS_BASE_LOG_H_
#define CFS_BASE_LOG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace cfs {

enum class LogLevel : int { kDebug = 0, kInfo = 1, kWarn = 2, kError = 3 };

void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, absl::string_view text);

// Stderr, ours and that of libraries and children, goes to the end of `file`.
absl::Status LogToFile(const std::string& file);

// To be called now and then where LogToFile was: if stderr's file is larger than
// kLogBytesMax, it becomes FILE.1, in place of the one before, and stderr goes on
// in a new `file`. Each write is whole in one of them. Of one thread at a time.
void KeepLogSmall(const std::string& file);

template <typename... Args>
void LogError(const Args&... args) {
  LogLine(LogLevel::kError, absl::StrCat(args...));
}
template <typename... Args>
void LogWarn(const Args&... args) {
  LogLine(LogLevel::kWarn, absl::StrCat(args...));
}
template <typename... Args>
void LogInfo(const Args&... args) {
  LogLine(LogLevel::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void LogDebug(const Args&... args) {
  if (LogEnabled(LogLevel::kDebug)) LogLine(LogLevel::kDebug, absl::StrCat(args...));
}

}  // namespace cfs

#endif  // CFS_BASE_LOG_H_
