#include "cfs/fuse/mount.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

#ifdef CFS_FUSE_URING_SAFE
constexpr bool kLibraryHasRings = true;
#else
// No FUSE-over-io_uring, or one that loses replies of other threads.
constexpr bool kLibraryHasRings = false;
#endif

bool KernelAllowsRings() {
  std::ifstream parameter("/sys/module/fuse/parameters/enable_uring");
  return parameter.get() == 'Y';
}

struct Capability {
  uint32_t bit;
  const char* name;
};
// What we ask for, when the kernel has it. Never WRITEBACK_CACHE: it silently
// drops passthrough. Always KILLPRIV_V2: without it each write asks for an xattr.
constexpr Capability kWanted[] = {
    {FUSE_CAP_PARALLEL_DIROPS, "parallel_dirops"},
    {FUSE_CAP_HANDLE_KILLPRIV_V2, "killpriv_v2"},
    {FUSE_CAP_POSIX_ACL, "posix_acl"},
    {FUSE_CAP_DONT_MASK, "dont_mask"},
    {FUSE_CAP_EXPORT_SUPPORT, "export"},
    {FUSE_CAP_READDIRPLUS, "readdirplus"},
    {FUSE_CAP_READDIRPLUS_AUTO, "readdirplus_auto"},
    {FUSE_CAP_NO_OPENDIR_SUPPORT, "no_opendir"},
    {FUSE_CAP_CACHE_SYMLINKS, "cache_symlinks"},
    {FUSE_CAP_ATOMIC_O_TRUNC, "atomic_o_trunc"},
    {FUSE_CAP_ASYNC_READ, "async_read"},
    {FUSE_CAP_ASYNC_DIO, "async_dio"},
    {FUSE_CAP_DIRECT_IO_ALLOW_MMAP, "direct_io_allow_mmap"},
    {FUSE_CAP_EXPIRE_ONLY, "expire_only"},
};

void LogFromLibrary(fuse_log_level level, const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof(text), format, arguments);
  absl::string_view line(text);
  while (absl::EndsWith(line, "\n")) line.remove_suffix(1);
  LogLine(level <= FUSE_LOG_WARNING ? LogLevel::kWarn : LogLevel::kInfo,
          absl::StrCat("libfuse: ", line));
}

}  // namespace

Mount::~Mount() {
  if (session_ != nullptr) {
    Abort();
    Wait([] {}).IgnoreError();
  }
}

