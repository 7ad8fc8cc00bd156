// Goal: one process a store, on one machine; a refusal leaves no trace; a store
// that was half made is completed. Method: real directories.
#include "cfs/server/store_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cfs/base/error.h"

namespace cfs {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void Write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

class StoreDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "store_dir_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = fs::canonical(name);
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string store() const { return (root_ / "store").string(); }

  // Everything below root_, with the contents of files.
  std::map<std::string, std::string> Snapshot() const {
    std::map<std::string, std::string> result;
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      result[entry.path().string()] = entry.is_regular_file() ? Read(entry.path()) : "";
    }
    return result;
  }

  // A store that this machine made earlier.
  StoreIdentity Make() {
    const auto made = StoreDir::Open(store());
    EXPECT_TRUE(made.ok()) << made.status();
    return made->identity();
  }

  void ExpectRefused(absl::StatusCode code, const std::string& message) {
    const auto before = Snapshot();
    const auto refused = StoreDir::Open(store());
    EXPECT_EQ(refused.status().code(), code) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(message));
    EXPECT_EQ(Snapshot(), before);
  }

  fs::path root_;
};

TEST_F(StoreDirTest, MakesAStoreAndKeepsItsIdentity) {
  const std::string path = (root_ / "a" / "b" / "store").string();
  std::string text;
  {
    const auto made = StoreDir::Open(path + "/");
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ(made->path(), path);
    EXPECT_TRUE(fs::is_directory(made->meta_path()));
    EXPECT_TRUE(fs::is_directory(made->data_path()));
    EXPECT_NE(Raw(made->identity().node_id), 0u);
    EXPECT_EQ(made->identity().machine, MachineId());
    for (const char* part : {"", "/meta", "/data"}) {
      struct stat st;
      ASSERT_EQ(stat((path + part).c_str(), &st), 0);
      EXPECT_EQ(st.st_mode & 0777, 0700u) << part;
    }
    EXPECT_EQ(Read(path + "/cfs.pid"), std::to_string(getpid()) + "\n");
    text = Read(path + "/node.json");
  }
  EXPECT_FALSE(fs::exists(path + "/cfs.pid"));
  ASSERT_TRUE(StoreDir::Open(path).ok());
  EXPECT_EQ(Read(path + "/node.json"), text);
}

TEST_F(StoreDirTest, PathsHaveOneSpelling) {
  fs::create_directory_symlink(root_, root_ / "link");
  for (const char* spelling :
       {"store", "store/", "./x/../store//", "link/store", "link/link/store"}) {
    const auto resolved = ResolveStorePath((root_ / spelling).string());
    ASSERT_TRUE(resolved.ok()) << resolved.status();
    EXPECT_EQ(*resolved, store()) << spelling;
  }
  EXPECT_FALSE(ResolveStorePath("").ok());
}

TEST_F(StoreDirTest, StoresDifferInTheirIdentity) {
  const auto one = StoreDir::Open((root_ / "one").string());
  const auto two = StoreDir::Open((root_ / "two").string());
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_NE(one->identity().cluster_id, two->identity().cluster_id);
  EXPECT_NE(one->identity().node_id, two->identity().node_id);
}

TEST_F(StoreDirTest, OnlyOneMayHaveItOpen) {
  auto first = StoreDir::Open(store());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(StoreOwner(store()), getpid());
  ExpectRefused(absl::StatusCode::kUnavailable, "process " + std::to_string(getpid()));
  {
    const StoreDir moved = *std::move(first);
    ExpectRefused(absl::StatusCode::kUnavailable, "in use");
  }
  EXPECT_EQ(StoreOwner(store()), std::nullopt);
  EXPECT_TRUE(StoreDir::Open(store()).ok());
}

