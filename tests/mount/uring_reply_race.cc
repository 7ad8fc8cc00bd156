// Goal: with FUSE-over-io_uring a request may be answered by any thread and at any time, and it can
// be interrupted. libfuse 3.18.3 as released fails all of these; subprojects/packagefiles has the
// patches. Method: a child serves a mount with one file, whose GETATTR and SETLKW each case answers
// in its own way; the parent makes the calls and wants them answered in time.
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr fuse_ino_t kFile = 2;

using Answer = std::function<void(fuse_req_t)>;

// Set before the daemon's loop starts, read by its handlers.
Answer answer_getattr;

struct stat Attributes(fuse_ino_t ino) {
  struct stat st = {};
  st.st_ino = ino;
  st.st_mode = ino == kFile ? S_IFREG | 0644 : S_IFDIR | 0755;
  st.st_nlink = 1;
  return st;
}

void AnswerNow(fuse_req_t req) {
  const struct stat st = Attributes(kFile);
  fuse_reply_attr(req, &st, 0);
}

void HandleGetAttr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  if (ino == kFile) return answer_getattr(req);
  const struct stat st = Attributes(ino);
  fuse_reply_attr(req, &st, 0);
}

void HandleLookup(fuse_req_t req, fuse_ino_t, const char*) {
  fuse_entry_param entry = {};
  entry.ino = kFile;
  entry.attr = Attributes(kFile);
  entry.entry_timeout = 1000;
  fuse_reply_entry(req, &entry);
}

void HandleOpen(fuse_req_t req, fuse_ino_t, fuse_file_info* info) { fuse_reply_open(req, info); }

void HandleGetLk(fuse_req_t req, fuse_ino_t, fuse_file_info*, struct flock* lock) {
  fuse_reply_lock(req, lock);
}

// Nobody ever gets a lock that he waits for.
void HandleSetLk(fuse_req_t req, fuse_ino_t, fuse_file_info*, struct flock*, int wait) {
  if (!wait) return void(fuse_reply_err(req, 0));
  fuse_req_interrupt_func(
      req, [](fuse_req_t waiter, void*) { fuse_reply_err(waiter, EINTR); }, nullptr);
}

int Serve(const std::string& mount_point, int queue_depth,
          const std::function<void()>& after_loop) {
  fuse_lowlevel_ops ops = {};
  ops.lookup = HandleLookup;
  ops.getattr = HandleGetAttr;
  ops.open = HandleOpen;
  ops.getlk = HandleGetLk;
  ops.setlk = HandleSetLk;
  std::string options = "io_uring,io_uring_q_depth=" + std::to_string(queue_depth);
  char name[] = "uring_reply_race", flag[] = "-o";
  std::array<char*, 3> argv = {name, flag, options.data()};
  fuse_args args = FUSE_ARGS_INIT(argv.size(), argv.data());
  fuse_session* session = fuse_session_new(&args, &ops, sizeof(ops), nullptr);
  if (session == nullptr || fuse_session_mount(session, mount_point.c_str()) != 0) return 1;
  fuse_session_loop(session);
  if (after_loop) after_loop();
  fuse_session_unmount(session);
  fuse_session_destroy(session);
  fuse_opt_free_args(&args);
  return 0;
}