absl::Status Mount::Start() {
  fuse_set_log_func(LogFromLibrary);
  const bool rings =
      config_.io_uring != Feature::kOff && kLibraryHasRings && KernelAllowsRings();
  if (config_.io_uring == Feature::kOn && !rings) {
    return absl::UnavailableError(
        kLibraryHasRings ? "FUSE-over-io_uring is switched off in the kernel; "
                           "`echo Y > /sys/module/fuse/parameters/enable_uring` switches it on"
                         : "this libfuse has no FUSE-over-io_uring that cfs can use");
  }

  std::vector<std::string> options = {
      absl::StrCat("fsname=cfs:", config_.store_dir), "subtype=cfs", "default_permissions"};
  if (geteuid() == 0) {
    // As a local file system: for all users, with devices and setuid programs.
    options.insert(options.end(), {"allow_other", "dev", "suid"});
  }
  if (rings) {
    options.push_back("io_uring");
    options.push_back(absl::StrCat("io_uring_q_depth=", kRingEntriesMax));
  }
  options.insert(options.end(), config_.fuse_options.begin(), config_.fuse_options.end());
  // A comma in a path would end the option.
  for (std::string& option : options) {
    if (absl::StartsWith(option, "fsname=")) {
      std::string escaped;
      for (const char c : option) {
        if (c == ',' || c == '\\') escaped += '\\';
        escaped += c;
      }
      option = escaped;
    }
  }
  const std::string joined = absl::StrJoin(options, ",");
  fuse_args args = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&args, "cfs");
  fuse_opt_add_arg(&args, "-o");
  fuse_opt_add_arg(&args, joined.c_str());
  session_ = fuse_session_new(&args, &FuseOperations(), sizeof(fuse_lowlevel_ops), this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("libfuse does not take these mount options: ", joined));
  }
  if (fuse_session_mount(session_, config_.mountpoint.c_str()) != 0) {
    fuse_session_destroy(std::exchange(session_, nullptr));
    return PosixError(errno > 0 ? errno : EIO,
                      absl::StrCat("cannot mount on ", config_.mountpoint));
  }
  registry_ = KernelBackingRegistry(fuse_session_fd(session_));
  passthrough_ = std::make_unique<Passthrough>(registry_.get());
  if (config_.passthrough == Feature::kOff) passthrough_->Disable();

  // The first request is INIT, and settles what both sides can do.
  fuse_buf buffer{};
  while (!initialized_) {
    const int received = fuse_session_receive_buf(session_, &buffer);
    if (received == -EINTR) continue;
    if (received <= 0) break;
    fuse_session_process_buf(session_, &buffer);
  }
  free(buffer.mem);
  if (!initialized_) return absl::UnavailableError("the kernel did not start the FUSE session");

  abilities_.io_uring = rings;
  std::string why = "it is switched off";
  if (config_.passthrough != Feature::kOff) {
    why = "this kernel or libfuse has none (Linux 6.9, libfuse 3.17)";
    if (abilities_.passthrough) {
      UniqueFd probe(open(config_.store_dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
      if (!probe.valid()) {
        probe.reset(open(absl::StrCat(config_.store_dir, "/node.json").c_str(),
                         O_RDONLY | O_CLOEXEC));
      }
      const absl::StatusOr<int> id = registry_->Register(probe.get());
      if (id.ok()) {
        registry_->Unregister(*id);
      } else {
        abilities_.passthrough = false;
        why = ErrnoOf(id.status()) == EPERM ? "it needs CAP_SYS_ADMIN"
                                            : id.status().ToString();
      }
    }
  } else {
    abilities_.passthrough = false;
  }
  if (!abilities_.passthrough) passthrough_->Disable();
  if (config_.passthrough == Feature::kOn && !abilities_.passthrough) {
    return absl::UnavailableError(absl::StrCat("no kernel passthrough: ", why));
  }
  // Said once; the rest of the life goes without.
  LogInfo("mounted passthrough=",
          abilities_.passthrough ? "on" : absl::StrCat("off (", why, ")"),
          " io_uring=", abilities_.io_uring ? "on" : "off",
          " locks=", abilities_.daemon_locks ? "daemon" : "kernel");
  return absl::OkStatus();
}

void Mount::Init(fuse_conn_info* conn) {
  std::string granted;
  for (const Capability& capability : kWanted) {
    if (!(conn->capable_ext & capability.bit)) continue;
    fuse_set_feature_flag(conn, capability.bit);
    absl::StrAppend(&granted, granted.empty() ? "" : ",", capability.name);
  }
  fuse_unset_feature_flag(conn, FUSE_CAP_WRITEBACK_CACHE);
  abilities_.daemon_locks = config_.locks == LockMode::kDaemon || shared_;
  if (!abilities_.daemon_locks) {
    // One node: the kernel sees every lock itself.
    fuse_unset_feature_flag(conn, FUSE_CAP_POSIX_LOCKS);
    fuse_unset_feature_flag(conn, FUSE_CAP_FLOCK_LOCKS);
  }
  if (config_.passthrough != Feature::kOff && (conn->capable_ext & FUSE_CAP_PASSTHROUGH)) {
    abilities_.passthrough = true;
    fuse_set_feature_flag(conn, FUSE_CAP_PASSTHROUGH);
    // The store's own file system may be an overlay.
    conn->max_backing_stack_depth = 1;
    // Splicing requests in costs two system calls more for each, and pays only
    // for large writes, of which there are none.
    fuse_unset_feature_flag(conn, FUSE_CAP_SPLICE_READ);
  }
  conn->max_write = kRequestBytesMax;
  conn->time_gran = 1;
  conn->max_background = 64;
  conn->congestion_threshold = 48;
  LogInfo("kernel fuse protocol=", conn->proto_major, ".", conn->proto_minor,
          " granted=", granted);
  initialized_ = true;
}

int Mount::RegisterFresh(int fd) {
  MutexLock lock(&registry_mutex_);
  if (gone_ || !passthrough_->enabled()) return 0;
  const absl::StatusOr<int> id = registry_->Register(fd);
  return id.ok() ? *id : 0;
}

void Mount::Serve() {
  // The kernel wakes readers of the device in turn: each more is a colder cache
  // and one more on its lock. Handlers do not wait, so few are enough; data
  // through the daemon does wait for memory and takes more.
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int count = abilities_.passthrough
                        ? std::clamp(cores / 2, 1, kFuseThreadsMax)
                        : std::clamp(cores + 1, kFuseThreadsMin, kFuseThreadsMax);
  for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Work(); });

  // Reads through the daemon come in pieces as large as readahead.
  struct stat st;
  if (!abilities_.passthrough && stat(config_.mountpoint.c_str(), &st) == 0) {
    std::ofstream(absl::StrCat("/sys/class/bdi/", major(st.st_dev), ":", minor(st.st_dev),
                               "/read_ahead_kb"))
        << 4096;
  }
}