TEST_F(StoreDirTest, LockEndsWithTheProcessThatHasIt) {
  Make();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto opened = StoreDir::Open(store());
    if (opened.ok() && write(ready[1], "", 1) == 1) pause();
    _exit(1);
  }
  close(ready[1]);
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  EXPECT_EQ(StoreOwner(store()), child);
  ExpectRefused(absl::StatusCode::kUnavailable, "process " + std::to_string(child));
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(StoreOwner(store()), std::nullopt);  // Whatever cfs.pid still says.
  EXPECT_TRUE(StoreDir::Open(store()).ok());
}

// A process that is killed may have lost its first thread, by which others know
// it, while another one still keeps its files open.
TEST_F(StoreDirTest, WaitsForAProcessThatIsJustEnding) {
  constexpr auto kEnding = std::chrono::milliseconds(300);
  Make();
  int ready[2], end[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(end), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(end[1]);
    const auto opened = StoreDir::Open(store());
    std::thread last([&] {
      char byte;
      if (read(end[0], &byte, 1) == 1) std::this_thread::sleep_for(kEnding);
      _exit(1);
    });
    if (!opened.ok() || write(ready[1], "", 1) != 1) _exit(1);
    syscall(SYS_exit, 0);  // Unwinds no stack: `last` uses it.
  }
  close(ready[1]);
  close(end[0]);
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  const std::string stat = "/proc/" + std::to_string(child) + "/stat";
  while (Read(stat).find(") Z ") == std::string::npos) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(write(end[1], "", 1), 1);
  EXPECT_EQ(StoreOwner(store()), std::nullopt);
  EXPECT_GE(std::chrono::steady_clock::now() - start, kEnding) << "the child had ended before";
  EXPECT_TRUE(StoreDir::Open(store()).ok());
  close(ready[0]);
  close(end[1]);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
}

TEST_F(StoreDirTest, CompletesWhatACrashLeft) {
  const std::vector<std::pair<const char*, bool>> steps = {
      {"lock", false}, {"meta", true}, {"data", true}, {"node.json.new", false}};
  for (size_t done = 0; done <= steps.size(); ++done) {
    fs::remove_all(store());
    fs::create_directory(store());
    for (size_t i = 0; i < done; ++i) {
      const fs::path path = fs::path(store()) / steps[i].first;
      steps[i].second ? void(fs::create_directory(path)) : Write(path, "{\"form");
    }
    EXPECT_TRUE(StoreDir::Open(store()).ok()) << done;
    EXPECT_TRUE(DecodeIdentity(Read(store() + "/node.json")).ok()) << done;
    EXPECT_FALSE(fs::exists(store() + "/node.json.new")) << done;
  }
}

TEST_F(StoreDirTest, TakesAFreshFileSystem) {
  fs::create_directories(store() + "/lost+found");
  EXPECT_TRUE(StoreDir::Open(store()).ok());
}

TEST_F(StoreDirTest, RefusesOtherDirectories) {
  Write(store() + "/thesis.tex", "x");
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "thesis.tex");
  fs::remove_all(store());
  Write(store() + "/meta/CURRENT", "x");
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "meta");
  fs::remove_all(store());
  Write(store(), "x");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "not a directory");
}

TEST_F(StoreDirTest, RefusesAnotherMachinesStore) {
  StoreIdentity identity = Make();
  identity.machine += "x";
  Write(store() + "/node.json", EncodeIdentity(identity));
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "another machine");
}

TEST_F(StoreDirTest, RefusesAnotherFormatWhateverElseItSays) {
  Make();
  Write(store() + "/node.json", R"({"format": 4, "cluster_id": [1]})");
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "format 4");
  Write(store() + "/node.json", R"({"format": 1, "cluster_id": [1]})");
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "format 1");
}

TEST_F(StoreDirTest, RefusesToMakeALostHalfAnew) {
  for (const char* half : {"/meta", "/data"}) {
    fs::remove_all(store());
    Make();
    fs::remove(store() + half);
    ExpectRefused(absl::StatusCode::kDataLoss, "missing");
  }
}

