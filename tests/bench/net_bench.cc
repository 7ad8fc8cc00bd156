// The transport beside raw TCP with epoll, between two processes of one
// machine: round trips of 64 bytes, and 64 KiB and 1 MiB read from the peer, four
// at a time. Everything in turn, so that what disturbs one disturbs all.
//
//   net_bench [--smoke | --json ROUND_TRIPS READS]
//
// Raw TCP alone, for what is measured between two hosts. The server says where it listens and ends
// with its input; the client sends PUT bytes with each request, gets GET, and has IN_FLIGHT under
// way:
//
//   net_bench --raw-serve ADDRESS
//   net_bench --raw ADDRESS PUT GET IN_FLIGHT SECONDS
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cfs/base/mutex.h"
#include "cfs/net/address.h"
#include "cfs/net/transport.h"

namespace cfs {
namespace {

constexpr uint32_t kSmall = 64, kLarge = 1 << 20;
constexpr int kInFlight = 4, kRounds = 7;
constexpr uint16_t kEcho = 1;
// Reads of so much are method 2 and on.
constexpr uint32_t kReadBytes[] = {64 << 10, kLarge};
constexpr uint16_t kFirstRead = 2;
constexpr size_t kReads = std::size(kReadBytes);

using Clock = std::chrono::steady_clock;

double Microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

std::unique_ptr<Transport> StartTransport(const Token& token, const std::string& transports) {
  TransportOptions options;
  options.cluster = token.cluster;
  options.secret = token.secret;
  options.listen = "127.0.0.1:0";
  options.threads = 1;
  options.transports = transports;
  options.methods[kEcho].handle = [](Request request, Responder responder) {
    responder.Reply(std::move(request.header));
  };
  static char large[kLarge];
  for (size_t i = 0; i < kReads; ++i) {
    options.methods[kFirstRead + i].handle = [bytes = kReadBytes[i]](Request, Responder responder) {
      responder.Reply("", Payload(large, bytes, nullptr));
    };
  }
  auto transport = Transport::Start(std::move(options));
  if (!transport.ok()) {
    fprintf(stderr, "%s\n", transport.status().ToString().c_str());
    exit(1);
  }
  return *std::move(transport);
}

// ---- Raw TCP ----

// What each request of a connection carries beyond 64 bytes and what its answer has: the first
// message of a connection.
struct Shape {
  uint32_t put, get;
};

// As few system calls as epoll can do with: a message that is there in one piece takes one wait and
// one recv, or one send.
class RawSocket {
 public:
  explicit RawSocket(int fd) : fd_(fd), readable_(Poller(EPOLLIN)), writable_(Poller(EPOLLOUT)) {
    const int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  }
  ~RawSocket() {
    for (const int fd : {fd_, readable_, writable_}) close(fd);
  }
  bool Send(const void* data, size_t size) {
    return Transfer(size, writable_, [&](size_t moved) {
      return send(fd_, static_cast<const char*>(data) + moved, size - moved,
                  MSG_DONTWAIT | MSG_NOSIGNAL);
    });
  }
  bool Receive(void* data, size_t size) {
    Wait(readable_);
    return Transfer(size, readable_, [&](size_t moved) {
      return recv(fd_, static_cast<char*>(data) + moved, size - moved, MSG_DONTWAIT);
    });
  }

 private:
  int Poller(uint32_t events) const {
    const int poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_event event = {.events = events, .data = {}};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd_, &event);
    return poller;
  }
  static void Wait(int poller) {
    epoll_event event;
    while (epoll_wait(poller, &event, 1, -1) < 0) {
    }
  }
  template <typename Move>
  static bool Transfer(size_t size, int poller, Move move) {
    for (size_t moved = 0; moved < size;) {
      const ssize_t n = move(moved);
      if (n > 0) {
        moved += n;
      } else if (n == 0 || errno != EAGAIN) {
        return false;
      } else {
        Wait(poller);
      }
    }
    return true;
  }

  const int fd_, readable_, writable_;
};

void ServeConnection(int fd) {
  RawSocket socket(fd);
  Shape shape;
  if (!socket.Receive(&shape, sizeof(shape))) return;
  std::string request(kSmall + shape.put, '\0'), answer(shape.get, 'x');
  while (socket.Receive(request.data(), request.size()) &&
         socket.Send(answer.data(), answer.size())) {
  }
}

// Returns where it listens.
std::string ServeRaw(const std::string& text) {
  SocketAddress address = *ParseNumericAddress(text);
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  CFS_CHECK(bind(listener, address.get(), address.length) == 0 && listen(listener, 16) == 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address.storage), &address.length);
  std::thread([listener] {
    while (true) std::thread(ServeConnection, accept(listener, nullptr, nullptr)).detach();
  }).detach();
  return address.ToString();
}

int Connect(const std::string& address) {
  const SocketAddress to = *ParseNumericAddress(address);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  CFS_CHECK(connect(fd, to.get(), to.length) == 0);
  return fd;
}

