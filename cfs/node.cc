#include "cfs/node.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "cfs/base/clock.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/fuse/mount.h"
#include "cfs/server/control.h"
#include "cfs/server/local_file_system.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

sigset_t EndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

// Waits for signals in a thread of its own while the node runs.
class SignalThread {
 public:
  explicit SignalThread(Mount* mount)
      : thread_([this, mount] {
          NameThread("cfs-signals");
          const sigset_t signals = EndSignals();
          int seen = 0;
          while (!stop_.load(std::memory_order_relaxed)) {
            const timespec poll = {0, 100'000'000};
            const int signal = sigtimedwait(&signals, nullptr, &poll);
            if (signal < 0) continue;
            LogInfo("told to end signal=", signal);
            if (seen++ == 0) {
              mount->DetachLazily();
            } else {
              mount->Abort();
            }
          }
        }) {}
  ~SignalThread() {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};  // Relaxed: seen at the next poll.
  std::thread thread_;
};

void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

absl::Status RunNode(const NodeConfig& config, StoreDir store, std::function<void()> on_ready) {
  RaiseDescriptorLimit();
  const sigset_t signals = EndSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // Sent when somebody opens a file for writing during the lease probe.
  signal(SIGIO, SIG_IGN);

  const auto started = std::chrono::steady_clock::now();
  RealClock clock;
  LocalFileSystem::Options options;
  options.meta_path = store.meta_path();
  options.data_path = store.data_path();
  options.node = store.identity().node_id;
  CFS_ASSIGN_OR_RETURN(const std::unique_ptr<LocalFileSystem> fs,
                       LocalFileSystem::Open(options, &clock));
  Mount mount(config, fs.get());
  fs->SetKernelCache(&mount);
  absl::Status status = mount.Start();
  if (!status.ok()) return status;
  fs->SetDaemonIo(!mount.abilities().passthrough);
  fs->Start([&mount](int fd) { return mount.RegisterFresh(fd); });

  auto control = ControlServer::Start(store.path(), [&](const nlohmann::json& request) {
    const std::string verb = StringMember(request, "verb");
    if (verb == "stat") return fs->Describe(InodeId(UintMember(request, "ino")));
    if (verb != "status") {
      return nlohmann::json{{"ok", false}, {"error", "no such verb"}, {"errno", EINVAL}};
    }
    const auto up = std::chrono::steady_clock::now() - started;
    return nlohmann::json{
        {"ok", true},
        {"version", CFS_VERSION},
        {"pid", getpid()},
        {"mount", config.mountpoint},
        {"store", store.path()},
        {"node", Raw(store.identity().node_id)},
        {"cluster", store.identity().cluster_id},
        {"passthrough", mount.abilities().passthrough},
        {"io_uring", mount.abilities().io_uring},
        {"locks", mount.abilities().daemon_locks ? "daemon" : "kernel"},
        {"uptime_seconds", std::chrono::duration_cast<std::chrono::seconds>(up).count()},
        {"slots", {{"owned", 65536}}},
        {"fuse", mount.Status()},
        {"meta", fs->Status()},
        {"chunk_store", fs->ChunkStatus()}};
  });
  if (!control.ok()) {
    mount.Abort();
    mount.Wait([&] { fs->Drain(); }).IgnoreError();  // The control socket's error is the one to tell.
    return control.status();
  }
  {
    SignalThread signal_thread(&mount);
    mount.Serve();
    on_ready();
    status = mount.Wait([&] { fs->Drain(); });
  }
  control->reset();
  const absl::Status closed = fs->Close();
  if (!closed.ok()) LogError("the store was not closed in good order error=", closed.ToString());
  LogInfo("ended");
  return status.ok() ? closed : status;
}

}  // namespace cfs
