// Goal: the tables of `cfs status` and `cfs stat` line up and hold everything.
#include "cfs/cli/report.h"

#include <gtest/gtest.h>

namespace cfs {
namespace {

TEST(ReportTest, AlignsAndIndents) {
  EXPECT_EQ(Report({{"store", "/s"},
                    {"passthrough", true},
                    {"io_uring", false},
                    {"fuse", {{"read_bytes", 1536u}, {"requests", {{"lookup", 12u}}}}}}),
            "io_uring     no\n"
            "passthrough  yes\n"
            "store        /s\n"
            "fuse\n"
            "  read_bytes  1.50 KiB\n"
            "  requests\n"
            "    lookup  12\n");
}

TEST(ReportTest, BytesHaveUnits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.00 KiB");
  EXPECT_EQ(HumanBytes(5ull << 30), "5.00 GiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16.00 EiB");
}

}  // namespace
}  // namespace cfs