class RawClient {
 public:
  RawClient(const std::string& address, Shape shape)
      : socket_(Connect(address)), request_(kSmall + shape.put, 'x'), answer_(shape.get, '\0') {
    CFS_CHECK(socket_.Send(&shape, sizeof(shape)));
  }
  void RoundTrips(int count, std::vector<double>* times) {
    for (int i = 0; i < count; ++i) {
      const auto start = Clock::now();
      Ask();
      Answer();
      times->push_back(Microseconds(Clock::now() - start));
    }
  }
  // GB/s.
  double ReadMany(int count) {
    const auto start = Clock::now();
    int asked = 0;
    Exchange(kInFlight, [&] { return asked++ < count - kInFlight; });
    return count * answer_.size() / Microseconds(Clock::now() - start) / 1000;
  }
  // Requests per second.
  double Rate(int in_flight, double seconds) {
    const auto start = Clock::now();
    const int count =
        Exchange(in_flight, [&] { return Microseconds(Clock::now() - start) < seconds * 1e6; });
    return count / (Microseconds(Clock::now() - start) / 1e6);
  }

 private:
  void Ask() { CFS_CHECK(socket_.Send(request_.data(), request_.size())); }
  void Answer() { CFS_CHECK(socket_.Receive(answer_.data(), answer_.size())); }
  // Asks again after each answer while `more` says so; returns the number of answers.
  template <typename More>
  int Exchange(int in_flight, More more) {
    int count = 0;
    for (int i = 0; i < in_flight; ++i) Ask();
    for (int left = in_flight; left > 0; ++count) {
      Answer();
      more() ? Ask() : void(--left);
    }
    return count;
  }

  RawSocket socket_;
  std::string request_, answer_;
};

int MeasureRaw(char** arguments) {
  const auto number = [&](int i) { return static_cast<uint32_t>(atoi(arguments[i])); };
  const int in_flight = atoi(arguments[3]);
  const double seconds = atof(arguments[4]);
  RawClient client(arguments[0], {number(1), number(2)});
  client.Rate(in_flight, seconds / 10);  // Windows grow meanwhile.
  printf("{\"per_second\": %.1f}\n", client.Rate(in_flight, seconds));
  return 0;
}

// ---- The transport ----

class CfsClient {
 public:
  CfsClient(const Token& token, const std::string& transports, std::string address)
      : transport_(StartTransport(token, transports)), address_(std::move(address)) {}

  // Each call starts from the answer to the last one, on the network thread.
  void RoundTrips(int count, std::vector<double>* times) {
    left_ = count;
    times_ = times;
    NextRoundTrip();
    WaitForEnd();
  }
  double ReadMany(size_t read, int count) {
    read_ = read;
    left_ = count;
    started_ = kInFlight;
    const auto start = Clock::now();
    for (int i = 0; i < kInFlight; ++i) NextRead(i, count);
    WaitForEnd();
    return count * kReadBytes[read] / Microseconds(Clock::now() - start) / 1000;
  }

 private:
  void NextRoundTrip() {
    start_ = Clock::now();
    transport_->Start({.address = address_,
                       .method = kEcho,
                       .header = std::string(kSmall, 'x'),
                       .done = [this](CallResult result) {
                         CFS_CHECK(result.status.ok());
                         times_->push_back(Microseconds(Clock::now() - start_));
                         if (--left_ > 0) return NextRoundTrip();
                         End();
                       }});
  }
  void NextRead(int slot, int count) {
    transport_->Start({.address = address_,
                       .method = static_cast<uint16_t>(kFirstRead + read_),
                       .answer = buffers_[slot].data(),
                       .answer_bytes = kLarge,
                       .done = [this, slot, count](CallResult result) {
                         CFS_CHECK(result.status.ok() && result.payload_bytes == kReadBytes[read_]);
                         if (started_ < count) {
                           ++started_;
                           NextRead(slot, count);
                         }
                         if (--left_ == 0) End();
                       }});
  }
  void End() {
    MutexLock lock(&mutex_);
    ended_ = true;
    end_event_.Signal();
  }
  void WaitForEnd() {
    MutexLock lock(&mutex_);
    while (!ended_) end_event_.Wait(&mutex_);
    ended_ = false;
  }

