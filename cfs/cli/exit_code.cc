#include "cfs/cli/exit_code.h"

#include <sysexits.h>

#include "absl/strings/cord.h"

namespace cfs {
namespace {

constexpr char kWrongFound[] = "cfs/wrong-found";

}  // namespace

absl::Status WrongFound(absl::string_view message) {
  absl::Status status(absl::StatusCode::kUnknown, message);
  status.SetPayload(kWrongFound, absl::Cord());
  return status;
}

int ExitCode(const absl::Status& status) {
  if (status.GetPayload(kWrongFound)) return 1;
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