// Golden: the format of every store that exists.
TEST(StoreIdentityTest, TextIsFrozen) {
  const StoreIdentity identity = {"000102030405060708090a0b0c0d0e0f", NodeId{4294967294u}, "m",
                                  0x0123456789abcde};
  const std::string text =
      "{\n"
      "  \"format\": 3,\n"
      "  \"cluster_id\": \"000102030405060708090a0b0c0d0e0f\",\n"
      "  \"node_id\": 4294967294,\n"
      "  \"machine\": \"m\",\n"
      "  \"store_id\": \"00123456789abcde\"\n"
      "}\n";
  EXPECT_EQ(EncodeIdentity(identity), text);
  const auto decoded = DecodeIdentity(text);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->cluster_id, identity.cluster_id);
  EXPECT_EQ(decoded->node_id, identity.node_id);
  EXPECT_EQ(decoded->machine, identity.machine);
  EXPECT_EQ(decoded->store_id, identity.store_id);
}

TEST(StoreIdentityTest, RefusesNonsense) {
  const std::string good =
      R"({"format":3,"cluster_id":"000102030405060708090a0b0c0d0e0f","node_id":1,"machine":"m",)"
      R"("store_id":"00123456789abcde"})";
  ASSERT_TRUE(DecodeIdentity(good).ok());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_EQ(DecodeIdentity(good.substr(0, length)).status().code(), absl::StatusCode::kDataLoss);
  }
  const std::pair<const char*, const char*> changes[] = {
      {"\"format\":3", "\"format\":0"},
      {"\"format\":3", "\"format\":-1"},
      {"\"format\":3", "\"format\":\"1\""},
      {"0001", "000g"},
      {"0001", "00012"},
      {"\"node_id\":1", "\"node_id\":0"},
      {"\"node_id\":1", "\"node_id\":1.5"},
      {"\"node_id\":1", "\"node_id\":4294967295"},
      {"\"machine\":\"m\"", "\"machine\":1"},
      {"store_id\":\"0", "store_id\":\"g"},
      {"store_id", "stored_id"},
      {"\"machine\":\"m\"", "\"m\":\"m\""}};
  for (const auto& [from, to] : changes) {
    std::string text = good;
    text.replace(text.find(from), std::string(from).size(), to);
    EXPECT_EQ(DecodeIdentity(text).status().code(), absl::StatusCode::kDataLoss) << text;
  }
}

TEST(NetworkFileSystemTest, KnowsThemFromLocalOnes) {
  EXPECT_EQ(NetworkFileSystem(0x6969), "nfs");
  EXPECT_EQ(NetworkFileSystem(0x0bd00bd0), "lustre");
  EXPECT_EQ(NetworkFileSystem(0xff534d42), "cifs");  // Above 2^31: f_type is signed.
  EXPECT_EQ(NetworkFileSystem(0x65735546), "fuse");
  for (uint32_t local : {0xef53u, 0x58465342u, 0x9123683eu, 0x01021994u, 0x794c7630u}) {
    EXPECT_EQ(NetworkFileSystem(local), std::nullopt) << std::hex << local;
  }
}

TEST_F(StoreDirTest, IdleStoreIsLeftAsItIsAndKeepsNodesOut) {
  EXPECT_EQ(OpenIdleStore(store()).status().code(), absl::StatusCode::kNotFound);
  {
    const auto used = StoreDir::Open(store());
    ASSERT_TRUE(used.ok()) << used.status();
    const absl::Status refused = OpenIdleStore(store()).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(refused.message()), HasSubstr(std::to_string(getpid())));
  }
  const auto before = Snapshot();
  {
    const auto idle = OpenIdleStore(store());
    ASSERT_TRUE(idle.ok()) << idle.status();
    EXPECT_TRUE(OpenIdleStore(store() + "/").ok());
    EXPECT_EQ(StoreDir::Open(store()).status().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(Snapshot(), before);
  EXPECT_TRUE(StoreDir::Open(store()).ok());
}

}  // namespace
}  // namespace cfs
