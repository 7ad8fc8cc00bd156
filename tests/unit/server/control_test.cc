// Goal: the control socket answers everybody who asks properly, whatever others
// do to it. Method: a server in a temporary directory, raw sockets as bad clients.
#include "cfs/server/control.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"

namespace cfs {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);
constexpr absl::Duration kShort = absl::Milliseconds(50);
constexpr size_t kBigBytes = 1 << 20;  // More than a socket buffers.

nlohmann::json Handle(const nlohmann::json& request) {
  const std::string verb = StringMember(request, "verb");
  if (verb == "echo") return {{"ok", true}, {"request", request}};
  if (verb == "big") return {{"ok", true}, {"text", std::string(kBigBytes, 'x')}};
  if (verb == "bytes") return {{"ok", true}, {"path", "/a\xff"}};
  return ControlError(PosixError(ENOENT, "no such verb"));
}

class ControlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "control_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    store_ = name;
  }
  void TearDown() override {
    server_.reset();
    fs::remove_all(store_);
  }

  void Start(absl::Duration idle_max = kControlIdleMax) {
    auto server = ControlServer::Start(store_, Handle, idle_max);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // A connected socket; reads and writes give up after kLong.
  UniqueFd Connect() const {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval timeout = absl::ToTimeval(kLong);
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/cfs.sock", store_.c_str());
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }

  static void Send(const UniqueFd& fd, const std::string& text) {
    for (size_t sent = 0; sent < text.size();) {
      const ssize_t n = send(fd.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      ASSERT_GT(n, 0);
      sent += n;
    }
  }

  // Up to a newline; what came before the end of the connection without one.
  static std::string ReadLine(const UniqueFd& fd) {
    std::string line;
    char byte;
    while (recv(fd.get(), &byte, 1, 0) == 1 && byte != '\n') line += byte;
    return line;
  }

  static bool IsClosed(const UniqueFd& fd) {
    char byte;
    const ssize_t n = recv(fd.get(), &byte, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }

  absl::StatusOr<nlohmann::json> Echo(absl::Duration timeout = kLong) const {
    return ControlCall(store_, {{"verb", "echo"}, {"n", 7}}, timeout);
  }

  std::string store_;
  std::unique_ptr<ControlServer> server_;
};

TEST_F(ControlTest, AnswersRequests) {
  Start();
  const auto reply = Echo();
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(UintMember((*reply)["request"], "n"), 7u);
  const auto refused = ControlCall(store_, {{"verb", "frob"}}, kLong);
  EXPECT_EQ(ErrnoOf(refused.status()), ENOENT);
  EXPECT_EQ(refused.status().message(), "no such verb");
}

TEST_F(ControlTest, OnlyItsOwnerMayAsk) {
  Start();
  struct stat st;
  ASSERT_EQ(stat((store_ + "/cfs.sock").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode, S_IFSOCK | 0600u);
}

TEST_F(ControlTest, SaysWhenNobodyServes) {
  EXPECT_EQ(Echo().status().code(), absl::StatusCode::kUnavailable);
  {
    // What a killed server leaves behind.
    UniqueFd dead(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/cfs.sock", store_.c_str());
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  EXPECT_EQ(Echo().status().code(), absl::StatusCode::kUnavailable);
  Start();
  EXPECT_TRUE(Echo().ok());
  server_.reset();
  EXPECT_FALSE(fs::exists(store_ + "/cfs.sock"));
}

TEST_F(ControlTest, WorksInAPathLongerThanAnAddress) {
  const std::string root = store_;
  store_ += "/" + std::string(200, 'l');
  fs::create_directory(store_);
  Start();
  EXPECT_TRUE(Echo().ok());
  server_.reset();
  store_ = root;
}

TEST_F(ControlTest, BadLinesGetAnErrorAndHarmNothing) {
  Start();
  const UniqueFd client = Connect();
  for (const std::string& line :
       {std::string("nonsense"), std::string("[1]"), std::string(), std::string("{\"verb\":"),
        std::string("\0\xff", 2), std::string(kControlLineBytesMax, '[')}) {
    Send(client, line + "\n");
    const auto reply = nlohmann::json::parse(ReadLine(client), nullptr, false);
    EXPECT_EQ(UintMember(reply, "errno"), uint64_t{EINVAL}) << line;
  }
  Send(client, "{\"verb\":7}\n");
  EXPECT_THAT(ReadLine(client), HasSubstr("no such verb"));
}

TEST_F(ControlTest, ALineTooLongEndsTheConnection) {
  Start();
  const UniqueFd client = Connect();
  Send(client, std::string(kControlLineBytesMax + 1, ' '));
  EXPECT_THAT(ReadLine(client), HasSubstr("too long"));
  EXPECT_TRUE(IsClosed(client));
  EXPECT_TRUE(Echo().ok());
}

TEST_F(ControlTest, AnswersLinesInTheirOrder) {
  Start();
  const UniqueFd client = Connect();
  std::string lines;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&lines, R"({"verb":"echo","n":)", i, "}\n");
  Send(client, lines);
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(ReadLine(client), HasSubstr(absl::StrCat("\"n\":", i, ",")));
  }
}

TEST_F(ControlTest, SlowClientsBlockNobody) {
  Start();
  const UniqueFd half = Connect();
  Send(half, "{\"verb\":");
  // Asks for more than it reads; the server holds one reply, not all of them.
  const UniqueFd deaf = Connect();
  for (int i = 0; i < 10; ++i) Send(deaf, "{\"verb\":\"big\"}\n");
  EXPECT_TRUE(Echo().ok());
  Send(half, "\"echo\"}\n");
  EXPECT_THAT(ReadLine(half), HasSubstr("\"ok\":true"));
  // Once it reads it gets all that it asked for.
  std::string buffer(64 << 10, '\0');
  for (size_t got = 0; got < 10 * kBigBytes;) {
    const ssize_t n = recv(deaf.get(), buffer.data(), buffer.size(), 0);
    ASSERT_GT(n, 0);
    got += n;
  }
}

TEST_F(ControlTest, ConnectionsAreBounded) {
  Start();
  std::vector<UniqueFd> clients;
  for (int i = 0; i < kControlConnectionsMax; ++i) clients.push_back(Connect());
  // Waits in the backlog for one of them to go.
  EXPECT_EQ(Echo(kShort).status().code(), absl::StatusCode::kDeadlineExceeded);
  clients.pop_back();
  EXPECT_TRUE(Echo().ok());
}

TEST_F(ControlTest, SilentConnectionsAreCutOff) {
  Start(kShort);
  std::vector<UniqueFd> clients;
  for (int i = 0; i < kControlConnectionsMax; ++i) clients.push_back(Connect());
  Send(clients[0], "{");  // A byte now and then is silence too.
  for (const UniqueFd& client : clients) EXPECT_TRUE(IsClosed(client));
  EXPECT_TRUE(Echo().ok());
}

TEST_F(ControlTest, RepliesNeedNotBeUtf8) {
  Start();
  const auto reply = ControlCall(store_, {{"verb", "bytes"}}, kLong);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(StringMember(*reply, "path"), "/a\xef\xbf\xbd");  // U+FFFD.
}

TEST_F(ControlTest, RepliesMayBeBig) {
  Start();
  const auto reply = ControlCall(store_, {{"verb", "big"}}, kLong);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(StringMember(*reply, "text").size(), kBigBytes);
}

TEST(JsonMemberTest, OtherTypesCountAsMissing) {
  const nlohmann::json object = {{"text", "a"}, {"number", 3u}, {"negative", -3}, {"bool", true}};
  EXPECT_EQ(StringMember(object, "text"), "a");
  EXPECT_EQ(StringMember(object, "number"), "");
  EXPECT_EQ(UintMember(object, "number"), 3u);
  EXPECT_EQ(UintMember(object, "negative"), 0u);
  EXPECT_EQ(UintMember(object, "missing"), 0u);
  EXPECT_TRUE(BoolMember(object, "bool"));
  EXPECT_FALSE(BoolMember(object, "number"));
  EXPECT_FALSE(BoolMember(nlohmann::json::array(), "bool"));
}

}  // namespace
}  // namespace cfs