  const std::unique_ptr<Transport> transport_;
  const std::string address_;
  std::vector<std::string> buffers_ =
      std::vector<std::string>(kInFlight, std::string(kLarge, '\0'));
  std::vector<double>* times_ = nullptr;
  Clock::time_point start_;
  size_t read_ = 0;
  int left_ = 0, started_ = 0;
  Mutex mutex_;
  CondVar end_event_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

const std::vector<std::string>& Kinds() {
  static const auto* const kinds =
      new std::vector<std::string>{"tcp", TransportOptions().transports};
  return *kinds;
}

int SayAndWait(const std::string& addresses) {
  printf("%s\n", addresses.c_str());
  fflush(stdout);
  char c;
  while (read(STDIN_FILENO, &c, 1) > 0) {
  }
  return 0;
}

// Says where it listens, and ends with its parent.
int Serve(const char* text) {
  const Token token = *ParseToken(text);
  std::string addresses = ServeRaw("127.0.0.1:0");
  std::vector<std::unique_ptr<Transport>> transports;
  for (const std::string& kind : Kinds()) {
    transports.push_back(StartTransport(token, kind));
    absl::StrAppend(&addresses, " ", transports.back()->address());
  }
  return SayAndWait(addresses);
}

struct Row {
  std::string name;
  std::function<void(int, std::vector<double>*)> round_trips;
  std::function<double(size_t, int)> read;
  std::vector<double> times = {}, rates[kReads] = {};  // A value a round.
};

void PrintTable(const std::vector<Row>& rows) {
  printf("%-20s %18s %8s", "", "64 B round trip us", "of raw");
  for (const uint32_t bytes : kReadBytes) printf(" %9u KiB GB/s %8s", bytes >> 10, "of raw");
  printf("\n");
  for (const Row& row : rows) {
    const double time = Median(row.times);
    printf("%-20s %18.1f %8.2f", row.name.c_str(), time, time / Median(rows[0].times));
    for (size_t i = 0; i < kReads; ++i) {
      const double rate = Median(row.rates[i]);
      printf(" %18.2f %8.2f", rate, rate / Median(rows[0].rates[i]));
    }
    printf("\n");
  }
}

// An object a row: the values of each round.
void PrintJson(const std::vector<Row>& rows) {
  std::vector<std::string> objects;
  for (const Row& row : rows) {
    std::string values = absl::StrCat("\"round_trip_us\": [", absl::StrJoin(row.times, ", "), "]");
    for (size_t i = 0; i < kReads; ++i) {
      absl::StrAppend(&values, ", \"read_", kReadBytes[i] >> 10, "k_gb_per_s\": [",
                      absl::StrJoin(row.rates[i], ", "), "]");
    }
    objects.push_back(absl::StrCat("\"", row.name, "\": {", values, "}"));
  }
  printf("{%s}\n", absl::StrJoin(objects, ", ").c_str());
}

int Measure(int round_trips, int reads, void (*print)(const std::vector<Row>&)) {
  const Token token = *MakeToken({"127.0.0.1:0"});
  int in[2], out[2];
  CFS_CHECK(pipe(in) == 0 && pipe(out) == 0);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    for (const int fd : {in[0], in[1], out[0], out[1]}) close(fd);
    execl("/proc/self/exe", "net_bench", "--serve", FormatToken(token).c_str(), nullptr);
    _exit(127);
  }
  close(out[1]);
  std::string line;
  char c;
  while (read(out[0], &c, 1) == 1 && c != '\n') line += c;
  const std::vector<std::string> addresses = absl::StrSplit(line, ' ');
  CFS_CHECK(addresses.size() == 1 + Kinds().size());

  RawClient raw(addresses[0], {0, kSmall});
  RawClient raw_readers[kReads] = {{addresses[0], {0, kReadBytes[0]}},
                                   {addresses[0], {0, kReadBytes[1]}}};
  CfsClient over_tcp(token, Kinds()[0], addresses[1]), over_any(token, Kinds()[1], addresses[2]);
  std::vector<Row> rows = {
      {"raw tcp", [&](int n, auto* t) { raw.RoundTrips(n, t); },
       [&](size_t read, int n) { return raw_readers[read].ReadMany(n); }},
      {"cfs, tcp only", [&](int n, auto* t) { over_tcp.RoundTrips(n, t); },
       [&](size_t read, int n) { return over_tcp.ReadMany(read, n); }},
      {"cfs, as UCX chooses", [&](int n, auto* t) { over_any.RoundTrips(n, t); },
       [&](size_t read, int n) { return over_any.ReadMany(read, n); }},
  };
  for (int round = 0; round < kRounds; ++round) {
    for (Row& row : rows) {
      std::vector<double> times;
      row.round_trips(round_trips, &times);
      row.times.push_back(Median(times));
    }
    for (size_t i = 0; i < kReads; ++i) {
      const int count = static_cast<int>(reads * std::min(kLarge / kReadBytes[i], 8u));
      for (Row& row : rows) row.rates[i].push_back(row.read(i, count));
    }
  }
  print(rows);
  close(in[1]);
  waitpid(pid, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace cfs

int main(int argc, char** argv) {
  const auto is = [&](const char* name, int arguments) {
    return argc == 2 + arguments && strcmp(argv[1], name) == 0;
  };
  if (is("--serve", 1)) return cfs::Serve(argv[2]);
  if (is("--raw-serve", 1)) return cfs::SayAndWait(cfs::ServeRaw(argv[2]));
  if (is("--raw", 5)) return cfs::MeasureRaw(argv + 2);
  if (argc == 1) return cfs::Measure(3000, 500, cfs::PrintTable);
  if (is("--json", 2)) return cfs::Measure(atoi(argv[2]), atoi(argv[3]), cfs::PrintJson);
  if (!is("--smoke", 0)) {
    fprintf(stderr,
            "usage: net_bench [--smoke | --json ROUND_TRIPS READS | --raw-serve ADDRESS | --raw "
            "ADDRESS PUT GET IN_FLIGHT SECONDS]\n");
    return 64;
  }
  const int status = cfs::Measure(20, 8, cfs::PrintTable);
  printf("ok smoke\n");
  return status;
}
