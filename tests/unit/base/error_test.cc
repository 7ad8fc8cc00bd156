// Goal: every errno that we return reaches the application unchanged.
#include "cfs/base/error.h"

#include <cerrno>

#include "gtest/gtest.h"

namespace cfs {
namespace {

TEST(ErrorTest, EveryErrnoSurvivesAStatus) {
  for (int err = 1; err < 134; ++err) {
    if (err == 41 || err == 58) continue;  // Not assigned on Linux.
    const absl::Status status = PosixError(err, "what");
    EXPECT_FALSE(status.ok()) << err;
    EXPECT_EQ(ErrnoOf(status), err);
  }
}

TEST(ErrorTest, CodesWithoutErrnoHaveOne) {
  EXPECT_EQ(ErrnoOf(NotFound()), ENOENT);
  EXPECT_EQ(ErrnoOf(absl::DataLossError("x")), EIO);
  EXPECT_EQ(ErrnoOf(absl::OkStatus()), 0);
}

}  // namespace
}  // namespace cfs