// A mount in a child process, gone at the end of the scope whatever happened to it.
class Mount {
 public:
  Mount(int queue_depth, Answer on_getattr, const std::function<void()>& after_loop = nullptr) {
    std::string dir =
        (getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + std::string("/cfs-uring-XXXXXX");
    mount_point_ = mkdtemp(dir.data());
    const dev_t outside = Device();
    child_ = fork();
    if (child_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      answer_getattr = std::move(on_getattr);
      _exit(Serve(mount_point_, queue_depth, after_loop));
    }
    const auto deadline = Clock::now() + seconds(10);
    while (Device() == outside && Clock::now() < deadline) usleep(1000);
  }
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  ~Mount() { Stop(MNT_DETACH); }

  std::string file() const { return mount_point_ + "/file"; }

  // Also ends calls that would never be answered.
  void Kill() const { kill(child_, SIGKILL); }

  // Unmounts; the wait status of the daemon, -1 if it had to be killed.
  int Stop(int umount_flags) {
    if (child_ < 0) return 0;
    umount2(mount_point_.c_str(), umount_flags);
    int status = 0;
    const auto deadline = Clock::now() + seconds(10);
    while (waitpid(child_, &status, WNOHANG) == 0) {
      if (Clock::now() > deadline) {
        Kill();
        waitpid(child_, nullptr, 0);
        status = -1;
        break;
      }
      usleep(1000);
    }
    child_ = -1;
    rmdir(mount_point_.c_str());
    return status;
  }

 private:
  dev_t Device() const {
    struct stat st = {};
    return stat(mount_point_.c_str(), &st) == 0 ? st.st_dev : 0;
  }

  std::string mount_point_;
  pid_t child_ = -1;
};

// The ring that a call goes to is that of the caller's CPU.
void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

void StatFile(const Mount& mount) {
  struct stat st;
  stat(mount.file().c_str(), &st);
}

int failures = 0;

void Report(const char* name, const std::string& failure) {
  if (failure.empty()) {
    printf("ok %s\n", name);
  } else {
    ++failures;
    printf("FAIL %s: %s\n", name, failure.c_str());
  }
  fflush(stdout);
}

// Answers from a thread of its own.
class Replier {
 public:
  Replier() {
    std::thread([this] {
      for (;;) {
        std::unique_lock lock(mutex_);
        filled_.wait(lock, [this] { return !queue_.empty(); });
        fuse_req_t req = queue_.front();
        queue_.pop_front();
        lock.unlock();
        AnswerNow(req);
      }
    }).detach();
  }
  void Add(fuse_req_t req) {
    std::lock_guard lock(mutex_);
    queue_.push_back(req);
    filled_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<fuse_req_t> queue_;
};

// The ring's own thread and three others answer at the same time.
void EveryReplyArrives(seconds duration) {
  Mount mount(8, [](fuse_req_t req) {
    static auto* repliers = new std::array<Replier, 3>;
    static std::atomic<unsigned> count = 0;
    const unsigned who = count++ % 5;
    if (who < repliers->size()) {
      (*repliers)[who].Add(req);
    } else {
      AnswerNow(req);
    }
  });
  std::array<std::atomic<uint64_t>, 8> calls = {};
  std::atomic<bool> stop = false;
  std::vector<std::thread> callers;
  for (size_t i = 0; i < calls.size(); ++i) {
    callers.emplace_back([&, i] {
      PinTo(static_cast<int>(i % 2));
      for (; !stop; ++calls[i]) StatFile(mount);
    });
  }
  std::string failure;
  std::array<uint64_t, 8> before = {};
  for (const auto end = Clock::now() + duration; failure.empty() && Clock::now() < end;) {
    std::this_thread::sleep_for(seconds(3));
    for (size_t i = 0; i < calls.size(); ++i) {
      if (calls[i] == before[i]) failure = "a call was not answered for 3 s";
      before[i] = calls[i];
    }
  }
  stop = true;
  if (!failure.empty()) mount.Kill();
  for (std::thread& caller : callers) caller.join();
  Report("every_reply_arrives", failure);
}

// One entry a ring: the next request has to use the entry that the sleeper answered.
void TheReplierMaySleep() {
  Mount mount(1, [](fuse_req_t req) {
    std::thread([req] {
      AnswerNow(req);
      if (vfork() == 0) {  // Blocks its caller uninterruptibly, as fsync does.
        usleep(3'000'000);
        _exit(0);
      }
    }).detach();
  });
  PinTo(0);
  milliseconds slowest(0);
  for (int i = 0; i < 3; ++i) {
    const auto start = Clock::now();
    StatFile(mount);
    slowest = std::max(slowest, std::chrono::duration_cast<milliseconds>(Clock::now() - start));
    usleep(200'000);  // Until the replier sleeps.
  }
  Report("the_replier_may_sleep", slowest < milliseconds(1000)
                                      ? ""
                                      : "a call took " + std::to_string(slowest.count()) + " ms");
}

// The session ends, by a forced unmount, while a request is still to be answered.
void AReplyAfterTheEndIsHarmless() {
  static std::mutex mutex;
  static std::vector<fuse_req_t> held;
  Mount mount(
      2,
      [](fuse_req_t req) {
        std::lock_guard lock(mutex);
        held.push_back(req);
      },
      [] {
        if (held.empty()) _exit(EXIT_FAILURE);
        std::thread([] { std::for_each(held.begin(), held.end(), AnswerNow); }).join();
      });
  std::thread caller([&] { StatFile(mount); });
  std::this_thread::sleep_for(milliseconds(500));
  const int status = mount.Stop(MNT_FORCE | MNT_DETACH);
  caller.join();
  Report("a_reply_after_the_end_is_harmless",
         status == 0 ? "" : "wait status of the daemon: " + std::to_string(status));
}

void AWaiterCanBeInterrupted() {
  Mount mount(2, AnswerNow);
  int result = 0, error = 0;
  std::atomic<bool> done = false;
  std::thread waiter([&] {
    const int fd = open(mount.file().c_str(), O_RDWR | O_CLOEXEC);
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    result = fcntl(fd, F_SETLKW, &lock);
    error = errno;
    close(fd);
    done = true;
  });
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  std::this_thread::sleep_for(milliseconds(500));
  const bool waited = !done;
  pthread_kill(waiter.native_handle(), SIGUSR1);
  for (int i = 0; i < 3000 && !done; ++i) usleep(1000);
  const bool interrupted = done;
  if (!interrupted) mount.Kill();
  waiter.join();
  Report("a_waiter_can_be_interrupted", !waited        ? "F_SETLKW did not wait"
                                        : !interrupted ? "the signal did not end F_SETLKW"
                                        : result == -1 && error == EINTR
                                            ? ""
                                            : std::string("F_SETLKW: ") + strerror(error));
}

// FUSE-over-io_uring allowed by the kernel's switch for the life of this object, if possible.
class UringSwitch {
 public:
  UringSwitch() : before_(Get()) { Set("Y"); }
  ~UringSwitch() { Set(before_); }
  static bool on() { return Get() == "Y"; }

 private:
  static constexpr char kPath[] = "/sys/module/fuse/parameters/enable_uring";
  static std::string Get() {
    std::string value;
    std::ifstream(kPath) >> value;
    return value;
  }
  static void Set(const std::string& value) { std::ofstream(kPath) << value << std::endl; }
  const std::string before_;
};

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && strcmp(argv[1], "--long") == 0;
#ifndef CFS_FUSE_URING_SAFE
  printf("skip uring_reply_race: this libfuse has no patch for FUSE-over-io_uring\n");
  return 77;
#endif
  if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) != 0) {
    printf("skip uring_reply_race: needs root and /dev/fuse\n");
    return 77;
  }
  UringSwitch uring;
  if (!uring.on()) {
    printf("skip uring_reply_race: this kernel has no FUSE-over-io_uring\n");
    return 77;
  }
  EveryReplyArrives(seconds(full ? 120 : 12));
  TheReplierMaySleep();
  AReplyAfterTheEndIsHarmless();
  AWaiterCanBeInterrupted();
  return failures == 0 ? 0 : 1;
}
