#include "cfs/cli/exit_code.h"

#include <sysexits.h>

namespace cfs {

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return EX_OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EX_USAGE;
    case absl::StatusCode::kDataLoss:
      return EX_DATAERR;
    case absl::StatusCode::kNotFound:
      return EX_NOINPUT;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kUnimplemented:
      return EX_UNAVAILABLE;
    case absl::StatusCode::kInternal:
      return EX_SOFTWARE;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      return EX_TEMPFAIL;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return EX_NOPERM;
    case absl::StatusCode::kFailedPrecondition:
      return EX_CONFIG;
    default:
      return EX_OSERR;
  }
}

}  // namespace cfs
