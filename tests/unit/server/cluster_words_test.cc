// Goal: what users type for a cluster is understood, or refused as a whole.
#include "cfs/server/cluster_words.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "cfs/net/token.h"
#include "cfs/server/cluster_store.h"

namespace cfs {
namespace {

using absl::StatusCode;

TEST(ClusterWordsTest, ListenMayLackThePort) {
  const std::pair<const char*, const char*> good[] = {{"host", "host:0"},
                                                      {"host:7000", "host:7000"},
                                                      {"10.0.0.1", "10.0.0.1:0"},
                                                      {"[::1]", "[::1]:0"},
                                                      {"[::1]:7000", "[::1]:7000"}};
  for (const auto& [value, wanted] : good) {
    std::string listen;
    EXPECT_TRUE(ParseListen(value, &listen)) << value;
    EXPECT_EQ(listen, wanted);
  }
  for (const char* bad :
       {"", ":7000", "host:", "host:port", "host:70000", "::1", "a b", "host:1:2"}) {
    std::string listen = "before";
    EXPECT_FALSE(ParseListen(bad, &listen)) << bad;
    EXPECT_EQ(listen, "before");
  }
}

TEST(ClusterWordsTest, ATokenComesFromTheWordOrAFile) {
  const Token token = *MakeToken({"node:7000"});
  const std::string text = FormatToken(token);
  EXPECT_EQ(*ReadToken(text), text);
  EXPECT_EQ(ClusterOfToken(text), HexOf(token.cluster));

  std::string name = (std::filesystem::temp_directory_path() / "cluster_words.XXXXXX").string();
  const int fd = mkstemp(name.data());
  ASSERT_GE(fd, 0);
  close(fd);
  std::ofstream(name) << " " << text << "\n";
  EXPECT_EQ(*ReadToken(absl::StrCat("@", name)), text);
  std::ofstream(name) << text << text;
  EXPECT_EQ(ReadToken(absl::StrCat("@", name)).status().code(), StatusCode::kInvalidArgument);
  std::ofstream(name) << std::string(1 << 20, 'a');
  EXPECT_EQ(ReadToken(absl::StrCat("@", name)).status().code(), StatusCode::kInvalidArgument);
  unlink(name.c_str());
  EXPECT_EQ(ReadToken(absl::StrCat("@", name)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadToken("").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadToken("@").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace cfs
