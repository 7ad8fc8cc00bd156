// Goal: calls arrive whole and end once, whatever becomes of the peer, and a
// stranger on the port harms nobody. Method: Transports in this process, and in
// others that this program starts: UCX does not survive a fork.
#include "cfs/net/transport.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/limits.h"
#include "cfs/base/mutex.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"

namespace cfs {
namespace {

using ::testing::HasSubstr;

constexpr uint16_t kEcho = 1, kNever = 2, kNoBuffer = 3, kBig = 4, kWho = 5;
constexpr size_t kMebibyte = 1 << 20;
constexpr absl::Duration kLong = absl::Seconds(30);

std::string Pattern(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// Requests that nobody answers until the end.
class Pending {
 public:
  ~Pending() { AnswerAll(); }
  void Add(Responder responder) {
    MutexLock lock(&mutex_);
    responders_.push_back(std::move(responder));
  }
  size_t size() {
    MutexLock lock(&mutex_);
    return responders_.size();
  }
  void AnswerAll() {
    MutexLock lock(&mutex_);
    for (Responder& responder : responders_) responder.Reply("late");
    responders_.clear();
  }

 private:
  Mutex mutex_;
  std::vector<Responder> responders_ ABSL_GUARDED_BY(mutex_);
};

TransportOptions OptionsFor(const Token& token, Pending* pending) {
  TransportOptions options;
  options.cluster = token.cluster;
  options.secret = token.secret;
  options.listen = token.seeds.front();
  options.methods[kEcho].handle = [](Request request, Responder responder) {
    responder.Reply(std::move(request.header), std::move(request.payload));
  };
  options.methods[kNever].handle = [pending](Request, Responder responder) {
    pending->Add(std::move(responder));
  };
  options.methods[kNoBuffer] = {
      .buffer = [](NodeId, absl::string_view, size_t) { return Payload(); },
      .handle = [](Request, Responder responder) { responder.Reply("handled"); }};
  options.methods[kBig].handle = [](Request, Responder responder) {
    responder.Reply("", Payload::Allocate(kMebibyte));
  };
  options.methods[kWho].handle = [](Request request, Responder responder) {
    responder.Reply(absl::StrCat(Raw(request.peer)));
  };
  return options;
}

Token NewToken() { return *MakeToken({"127.0.0.1:0"}); }

std::unique_ptr<Transport> StartWith(TransportOptions options) {
  auto transport = Transport::Start(std::move(options));
  EXPECT_TRUE(transport.ok()) << transport.status();
  return *std::move(transport);
}

// A result that a test can keep.
struct Outcome {
  absl::Status status;
  bool maybe_executed;
  std::string header;
  std::string payload;
};

// A call with buffers of its own, and somebody who waits for it.
class Waiter {
 public:
  Waiter(Transport* transport, absl::string_view address, uint16_t method,
         absl::string_view header = "", std::string payload = "", size_t answer_bytes = kMebibyte,
         absl::Duration patience = kLong, NodeId node = kUnknownNode)
      : payload_(std::move(payload)), answer_(answer_bytes, '\0') {
    Start(transport, address, method, header, payload_, patience, node);
  }
  // With a payload of the caller's.
  Waiter(Transport* transport, absl::string_view address, uint16_t method, absl::string_view header,
         const std::string* payload)
      : answer_(kMebibyte, '\0') {
    Start(transport, address, method, header, *payload, kLong, kUnknownNode);
  }
  Outcome Wait() {
    MutexLock lock(&mutex_);
    while (!done_) done_event_.Wait(&mutex_);
    return outcome_;
  }

 private:
  void Start(Transport* transport, absl::string_view address, uint16_t method,
             absl::string_view header, const std::string& payload, absl::Duration patience,
             NodeId node) {
    transport->Start({.address = std::string(address),
                      .node = node,
                      .method = method,
                      .header = std::string(header),
                      .payload = payload.data(),
                      .payload_bytes = payload.size(),
                      .answer = answer_.data(),
                      .answer_bytes = answer_.size(),
                      .deadline = absl::Now() + patience,
                      .done = [this](CallResult result) { Done(std::move(result)); }});
  }
  void Done(CallResult result) {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(done_) << "ended twice";
    // A status of its own: ThreadSanitizer does not see abseil count references.
    outcome_ = {absl::Status(result.status.code(), result.status.message()), result.maybe_executed,
                std::string(result.header),
                answer_.substr(0, result.status.ok() ? result.payload_bytes : 0)};
    done_ = true;
    done_event_.Signal();
  }

  const std::string payload_;
  std::string answer_;
  Mutex mutex_;
  CondVar done_event_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  Outcome outcome_ ABSL_GUARDED_BY(mutex_);
};

// A node in a process of its own.
class Process {
 public:
  Process(const Token& token, const std::string& listen) {
    int in[2], out[2];
    CFS_CHECK(pipe(in) == 0 && pipe(out) == 0);
    const std::string text = FormatToken(token);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      for (const int fd : {in[0], in[1], out[0], out[1]}) close(fd);
      execl("/proc/self/exe", "transport_test", "--serve", text.c_str(), listen.c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    alive_.reset(in[1]);
    const UniqueFd from(out[0]);
    char c;
    while (read(from.get(), &c, 1) == 1 && c != '\n') address_ += c;
    EXPECT_NE(address_, "");
  }
  ~Process() { Kill(); }
  const std::string& address() const { return address_; }
  void Signal(int signal) const {
    kill(pid_, signal);
    // Only then has it stopped.
    if (signal == SIGSTOP) waitpid(pid_, nullptr, WUNTRACED);
  }
  void Kill() {
    if (pid_ <= 0) return;
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  // What the process itself does. It ends with its parent.
  static int Serve(const char* text, const char* listen) {
    Pending pending;
    auto token = ParseToken(text);
    CFS_CHECK(token.ok());
    token->seeds = {listen};
    const auto transport = Transport::Start(OptionsFor(*token, &pending));
    if (!transport.ok()) {
      fprintf(stderr, "%s\n", transport.status().ToString().c_str());
      return 1;
    }
    printf("%s\n", (*transport)->address().c_str());
    fflush(stdout);
    char c;
    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
    return 0;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd alive_;
  std::string address_;
};

// A TCP connection to a node's port, as a stranger has it.
UniqueFd RawConnection(const std::string& address) {
  const auto to = ParseNumericAddress(address);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(fd.get(), to->get(), to->length), 0);
  return fd;
}

// True when the other end closes the connection within `patience`.
bool IsClosed(const UniqueFd& fd, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (absl::Now() < deadline) {
    pollfd waiting = {fd.get(), POLLIN, 0};
    if (poll(&waiting, 1, 100) == 0) continue;
    char buffer[256];
    if (recv(fd.get(), buffer, sizeof(buffer), 0) <= 0) return true;
  }
  return false;
}

size_t OpenDescriptors() {
  size_t count = 0;
  for (int fd = 0; fd < 20'000; ++fd) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

class TransportTest : public testing::Test {
 protected:
  Outcome CallServer(uint16_t method, absl::string_view header = "", std::string payload = "") {
    return Waiter(client_.get(), server_->address(), method, header, std::move(payload)).Wait();
  }

  const Token token_ = NewToken();
  Pending pending_;
  std::unique_ptr<Transport> server_ = StartWith(OptionsFor(token_, &pending_));
  std::unique_ptr<Transport> client_ = StartWith(OptionsFor(token_, &pending_));
};

TEST_F(TransportTest, EchoesWhatItGets) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{64}, size_t{4096}, (32 << 10) - size_t{1},
                            size_t{32 << 10}, size_t{100'000}, kMebibyte}) {
    const std::string payload = Pattern(size, size);
    const Outcome outcome = CallServer(kEcho, absl::StrCat("header ", size), payload);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.header, absl::StrCat("header ", size));
    EXPECT_TRUE(outcome.payload == payload) << size;
  }
  const std::string header = Pattern(kCallHeaderBytesMax, 1);
  EXPECT_EQ(CallServer(kEcho, header).header, header) << "the longest header";
}

TEST_F(TransportTest, NodesOfOneMachineAndOverTcp) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.transports = "tcp";
  const auto tcp = StartWith(options);
  Process process(token_, "127.0.0.1:0");
  for (Transport* const from : {tcp.get(), client_.get()}) {
    for (const std::string& to : {process.address(), tcp->address(), server_->address()}) {
      const std::string payload = Pattern(kMebibyte, 3);
      const Outcome outcome = Waiter(from, to, kEcho, "", payload).Wait();
      ASSERT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_TRUE(outcome.payload == payload);
    }
  }
}

TEST_F(TransportTest, ANodeCanCallItself) {
  const std::string payload = Pattern(kMebibyte, 4);
  EXPECT_EQ(Waiter(client_.get(), client_->address(), kEcho, "", payload).Wait().payload, payload);
}

TEST_F(TransportTest, AThousandCallsInFlight) {
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (unsigned i = 0; i < 1000; ++i) {
    waiters.push_back(std::make_unique<Waiter>(client_.get(), server_->address(), kEcho,
                                               absl::StrCat(i), Pattern(i * 64, i), 64'000));
  }
  for (unsigned i = 0; i < 1000; ++i) {
    const Outcome outcome = waiters[i]->Wait();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.header, absl::StrCat(i));
    EXPECT_TRUE(outcome.payload == Pattern(i * 64, i)) << i;
  }
}

TEST_F(TransportTest, PayloadLandsWhereTheReceiverSays) {
  std::string place(kMebibyte, '\0');
  std::atomic<bool> released{false};
  TransportOptions options = OptionsFor(token_, &pending_);
  options.methods[kEcho].buffer = [&](NodeId, absl::string_view header, size_t bytes) {
    EXPECT_EQ(header, "where?");
    return Payload(place.data(), bytes, [&] { released = true; });
  };
  options.methods[kEcho].handle = [&](Request request, Responder responder) {
    EXPECT_EQ(request.payload.data(), place.data());
    EXPECT_FALSE(released);
    responder.Reply("");
  };
  const auto server = StartWith(options);
  for (const size_t size : {size_t{1000}, kMebibyte}) {
    released = false;
    const std::string payload = Pattern(size, size);
    const Outcome outcome =
        Waiter(client_.get(), server->address(), kEcho, "where?", payload).Wait();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(released);
    EXPECT_TRUE(place.substr(0, size) == payload);
  }
}

TEST_F(TransportTest, DeadlineEndsACallAndNothingElse) {
  const absl::Time start = absl::Now();
  const Outcome outcome =
      Waiter(client_.get(), server_->address(), kNever, "", "", 0, absl::Milliseconds(200)).Wait();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(outcome.maybe_executed);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(190));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(pending_.size(), 1u);
  pending_.AnswerAll();
  EXPECT_TRUE(CallServer(kEcho).status.ok()) << "and its late answer is nobody's";
}

TEST_F(TransportTest, RefusalsAreTyped) {
  EXPECT_EQ(CallServer(99).status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(CallServer(99, "", Pattern(kMebibyte, 1)).status.code(),
            absl::StatusCode::kUnimplemented);
  for (const size_t size : {size_t{10}, kMebibyte}) {
    const Outcome outcome = CallServer(kNoBuffer, "", Pattern(size, 1));
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_FALSE(outcome.maybe_executed);
  }
  EXPECT_EQ(CallServer(kNoBuffer).header, "handled") << "without a payload it needs no buffer";
  const Outcome large = Waiter(client_.get(), server_->address(), kBig, "", "", 1000).Wait();
  EXPECT_EQ(large.status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(large.maybe_executed);
  EXPECT_TRUE(CallServer(kEcho).status.ok());
}

// Method: payloads that change after their checksum was made. What a callback
// submits is sent after the callback.
TEST_F(TransportTest, DamagedPayloadsAreNotDelivered) {
  constexpr size_t kAt = 4000;
  for (const size_t size : {size_t{5000}, kMebibyte}) {
    std::atomic<int> handled{0};
    TransportOptions options = OptionsFor(token_, &pending_);
    options.methods[kEcho].handle = [&](Request, Responder responder) {
      ++handled;
      responder.Reply("");
    };
    std::string answer = Pattern(size, 1);
    options.methods[kBig].handle = [&](Request, Responder responder) {
      responder.Reply("", Payload(answer.data(), answer.size(), nullptr));
      answer[kAt] ^= 1;
    };
    const auto server = StartWith(options);
    std::string payload = Pattern(size, 2);
    std::unique_ptr<Waiter> waiter;
    Mutex mutex;
    CondVar started;
    client_->Start({.address = server->address(), .method = kEcho, .done = [&](CallResult result) {
                      EXPECT_TRUE(result.status.ok()) << result.status;
                      MutexLock lock(&mutex);
                      waiter = std::make_unique<Waiter>(client_.get(), server->address(), kEcho, "",
                                                        &payload);
                      payload[kAt] ^= 1;
                      started.Signal();
                    }});
    {
      MutexLock lock(&mutex);
      while (waiter == nullptr) started.Wait(&mutex);
    }
    Outcome outcome = waiter->Wait();
    EXPECT_TRUE(absl::IsDataLoss(outcome.status)) << outcome.status;
    EXPECT_FALSE(outcome.maybe_executed);
    EXPECT_EQ(handled, 1) << "the first call";

    outcome = Waiter(client_.get(), server->address(), kBig).Wait();
    EXPECT_TRUE(absl::IsDataLoss(outcome.status)) << outcome.status;
    EXPECT_TRUE(outcome.maybe_executed);

    payload[kAt] ^= 1;
    outcome = Waiter(client_.get(), server->address(), kEcho, "", &payload).Wait();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status << ", for nothing else has happened";
    EXPECT_EQ(handled, 2);
  }
}

TEST_F(TransportTest, NobodyThere) {
  const std::string address = server_->address();
  server_.reset();
  const Outcome outcome = Waiter(client_.get(), address, kEcho).Wait();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(outcome.maybe_executed);
  EXPECT_EQ(Waiter(client_.get(), "nonsense", kEcho).Wait().status.code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(TransportTest, NodesKnowEachOther) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.node = NodeId{7};
  const auto seven = StartWith(options);
  EXPECT_EQ(Waiter(seven.get(), server_->address(), kWho).Wait().header, "7");
  EXPECT_TRUE(Waiter(client_.get(), seven->address(), kEcho, "", "", 0, kLong, NodeId{7})
                  .Wait()
                  .status.ok());
  const Outcome wrong =
      Waiter(client_.get(), seven->address(), kEcho, "", "", 0, kLong, NodeId{8}).Wait();
  EXPECT_EQ(wrong.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(wrong.maybe_executed);
  EXPECT_THAT(std::string(wrong.status.message()), HasSubstr("another node"));

  EXPECT_EQ(CallServer(kWho).header, absl::StrCat(Raw(kUnknownNode)));
  client_->SetNode(NodeId{9});
  EXPECT_EQ(CallServer(kWho).header, "9");
}

TEST_F(TransportTest, KilledPeerFailsCallsWithinASecondAndComesBack) {
  auto process = std::make_unique<Process>(token_, "127.0.0.1:0");
  const std::string address = process->address();
  ASSERT_TRUE(Waiter(client_.get(), address, kEcho).Wait().status.ok());
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (int i = 0; i < 100; ++i) {
    waiters.push_back(std::make_unique<Waiter>(client_.get(), address, kNever, "",
                                               Pattern(i % 2 * kMebibyte, 1)));
  }
  ASSERT_TRUE(Waiter(client_.get(), address, kEcho).Wait().status.ok()) << "all have arrived";
  const absl::Time start = absl::Now();
  process->Kill();
  for (const auto& waiter : waiters) {
    const Outcome outcome = waiter->Wait();
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(outcome.maybe_executed);
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  EXPECT_TRUE(CallServer(kEcho).status.ok());

  const Outcome down = Waiter(client_.get(), address, kEcho).Wait();
  EXPECT_EQ(down.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(down.maybe_executed);
  process = std::make_unique<Process>(token_, address);
  ASSERT_EQ(process->address(), address);
  const std::string payload = Pattern(kMebibyte, 5);
  const Outcome up = Waiter(client_.get(), address, kEcho, "", payload).Wait();
  EXPECT_TRUE(up.status.ok()) << up.status;
  EXPECT_TRUE(up.payload == payload);
}

TEST_F(TransportTest, KilledAmidTransfers) {
  for (int round = 0; round < 3; ++round) {
    auto process = std::make_unique<Process>(token_, "127.0.0.1:0");
    ASSERT_TRUE(Waiter(client_.get(), process->address(), kEcho).Wait().status.ok());
    // All wait for it, so that it is in the middle of them when it is killed.
    process->Signal(SIGSTOP);
    const std::string payload = Pattern(kMebibyte, 1);
    std::vector<std::unique_ptr<Waiter>> waiters;
    for (int i = 0; i < 40; ++i) {
      waiters.push_back(
          std::make_unique<Waiter>(client_.get(), process->address(), kEcho, "", payload));
    }
    process->Signal(SIGCONT);
    waiters[round]->Wait();
    const absl::Time start = absl::Now();
    process->Kill();
    int lost = 0;
    for (const auto& waiter : waiters) {
      const Outcome outcome = waiter->Wait();
      lost += outcome.status.code() == absl::StatusCode::kUnavailable;
      EXPECT_TRUE(outcome.status.ok() || absl::IsUnavailable(outcome.status)) << outcome.status;
    }
    EXPECT_GT(lost, 0) << "the kill came too late to test anything";
    EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  }
}

// A stopped process is to us what a cut cable is: connections that say nothing.
TEST_F(TransportTest, SilentPeerIsGivenUp) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.heartbeat_interval = absl::Milliseconds(100);
  options.heartbeat_timeout = absl::Milliseconds(500);
  options.connect_timeout = absl::Milliseconds(300);
  const auto client = StartWith(options);
  Process process(token_, "127.0.0.1:0");
  ASSERT_TRUE(Waiter(client.get(), process.address(), kEcho).Wait().status.ok());
  absl::SleepFor(absl::Seconds(1));
  Waiter before(client.get(), process.address(), kNever);
  ASSERT_TRUE(Waiter(client.get(), process.address(), kEcho).Wait().status.ok())
      << "heartbeats keep an idle connection";
  process.Signal(SIGSTOP);
  const absl::Time start = absl::Now();
  Waiter small(client.get(), process.address(), kEcho, "", "x");
  Waiter large(client.get(), process.address(), kEcho, "", Pattern(kMebibyte, 1), kMebibyte,
               absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsUnavailable(before.Wait().status));
  EXPECT_TRUE(absl::IsUnavailable(small.Wait().status));
  EXPECT_TRUE(absl::IsDeadlineExceeded(large.Wait().status));
  const Outcome again = Waiter(client.get(), process.address(), kEcho).Wait();
  EXPECT_TRUE(absl::IsUnavailable(again.status)) << "nobody shakes hands";
  EXPECT_FALSE(again.maybe_executed);
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(Waiter(client.get(), server_->address(), kEcho).Wait().status.ok());
  process.Signal(SIGCONT);
  EXPECT_TRUE(Waiter(client.get(), process.address(), kEcho).Wait().status.ok());
}

// What `transport` has counted for its only peer.
PeerStats OnlyPeer(const Transport& transport) {
  const std::vector<PeerStats> stats = transport.Stats();
  EXPECT_EQ(stats.size(), 1u);
  return stats.empty() ? PeerStats() : stats.front();
}

// Waits until `state` is reached, for a closing is not noticed at once.
PeerStats OnlyPeerWhen(const Transport& transport, PeerStats::State state) {
  const absl::Time deadline = absl::Now() + kLong;
  while (OnlyPeer(transport).state != state && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const PeerStats stats = OnlyPeer(transport);
  EXPECT_EQ(stats.state, state);
  return stats;
}

TEST_F(TransportTest, CountsCallsOfEachPeer) {
  EXPECT_TRUE(client_->Stats().empty());
  TransportOptions options = OptionsFor(token_, &pending_);
  options.node = NodeId{7};
  options.transports = "tcp";
  auto seven = StartWith(options);
  const std::string address = seven->address();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(Waiter(client_.get(), address, kEcho, "four", Pattern(1000, i)).Wait().status.ok());
  }
  PeerStats stats = OnlyPeer(*client_);
  EXPECT_EQ(stats.address, address);
  EXPECT_EQ(stats.node, NodeId{7});
  EXPECT_EQ(stats.state, PeerStats::State::kUp);
  EXPECT_THAT(stats.transports, HasSubstr("tcp/"));
  EXPECT_EQ(stats.calls, 10u);
  EXPECT_EQ(stats.answered, 10u);
  EXPECT_EQ(stats.failed, 0u);
  EXPECT_EQ(stats.bytes_sent, 10 * 1004u);
  EXPECT_EQ(stats.bytes_received, 10 * 1004u);
  EXPECT_GT(stats.latency_p50, absl::ZeroDuration());
  EXPECT_GE(stats.latency_p99, stats.latency_p50);
  EXPECT_GE(stats.latency_max, stats.latency_p99);
  EXPECT_LT(stats.latency_max, kLong);
  EXPECT_EQ(stats.reconnects, 0u);

  EXPECT_FALSE(Waiter(client_.get(), address, 99).Wait().status.ok());
  Waiter never(client_.get(), address, kNever);
  while (pending_.size() == 0) absl::SleepFor(absl::Milliseconds(1));
  stats = OnlyPeer(*client_);
  EXPECT_EQ(stats.calls, 12u);
  EXPECT_EQ(stats.answered, 10u);
  EXPECT_EQ(stats.failed, 1u);

  seven.reset();
  EXPECT_FALSE(never.Wait().status.ok());
  EXPECT_EQ(OnlyPeerWhen(*client_, PeerStats::State::kLost).failed, 2u);
  EXPECT_FALSE(Waiter(client_.get(), address, kEcho).Wait().status.ok()) << "nobody is there";
  EXPECT_EQ(OnlyPeerWhen(*client_, PeerStats::State::kLost).reconnects, 0u);

  options.listen = address;
  seven = StartWith(options);
  EXPECT_TRUE(Waiter(client_.get(), address, kEcho).Wait().status.ok());
  stats = OnlyPeer(*client_);
  EXPECT_EQ(stats.state, PeerStats::State::kUp);
  EXPECT_EQ(stats.reconnects, 1u);
  EXPECT_EQ(stats.calls, stats.answered + stats.failed);
  EXPECT_EQ(stats.answered, 11u);

  EXPECT_TRUE(CallServer(kEcho).status.ok());
  EXPECT_EQ(client_->Stats().size(), 2u);
  EXPECT_TRUE(seven->Stats().empty()) << "has only been called";
}

TEST_F(TransportTest, APeerThatNobodyNeedsIsIdleNotLost) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.idle_timeout = absl::Milliseconds(100);
  options.heartbeat_interval = absl::Milliseconds(100);
  const auto client = StartWith(options);
  ASSERT_TRUE(Waiter(client.get(), server_->address(), kEcho).Wait().status.ok());
  OnlyPeerWhen(*client, PeerStats::State::kIdle);
}

TEST_F(TransportTest, WrongSecretIsRefusedAndOthersGoOn) {
  Token wrong = token_;
  wrong.secret.data()[0] ^= 1;
  const auto stranger = StartWith(OptionsFor(wrong, &pending_));
  const Outcome refused = Waiter(stranger.get(), server_->address(), kEcho).Wait();
  EXPECT_TRUE(absl::IsUnavailable(refused.status));
  EXPECT_FALSE(refused.maybe_executed);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("has another secret"));

  Token other = NewToken();
  const auto foreigner = StartWith(OptionsFor(other, &pending_));
  const Outcome foreign = Waiter(foreigner.get(), server_->address(), kEcho).Wait();
  EXPECT_THAT(std::string(foreign.status.message()), HasSubstr("belongs to another cluster"));
  EXPECT_TRUE(CallServer(kEcho).status.ok());
}

TEST_F(TransportTest, GarbageOnThePortIsDropped) {
  for (unsigned i = 0; i < 200; ++i) {
    const UniqueFd fd = RawConnection(server_->address());
    const std::string bytes = i % 2 == 0 ? Pattern(1 + i * 10, i) : "cfsH" + Pattern(i, i);
    EXPECT_GT(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
    if (i % 10 == 0 && bytes.size() > 60) {
      EXPECT_TRUE(IsClosed(fd, absl::Seconds(5))) << i;
    }
    if (i % 20 == 0) {
      EXPECT_TRUE(CallServer(kEcho).status.ok());
    }
  }
}

TEST_F(TransportTest, ConnectionsThatSayNothingCostABoundedNumberOfDescriptors) {
  ASSERT_TRUE(CallServer(kEcho).status.ok());
  std::vector<UniqueFd> silent;
  const size_t before = OpenDescriptors();
  for (size_t i = 0; i < 5 * kHandshakesMax; ++i) {
    silent.push_back(RawConnection(server_->address()));
  }
  // Whoever comes next is served at once, though nobody has left.
  const auto late = StartWith(OptionsFor(token_, &pending_));
  EXPECT_TRUE(Waiter(late.get(), server_->address(), kEcho).Wait().status.ok());
  EXPECT_TRUE(IsClosed(silent.front(), absl::Seconds(5)));
  // Ours count too; with two threads, the server holds two times the bound.
  EXPECT_LT(OpenDescriptors(), before + silent.size() + 2 * kHandshakesMax + 100);
}

// Calls that follow each other for ever on a transport's only thread.
class Chains {
 public:
  Chains(Transport* transport, int count) : transport_(transport), left_(count) {
    for (int i = 0; i < count; ++i) Next();
  }
  ~Chains() {
    MutexLock lock(&mutex_);
    stop_ = true;
    while (left_ > 0) ended_.Wait(&mutex_);
  }
  int calls() const { return calls_.load(); }

 private:
  void Next() {
    transport_->Start({.address = transport_->address(),
                       .method = kEcho,
                       .deadline = absl::Now() + kLong,
                       .done = [this](CallResult) {
                         ++calls_;
                         {
                           MutexLock lock(&mutex_);
                           if (stop_) {
                             if (--left_ == 0) ended_.Signal();
                             return;
                           }
                         }
                         Next();
                       }});
  }

  Transport* const transport_;
  std::atomic<int> calls_{0};
  Mutex mutex_;
  CondVar ended_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int left_ ABSL_GUARDED_BY(mutex_);
};

TEST_F(TransportTest, AThreadThatNeverSleepsTakesAndMakesConnections) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.threads = 1;
  const auto busy = StartWith(options);
  const Chains chains(busy.get(), 8);
  while (chains.calls() < 1000) absl::SleepFor(absl::Milliseconds(1));
  for (const auto& [from, to] : {std::pair(client_.get(), busy.get()),
                                 std::pair(busy.get(), client_.get())}) {
    const Outcome outcome =
        Waiter(from, to->address(), kEcho, "hello", "", 64, absl::Seconds(4)).Wait();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.header, "hello");
  }
}

TEST_F(TransportTest, IdleConnectionsAreClosedAndMadeAgain) {
  TransportOptions options = OptionsFor(token_, &pending_);
  options.idle_timeout = absl::Milliseconds(100);
  options.heartbeat_interval = absl::Milliseconds(100);
  const auto client = StartWith(options);
  // Each thread of the server, in turn, and then again: what UCX opens once for
  // a thread stays open.
  size_t closed = 0;
  for (int round = 0; round < 6; ++round) {
    ASSERT_TRUE(Waiter(client.get(), server_->address(), kEcho).Wait().status.ok());
    const size_t wanted = round < 2 ? OpenDescriptors() - 2 : closed;
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (OpenDescriptors() > wanted && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    ASSERT_LE(OpenDescriptors(), wanted) << round;
    // Both ends close, one after the other.
    if (round < 2) absl::SleepFor(absl::Milliseconds(200));
    if (round == 1) closed = OpenDescriptors();
  }
}

TEST_F(TransportTest, EndingFailsWhatIsUnderWay) {
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (int i = 0; i < 50; ++i) {
    waiters.push_back(std::make_unique<Waiter>(client_.get(), server_->address(),
                                               i % 2 == 0 ? kNever : kEcho, "",
                                               Pattern(i % 3 * kMebibyte / 2, 1)));
  }
  client_.reset();
  for (size_t i = 0; i < waiters.size(); ++i) {
    const Outcome outcome = waiters[i]->Wait();
    EXPECT_TRUE(absl::IsUnavailable(outcome.status) || (i % 2 == 1 && outcome.status.ok()))
        << outcome.status;
  }
  server_.reset();
  pending_.AnswerAll();  // To whom? But it is an answer.
}

TEST_F(TransportTest, CallsFromCallbacksAndManyThreads) {
  std::atomic<int> left{2000};
  Mutex mutex;
  CondVar finished;
  std::function<void()> next = [&] {
    client_->Start({.address = server_->address(),
                    .method = kEcho,
                    .header = "x",
                    .deadline = absl::Now() + kLong,
                    .done = [&](CallResult result) {
                      EXPECT_TRUE(result.status.ok()) << result.status;
                      MutexLock lock(&mutex);
                      const int now_left = --left;
                      if (now_left >= 8) next();
                      if (now_left == 0) finished.Signal();
                    }});
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back(next);
  for (auto& thread : threads) thread.join();
  MutexLock lock(&mutex);
  while (left > 0) finished.Wait(&mutex);
}

}  // namespace
}  // namespace cfs

int main(int argc, char** argv) {
#ifdef __SANITIZE_THREAD__
  // What UCX patches into memory calls, ThreadSanitizer has patched before. The
  // library reads this when it is loaded.
  if (setenv("UCX_MEM_EVENTS", "n", 0) == 0 && getenv("UCX_MEM_MMAP_HOOK_MODE") == nullptr) {
    setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 1);
    execv("/proc/self/exe", argv);
  }
#endif
  if (argc == 4 && strcmp(argv[1], "--serve") == 0) return cfs::Process::Serve(argv[2], argv[3]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
