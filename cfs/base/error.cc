#include "cfs/base/error.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"

namespace cfs {
namespace {

constexpr char kErrnoUrl[] = "cfs/errno";

}  // namespace

absl::Status PosixError(int err, absl::string_view message) {
  CFS_CHECK(err > 0);
  absl::Status status(absl::ErrnoToStatusCode(err), message);
  CFS_CHECK(!status.ok());
  status.SetPayload(kErrnoUrl, absl::Cord(absl::StrCat(err)));
  return status;
}

int ErrnoOf(const absl::Status& status) {
  if (status.ok()) return 0;
  if (const auto payload = status.GetPayload(kErrnoUrl)) {
    int err = 0;
    if (absl::SimpleAtoi(std::string(*payload), &err) && err > 0) return err;
  }
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kAlreadyExists:
      return EEXIST;
    case absl::StatusCode::kInvalidArgument:
      return EINVAL;
    case absl::StatusCode::kPermissionDenied:
      return EACCES;
    case absl::StatusCode::kResourceExhausted:
      return ENOSPC;
    case absl::StatusCode::kUnimplemented:
      return EOPNOTSUPP;
    case absl::StatusCode::kCancelled:
      return EINTR;
    default:
      return EIO;
  }
}

absl::Status ErrnoStatus(int err, absl::string_view what) {
  return PosixError(err, absl::StrCat(what, ": ", std::strerror(err)));
}

absl::Status ErrnoStatus(absl::string_view what) { return ErrnoStatus(errno, what); }

}  // namespace cfs
