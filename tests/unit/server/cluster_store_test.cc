// Goal: what a store remembers of its cluster comes back, or is known to be
// damaged; and nobody else reads the secret. Method: real files.
#include "cfs/server/cluster_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cfs/base/limits.h"

namespace cfs {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using ::testing::HasSubstr;

class ClusterStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cluster_store_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    store_ = name;
  }
  void TearDown() override { fs::remove_all(store_); }

  std::string Read(const char* name) const {
    std::ifstream file(store_ + "/" + name);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  void Write(const char* name, const std::string& text) const {
    std::ofstream(store_ + "/" + name) << text;
  }

  std::string store_;
};

ClusterMemory Memory() {
  ClusterMemory memory;
  memory.token = *MakeToken({"127.0.0.1:7000", "node-a:7001"});
  memory.founder = true;
  memory.member = true;
  memory.listen = "node-a:0";
  memory.address = "10.0.0.7:7000";
  memory.weight = 30;
  return memory;
}

ClusterMapPtr Map(const ClusterId& cluster) {
  return *ClusterMap::Found(cluster,
                            {NodeId{7}, NodeState::kUp, 100, "machine", {"10.0.0.7:7000"}, 1, 2});
}

TEST_F(ClusterStoreTest, MemoryComesBack) {
  const auto nothing = ReadClusterMemory(store_);
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_FALSE(nothing->has_value());

  const ClusterMemory memory = Memory();
  ASSERT_TRUE(WriteClusterMemory(store_, memory).ok());
  struct stat st;
  ASSERT_EQ(stat((store_ + "/cluster.json").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  const auto read = ReadClusterMemory(store_);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ(FormatToken((*read)->token), FormatToken(memory.token));
  EXPECT_TRUE((*read)->founder);
  EXPECT_TRUE((*read)->member);
  EXPECT_EQ((*read)->listen, memory.listen);
  EXPECT_EQ((*read)->address, memory.address);
  EXPECT_EQ((*read)->weight, memory.weight);

  ASSERT_TRUE(RemoveClusterMemory(store_).ok());
  ASSERT_TRUE(RemoveClusterMemory(store_).ok());
  EXPECT_FALSE(ReadClusterMemory(store_)->has_value());
}

TEST_F(ClusterStoreTest, DamageIsNoticed) {
  const std::string good = EncodeClusterMemory(Memory());
  ASSERT_TRUE(DecodeClusterMemory(good).ok());
  for (size_t size = 0; size < good.size() - 2; ++size) {
    EXPECT_EQ(DecodeClusterMemory(good.substr(0, size)).status().code(), StatusCode::kDataLoss);
  }
  const std::pair<const char*, const char*> changes[] = {{"\"format\": 1", "\"format\": 0"},
                                                         {"\"format\": 1", "\"format\": \"1\""},
                                                         {"\"founder\": true", "\"founder\": 1"},
                                                         {"\"member\": true", "\"members\": true"},
                                                         {"\"weight\": 30", "\"weight\": -1"},
                                                         {"\"weight\": 30", "\"weight\": 10001"},
                                                         {"\"weight\": 30", "\"weight\": \"30\""},
                                                         {"cfs1-", "cfs1-A"},
                                                         {"10.0.0.7:7000", "10.0.0.7"},
                                                         {"node-a:0", "node-a:99999"}};
  for (const auto& [from, to] : changes) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), std::string(from).size(), to);
    EXPECT_EQ(DecodeClusterMemory(text).status().code(), StatusCode::kDataLoss) << text;
  }
  std::string newer = good;
  newer.replace(newer.find("\"format\": 1"), 11, "\"format\": 2");
  EXPECT_EQ(DecodeClusterMemory(newer).status().code(), StatusCode::kFailedPrecondition);

  Write("cluster.json", good.substr(0, good.size() / 2));
  const auto read = ReadClusterMemory(store_);
  EXPECT_EQ(read.status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(read.status().message(), HasSubstr(store_ + "/cluster.json"));
}

TEST_F(ClusterStoreTest, AnErrorDoesNotTellTheSecret) {
  const ClusterMemory memory = Memory();
  std::string text = EncodeClusterMemory(memory);
  text.replace(text.find("\"weight\": 30"), 12, "\"weight\": -1");
  Write("cluster.json", text);
  EXPECT_EQ(std::string(ReadClusterMemory(store_).status().message()).find("cfs1-"),
            std::string::npos);
}

TEST_F(ClusterStoreTest, TheMapComesBack) {
  const ClusterId cluster = {1, 2, 3};
  ASSERT_TRUE(ReadStoredMap(store_, cluster).ok());
  EXPECT_EQ(*ReadStoredMap(store_, cluster), nullptr);
  const ClusterMapPtr map = Map(cluster);
  ASSERT_TRUE(WriteStoredMap(store_, *map).ok());
  const auto read = ReadStoredMap(store_, cluster);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(**read == *map);
  EXPECT_EQ(ReadStoredMap(store_, {4}).status().code(), StatusCode::kDataLoss);
  const std::string bytes = Read("cluster.map");
  for (const size_t size : {size_t{0}, size_t{1}, bytes.size() / 2, bytes.size() - 1}) {
    Write("cluster.map", bytes.substr(0, size));
    EXPECT_EQ(ReadStoredMap(store_, cluster).status().code(), StatusCode::kDataLoss) << size;
  }
}

TEST_F(ClusterStoreTest, IdsHaveATextForm) {
  ClusterId cluster = {};
  for (size_t i = 0; i < cluster.size(); ++i) cluster[i] = static_cast<uint8_t>(i * 16 + i);
  EXPECT_EQ(HexOf(cluster), "00112233445566778899aabbccddeeff");
  EXPECT_EQ(ClusterIdOf(HexOf(cluster)), cluster);
}

}  // namespace
}  // namespace cfs
