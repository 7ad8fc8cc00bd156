#include "cfs/node.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cfs/base/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/mutex.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/base/unique_fd.h"
#include "cfs/fuse/mount.h"
#include "cfs/server/backend_tier.h"
#include "cfs/server/cluster_part.h"
#include "cfs/server/cluster_start.h"
#include "cfs/server/control.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/membership.h"
#include "cfs/server/small_file.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

// In the store: the path of the backend that it is in front of.
constexpr char kBackendFile[] = "backend";

sigset_t EndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

// The end of a node, asked for by a signal or by the cluster. Thread-safe.
class Ending {
 public:
  // Asked once, the mount goes when its last user does; asked again, at once.
  void Ask() {
    MutexLock lock(&mutex_);
    if (mount_ != nullptr && asked_ == 0) mount_->DetachLazily();
    if (mount_ != nullptr && asked_ > 0) mount_->Abort();
    ++asked_;
    changed_.SignalAll();
  }
  // Null: there is none, or none any more.
  void SetMount(Mount* mount) {
    MutexLock lock(&mutex_);
    mount_ = mount;
    if (mount_ != nullptr && asked_ > 0) mount_->DetachLazily();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (asked_ == 0) changed_.Wait(&mutex_);
  }
  bool asked() {
    MutexLock lock(&mutex_);
    return asked_ > 0;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int asked_ ABSL_GUARDED_BY(mutex_) = 0;
  Mount* mount_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// Waits for signals in a thread of its own while the node runs, and keeps its log
// small meanwhile.
class SignalThread {
 public:
  SignalThread(Ending* ending, const std::string& log_file)
      : thread_([this, ending, log_file] {
          NameThread("cfs-signals");
          const sigset_t signals = EndSignals();
          while (!stop_.load(std::memory_order_relaxed)) {
            const timespec poll = {0, 100'000'000};
            const int signal = sigtimedwait(&signals, nullptr, &poll);
            if (signal < 0) {
              if (!log_file.empty()) KeepLogSmall(log_file);
              continue;
            }
            LogInfo("told to end signal=", signal);
            ending->Ask();
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

// Calls `ready` once, when `count` nodes are up; at once without a cluster.
void WhenUp(Membership* membership, size_t count, std::function<void()> ready) {
  if (membership == nullptr || count == 0) return ready();
  struct State {
    std::once_flag once;
    std::function<void()> ready;
  };
  const auto state = std::make_shared<State>();
  state->ready = std::move(ready);
  const auto look = [state, count](const ClusterMap& map) {
    const auto up = std::ranges::count(map.nodes(), NodeState::kUp, &ClusterNode::state);
    if (static_cast<size_t>(up) >= count) std::call_once(state->once, state->ready);
  };
  membership->OnChange([look](const ClusterMapPtr&, const ClusterMapPtr& now) { look(*now); });
  look(*membership->map());
}

// Those that a request of the control socket names.
std::vector<NodeId> NodesOf(const nlohmann::json& request) {
  std::vector<NodeId> nodes;
  const auto it = request.find("nodes");
  if (it == request.end() || !it->is_array()) return nodes;
  for (const nlohmann::json& id : *it) {
    if (id.is_number_unsigned()) nodes.push_back(NodeId(id.get<uint32_t>()));
  }
  return nodes;
}

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

  // Before the store becomes a node of a cluster.
  const UniqueFd store_fd(open(store.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const std::string behind = ReadSmallFile(store_fd.get(), kBackendFile);
  if (!behind.empty() && config.backend.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", store.path(), " is in front of a backend; say which: --backend ",
                     absl::StripSuffix(behind, "\n")));
  }
  const auto started = std::chrono::steady_clock::now();
  RealClock clock;
  Ending ending;
  SignalThread signal_thread(&ending, config.log_file);
  ClusterPart cluster_part;
  // Before the store has a file system, for it may get another node id here.
  CFS_ASSIGN_OR_RETURN(std::unique_ptr<Membership> membership,
                       StartMembership(config.cluster, &store, cluster_part.Methods(),
                                       [&ending] { return ending.asked(); }));
  if (membership == nullptr && config.mountpoint.empty()) {
    return absl::InvalidArgumentError(
        "a node without a mount serves a cluster; give --listen or --join");
  }
  LocalFileSystem::Options options;
  options.meta_path = store.meta_path();
  options.data_path = store.data_path();
  options.node = store.identity().node_id;
  options.in_cluster = membership != nullptr;
  if (membership != nullptr) {
    const ClusterMapPtr map = membership->map();
    const ClusterNode* const me = map->Find(membership->self());
    options.stores_files = me == nullptr || me->weight > 0;
    for (size_t i = 0; i < kSlotCount; ++i) {
      options.first_owned[i] = map->owners()[i] == membership->self() && !map->vacant()[i];
    }
  }
  CFS_ASSIGN_OR_RETURN(const std::unique_ptr<LocalFileSystem> fs,
                       LocalFileSystem::Open(options, &clock));
  std::unique_ptr<BackendTier> tier;
  if (!config.backend.empty()) {
    if (membership != nullptr) {
      return absl::InvalidArgumentError("a node of a cluster can have no --backend yet");
    }
    // There before the first record that needs the backend is.
    const auto note = [&]() -> absl::Status {
      const int error = WriteAtomically(store_fd.get(), kBackendFile, config.backend + "\n");
      if (error == 0) return absl::OkStatus();
      return ErrnoStatus(error, absl::StrCat(store.path(), "/", kBackendFile));
    };
    if (behind.empty()) CFS_RETURN_IF_ERROR(note());
    auto opened = BackendTier::Open(
        {config.backend, !config.backend_readonly, config.backend_store_bytes,
         absl::StrFormat("%016x", store.identity().store_id), config.backend_ttl},
        fs.get(), &clock);
    if (!opened.ok()) {
      if (behind.empty()) unlinkat(store_fd.get(), kBackendFile, 0);
      return opened.status();
    }
    tier = *std::move(opened);
    CFS_RETURN_IF_ERROR(note());
  }
  FileSystem* shown = fs.get();
  if (membership != nullptr) {
    CFS_RETURN_IF_ERROR(
        cluster_part.Begin(fs.get(), &clock, membership.get(), config.cluster.io_timeout));
    shown = cluster_part.file_system();
  }
  // No peer is asked, nor asks, afterwards.
  const auto leave = [&] {
    if (membership == nullptr) return;
    cluster_part.End();
    membership->EndServing();
    membership.reset();
  };
  const absl::Cleanup leave_at_the_end = leave;

  std::optional<Mount> mount;
  if (config.mountpoint.empty()) {
    fs->SetDaemonIo(true);
    fs->Start([](int) { return 0; });
  } else {
    NodeConfig mounted = config;
    if (tier != nullptr) {
      CFS_ASSIGN_OR_RETURN(const std::vector<std::string> options, tier->MountOptions());
      mounted.fuse_options.insert(mounted.fuse_options.end(), options.begin(), options.end());
    }
    mount.emplace(mounted, shown);
    fs->SetKernelCache(&*mount);
    CFS_RETURN_IF_ERROR(mount->Start());
    fs->SetDaemonIo(!mount->abilities().passthrough);
    fs->Start([&mount](int fd) { return mount->RegisterFresh(fd); });
    if (tier != nullptr) tier->Start();
  }
  if (membership != nullptr) CFS_RETURN_IF_ERROR(cluster_part.Serve());

  bool finishes = false;  // Of the control thread, until that has ended.
  unlinkat(store_fd.get(), kUnflushedFile, 0);
  auto control = ControlServer::Start(store.path(), [&](const nlohmann::json& request) {
    const std::string verb = StringMember(request, "verb");
    if (verb == "stat") {
      const InodeId ino{UintMember(request, "ino")};
      return membership == nullptr ? fs->Describe(ino) : cluster_part.file_system()->Describe(ino);
    }
    if (verb == "nodes" || verb == "token" || verb == "remove-lost" || verb == "losses") {
      if (membership == nullptr) {
        return ControlError(PosixError(
            ENOTCONN, absl::StrCat("the node of store ", store.path(),
                                   " is in no cluster; it makes one when it is started again "
                                   "with --listen")));
      }
      nlohmann::json reply;
      if (verb == "nodes") reply = membership->Status();
      if (verb == "token") reply["token"] = membership->TokenText();
      if (verb == "losses") reply = cluster_part.CountLosses(NodesOf(request));
      if (verb == "remove-lost") {
        const absl::Status begun = membership->Remove(NodesOf(request));
        if (!begun.ok()) return ControlError(begun);
      }
      reply["ok"] = true;
      return reply;
    }
    if (verb == "evict") {
      const InodeId ino{UintMember(request, "ino")};
      const auto pinned = fs->IsPinned(ino);
      if (!pinned.ok()) return ControlError(pinned.status());
      if (*pinned) return ControlError(PosixError(EBUSY, "it is pinned"));
      const auto evicted = fs->Evict(ino);
      if (!evicted.ok()) return ControlError(evicted.status());
      return nlohmann::json{{"ok", true}, {"evicted", *evicted}};
    }
    if (verb == "refresh" || verb == "refresh_status") {
      if (tier == nullptr) {
        return ControlError(PosixError(EOPNOTSUPP, "there is no backend to look at"));
      }
      if (verb == "refresh_status") {
        nlohmann::json progress = tier->refresh()->Progress(UintMember(request, "id"));
        // Each call after it sees what is new.
        if (!fs->NamesTold()) progress["done"] = false;
        return progress;
      }
      std::string way;
      if (!absl::Base64Unescape(StringMember(request, "path"), &way)) {
        return ControlError(PosixError(EINVAL, "the path is not in base64"));
      }
      const uint64_t id = tier->refresh()->Begin(
          InodeId(UintMember(request, "top")), absl::StrSplit(way, '/', absl::SkipEmpty()));
      return nlohmann::json{{"ok", true}, {"id", id}};
    }
    if (verb == "sync" || verb == "sync_status") {
      Flusher* const flusher = tier == nullptr ? nullptr : tier->flusher();
      if (flusher == nullptr) {
        return ControlError(
            PosixError(EOPNOTSUPP, "there is no backend to bring anything to"));
      }
      if (verb == "sync_status") {
        nlohmann::json reply = flusher->SyncStatus(UintMember(request, "id"));
        // Conflicts have changed names.
        if (!fs->NamesTold()) reply["done"] = false;
        return reply;
      }
      if (BoolMember(request, "finish")) finishes = true, flusher->FinishAtStop();
      return nlohmann::json{{"ok", true}, {"id", flusher->BeginSync()}};
    }
    if (verb != "status") {
      return nlohmann::json{{"ok", false}, {"error", "no such verb"}, {"errno", EINVAL}};
    }
    const auto up = std::chrono::steady_clock::now() - started;
    nlohmann::json reply = {
        {"ok", true},
        {"version", CFS_VERSION},
        {"pid", getpid()},
        {"store", store.path()},
        {"node", Raw(store.identity().node_id)},
        {"cluster", {{"id", store.identity().cluster_id}}},
        {"uptime_seconds", std::chrono::duration_cast<std::chrono::seconds>(up).count()},
        {"meta", fs->Status()},
        {"chunk_store", fs->ChunkStatus()}};
    reply["slots"] = {{"owned", fs->owned().count()}};
    if (tier != nullptr) reply["backend"] = tier->Status();
    if (membership != nullptr) {
      reply["cluster"] = membership->Status();
      reply["peers"] = cluster_part.Status();
      const ClusterMapPtr map = membership->map();
      size_t leaving = 0;
      for (size_t i = 0; i < kSlotCount; ++i) {
        const Slot slot{static_cast<uint16_t>(i)};
        leaving += map->WantedOf(slot) != membership->self() &&
                   (fs->Owns(slot) || map->OwnerOf(slot) == membership->self());
      }
      reply["slots"]["leaving"] = leaving;
    }
    if (mount) {
      reply["mount"] = config.mountpoint;
      reply["passthrough"] = mount->abilities().passthrough;
      reply["io_uring"] = mount->abilities().io_uring;
      reply["locks"] = mount->abilities().daemon_locks ? "daemon" : "kernel";
      reply["fuse"] = mount->Status();
    }
    return reply;
  });
  if (!control.ok()) {
    if (mount) {
      mount->Abort();
      // The control socket's error is the one to tell.
      mount->Wait([&] {
        leave();
        if (tier != nullptr) tier->Drain();
        fs->Drain();
      }).IgnoreError();
    }
    return control.status();
  }

  absl::Status status, expelled;  // `expelled` is read when nobody writes it any more.
  if (membership != nullptr) {
    membership->OnExpelled([&](absl::Status why) {
      expelled = std::move(why);
      ending.Ask();
    });
  }
  if (mount) {
    ending.SetMount(&*mount);
    mount->Serve();
  }
  if (membership != nullptr) membership->SetServing();
  WhenUp(membership.get(), config.cluster.expect, std::move(on_ready));
  const auto drain = [&] {
    control->reset();
    leave();
    if (finishes) {
      fs->Drain();
      fs->ForgetOpens();
    }
    if (tier != nullptr) tier->Drain();
    fs->Drain();
    if (!finishes) return;
    // For who waits for the end of the process, and cannot ask it.
    const absl::StatusOr<LocalFileSystem::Dirty> dirty = fs->ListDirty();
    const size_t marks = dirty.ok() ? dirty->names.size() + dirty->inodes.size() : 1;
    const size_t left = marks - std::min<size_t>(marks, tier->flusher()->staying());
    if (left == 0) return;
    const int error = WriteAtomically(store_fd.get(), kUnflushedFile, absl::StrCat(left, "\n"));
    LogError("cfs stop leaves something that is not on the backend left=", left,
             " errno of the note=", error);
  };
  if (mount) {
    status = mount->Wait(drain);
    ending.SetMount(nullptr);
  } else {
    ending.Wait();
    drain();
  }
  tier.reset();
  const absl::Status closed = fs->Close();
  if (!closed.ok()) LogError("the store was not closed in good order error=", closed.ToString());
  LogInfo("ended");
  if (!status.ok()) return status;
  return expelled.ok() ? closed : expelled;
}

}  // namespace cfs