// Whoever has got a reply often has the next request ready sooner than a
// sleeping thread is woken, which takes an interrupt to another CPU. So one
// thread looks for it a little while; not if that was in vain lately.
void Mount::AwaitSoon() {
  constexpr auto kSpin = std::chrono::microseconds(30);
  constexpr int kMissesMax = 64;
  if (spin_skips_.load(std::memory_order_relaxed) > 0) {
    spin_skips_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  if (spinning_.exchange(true, std::memory_order_acquire)) return;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  pollfd device{fuse_session_fd(session_), POLLIN, 0};
  // What is there already says nothing of who comes while we look: with one CPU
  // for all, nobody does.
  if (poll(&device, 1, 0) == 0) {
    bool found = false;
    do {
      found = poll(&device, 1, 0) != 0;
    } while (!found && std::chrono::steady_clock::now() < end);
    // Doubled with each miss.
    spin_misses_ = found ? 0 : std::min(spin_misses_ * 2 + 1, kMissesMax);
    spin_skips_.store(spin_misses_, std::memory_order_relaxed);
  }
  spinning_.store(false, std::memory_order_release);
}

thread_local fuse_buf* Mount::request_buffer_ = nullptr;

void Mount::Work() {
  NameThread("cfs-fuse");
  fuse_buf buffer{};
  request_buffer_ = &buffer;
  while (!fuse_session_exited(session_)) {
    AwaitSoon();
    const int received = fuse_session_receive_buf(session_, &buffer);
    if (received == -EINTR || received == -EAGAIN) continue;
    if (received <= 0) {
      // ECONNABORTED: the end came while a last request was being read.
      if (received < 0 && received != -ECONNABORTED) {
        error_.store(-received, std::memory_order_relaxed);
      }
      break;
    }
    fuse_session_process_buf(session_, &buffer);
  }
  fuse_session_exit(session_);
  free(buffer.mem);
}

absl::Status Mount::Wait(absl::FunctionRef<void()> drain) {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  {
    // The pool's thread may outlive the connection.
    MutexLock lock(&registry_mutex_);
    gone_ = true;
  }
  drain();
  {
    MutexLock lock(&names_mutex_);
    names_end_ = true;
    names_wake_.Signal();
  }
  if (names_thread_.joinable()) names_thread_.join();
  // Unmounts, unless that is done, and ends the ring threads.
  fuse_session_unmount(session_);
  fuse_session_destroy(std::exchange(session_, nullptr));
  const int error = error_.load(std::memory_order_relaxed);
  if (error != 0) return ErrnoStatus(error, "reading from the FUSE device");
  return absl::OkStatus();
}

void Mount::DetachLazily() {
  if (umount2(config_.mountpoint.c_str(), MNT_DETACH) == 0 || errno == EINVAL) return;
  const pid_t child = fork();
  if (child == 0) {
    execlp("fusermount3", "fusermount3", "-u", "-q", "-z", config_.mountpoint.c_str(),
           static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    LogWarn("cannot unmount, ending the session instead");
    Abort();
  }
}

void Mount::Abort() {
  MutexLock lock(&registry_mutex_);
  if (gone_) return;
  fuse_session_exit(session_);
  // Threads that wait for a request end when the connection does.
  umount2(config_.mountpoint.c_str(), MNT_FORCE | MNT_DETACH);
}

void Mount::AttrUnstable(InodeId ino) {
  // Attributes only (a negative offset): takes no page or inode lock, so it may
  // be called from within a request. The kernel may not know the inode.
  fuse_lowlevel_notify_inval_inode(session_, Raw(ino), -1, 0);
}

void Mount::RegistrationUnused(int registration) {
  MutexLock lock(&registry_mutex_);
  if (!gone_) registry_->Unregister(registration);
}

void Mount::BackingGone(InodeId ino) {
  MutexLock lock(&registry_mutex_);
  if (!gone_) passthrough_->Drop(ino);
}

void Mount::ListingChanged(InodeId dir) {
  // Drops the pages that hold the listing; nobody holds one of a directory for
  // longer than it takes to copy names.
  fuse_lowlevel_notify_inval_inode(session_, Raw(dir), 0, 0);
}

void Mount::NameChanged(InodeId dir, absl::string_view name) {
  MutexLock lock(&names_mutex_);
  if (names_end_) return;
  if (!names_thread_.joinable()) names_thread_ = std::thread([this] { TellNames(); });
  names_.emplace_back(dir, name);
  names_wake_.Signal();
}

bool Mount::NamesTold() {
  MutexLock lock(&names_mutex_);
  return names_.empty() && !telling_;
}

void Mount::TellNames() {
  NameThread("cfs-names");
  for (;;) {
    std::pair<InodeId, std::string> next;
    {
      MutexLock lock(&names_mutex_);
      telling_ = false;
      while (names_.empty() && !names_end_) names_wake_.Wait(&names_mutex_);
      if (names_end_) return;
      next = std::move(names_.front());
      names_.pop_front();
      telling_ = true;
    }
    const auto& [dir, name] = next;
    fuse_lowlevel_notify_inval_entry(session_, Raw(dir), name.data(), name.size());
  }
}

void Mount::FillOpen(const OpenResult& open, fuse_file_info* info) {
  info->fh = static_cast<uint64_t>(open.handle);
  // With locks in the kernel, close(2) has nothing to tell us.
  info->noflush = !abilities_.daemon_locks;
  if (open.remote) {
    info->direct_io = 1;
    // Those within the file need not wait for each other; the home writes each at
    // once.
    info->parallel_direct_writes = 1;
    return;
  }
  info->backing_id = passthrough_->Acquire(open.ino, open.registration, !open.through_daemon,
                                           [&] { return fs_->OpenBacking(open.backing); });
  // Pages of ours would miss what other nodes write.
  info->direct_io = shared_ && info->backing_id == 0;
}

nlohmann::json Mount::Status() {
  nlohmann::json requests;
  for (size_t i = 0; i < counters_.requests.size(); ++i) {
    requests[kFuseOpNames[i]] = counters_.requests[i].load(std::memory_order_relaxed);
  }
  return {{"requests", requests},
          {"read_bytes", counters_.read_bytes.load(std::memory_order_relaxed)},
          {"write_bytes", counters_.write_bytes.load(std::memory_order_relaxed)},
          {"backing_ids", passthrough_ == nullptr ? 0 : passthrough_->registered()},
          {"lock_waits", lock_waits_.load(std::memory_order_relaxed)}};
}

}  // namespace cfs
