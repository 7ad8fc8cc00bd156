#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/serve_options.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

// Layers of dead mounts that one mount point may have collected.
constexpr int kDeadMountsMax = 64;
constexpr double kTtlSecondsMax = 1e9;

bool ParseFeature(const std::string& value, Feature* feature) {
  if (value == "auto") return *feature = Feature::kAuto, true;
  if (value == "on") return *feature = Feature::kOn, true;
  if (value == "off") return *feature = Feature::kOff, true;
  return false;
}

constexpr uint64_t kStoreBytesMin = 16 << 20;

// "500M": binary multiples, above 0.
bool ParseBytes(absl::string_view value, uint64_t* bytes) {
  constexpr absl::string_view kUnits = "KMGTP";
  int shift = 0;
  if (!value.empty()) {
    const size_t unit = kUnits.find(value.back());
    if (unit != absl::string_view::npos) {
      shift = 10 * static_cast<int>(unit + 1);
      value.remove_suffix(1);
    }
  }
  uint64_t count;
  if (value.empty() || value.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(value, &count) || count == 0 || count > UINT64_MAX >> (shift + 1)) {
    return false;
  }
  *bytes = count << shift;
  return true;
}

bool ParseLocks(const std::string& value, LockMode* locks) {
  if (value == "auto") return *locks = LockMode::kAuto, true;
  if (value == "kernel") return *locks = LockMode::kKernel, true;
  if (value == "daemon") return *locks = LockMode::kDaemon, true;
  return false;
}

bool ParseTtl(const std::string& value, absl::Duration* ttl) {
  double seconds;
  if (!absl::SimpleAtod(value, &seconds) || !(seconds >= 0 && seconds <= kTtlSecondsMax)) {
    return false;
  }
  *ttl = absl::Seconds(seconds);
  return true;
}

// Splits at commas, save at those after a backslash (as libfuse does).
bool ParseFuseOptions(const std::string& value, std::vector<std::string>* options) {
  std::string option;
  for (size_t i = 0; i <= value.size(); ++i) {
    if (i == value.size() || value[i] == ',') {
      if (!option.empty()) options->push_back(std::exchange(option, ""));
      continue;
    }
    option += value[i];
    if (value[i] == '\\' && i + 1 < value.size()) option += value[++i];
  }
  return !value.empty();
}

absl::Status CheckFuseDevice() {
  const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    close(fd);
    return absl::OkStatus();
  }
  if (errno == EACCES || errno == EPERM) {
    return PosixError(errno, absl::StrCat("/dev/fuse: ", strerror(errno),
                                          "; run as root, or let the container have the device "
                                          "(--device /dev/fuse --cap-add SYS_ADMIN)"));
  }
  return absl::UnavailableError(
      absl::StrCat("/dev/fuse: ", strerror(errno),
                   "; `modprobe fuse`, or let the container have the device (--device /dev/fuse)"));
}

bool Contains(const std::string& directory, const std::string& path) {
  return path == directory || absl::StartsWith(path, directory + "/");
}

absl::Status CheckNesting(const std::string& mountpoint, const std::string& store) {
  if (Contains(mountpoint, store)) {
    return absl::InvalidArgumentError(absl::StrCat("store ", store,
                                                   " would be hidden by the mount on ", mountpoint,
                                                   "; choose another --store"));
  }
  if (Contains(store, mountpoint)) {
    return absl::InvalidArgumentError(absl::StrCat("mount point ", mountpoint, " is inside store ",
                                                   store, "; choose another directory"));
  }
  return absl::OkStatus();
}

// OK also when only dead mounts of cfs are in the way.
absl::Status CheckMountPoint(const std::string& mountpoint, absl::string_view own_store = "") {
  CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
  if (const MountEntry* mount = MountAt(mounts, mountpoint)) {
    if (!mount->is_cfs()) {
      return absl::AlreadyExistsError(absl::StrCat(mountpoint, " is already a mount point (",
                                                   mount->type,
                                                   "); unmount it or choose another directory"));
    }
    if (IsDead(*mount, own_store)) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat(mountpoint, " is already a cfs mount (store ",
                                                 mount->store(), "); `cfs umount ", mountpoint,
                                                 "` it or choose another directory"));
  }
  std::error_code error;
  if (!std::filesystem::is_directory(mountpoint, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("mount point ", mountpoint, " is not a directory"));
  }
  return absl::OkStatus();
}

absl::Status RemoveDeadMounts(const std::string& mountpoint, absl::string_view own_store) {
  for (int i = 0; i < kDeadMountsMax; ++i) {
    CFS_ASSIGN_OR_RETURN(const std::vector<MountEntry> mounts, ReadMounts());
    const MountEntry* mount = MountAt(mounts, mountpoint);
    if (mount == nullptr || !mount->is_cfs() || !IsDead(*mount, own_store)) break;
    CFS_RETURN_IF_ERROR(Unmount(mountpoint, /*lazy=*/true));
    LogInfo("dead mount removed");
  }
  return CheckMountPoint(mountpoint, own_store);
}

absl::StatusOr<std::string> ExistingMountPoint(const std::string& path) {
  auto resolved = ResolveMountPoint(path);
  if (ErrnoOf(resolved.status()) == ENOENT) {
    return absl::NotFoundError(
        absl::StrCat("mount point ", path, " does not exist; `mkdir ", path, "` makes it"));
  }
  return resolved;
}

// Where the files come from: neither this mount, nor its store, nor what has them below it.
absl::Status ResolveBackend(NodeConfig* config, const std::string& mode) {
  if (config->backend.empty()) {
    if (!mode.empty()) return absl::InvalidArgumentError("--backend-mode is of a --backend");
    if (config->backend_store_bytes != 0) {
      return absl::InvalidArgumentError("--store-size is of a --backend");
    }
    if (config->backend_ttl > absl::ZeroDuration()) {
      return absl::InvalidArgumentError("--backend-ttl is of a --backend");
    }
    return absl::OkStatus();
  }
  if (!config->cluster.listen.empty() || !config->cluster.join.empty()) {
    return absl::InvalidArgumentError("a node of a cluster can have no --backend yet");
  }
  if (mode == "writethrough") {
    return absl::InvalidArgumentError(
        "there is no writethrough yet; writeback brings changes to the backend soon after");
  }
  config->backend_readonly = mode == "readonly";
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(config->backend, error);
  if (error || !std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("backend ", config->backend, ": ",
                     error ? error.message() : std::string("not a directory")));
  }
  config->backend = path.string();
  for (const std::string& other : {config->mountpoint, config->store_dir}) {
    if (Contains(other, config->backend) || Contains(config->backend, other)) {
      return absl::InvalidArgumentError(absl::StrCat("backend ", config->backend, " and ", other,
                                                     " must not be one below the other"));
    }
  }
  return absl::OkStatus();
}

absl::Status RunMount(ServeOptions* options, const std::string& path,
                      const std::string& backend_mode, const RunNodeFn& run_node) {
  NodeConfig& config = options->config;
  CFS_ASSIGN_OR_RETURN(config.mountpoint, ExistingMountPoint(path));
  CFS_RETURN_IF_ERROR(CheckMountPoint(config.mountpoint));
  CFS_RETURN_IF_ERROR(ResolveServeOptions(options));
  CFS_RETURN_IF_ERROR(CheckNesting(config.mountpoint, config.store_dir));
  CFS_RETURN_IF_ERROR(ResolveBackend(&config, backend_mode));
  CFS_RETURN_IF_ERROR(CheckFuseDevice());
  return RunServe(*options, run_node, [&config](const StoreDir& store) {
    return RemoveDeadMounts(config.mountpoint, store.path());
  });
}

}  // namespace

Verb MountVerb(RunNodeFn run_node) {
  const auto options = std::make_shared<ServeOptions>();
  const auto backend_mode = std::make_shared<std::string>();
  NodeConfig* config = &options->config;
  Verb verb;
  verb.name = "mount";
  verb.arguments = "MNT";
  verb.arguments_min = verb.arguments_max = 1;
  verb.summary = "Mounts cfs on the directory MNT and leaves a daemon that serves it.";
  verb.options = CommonOptions(options.get());
  for (Option& option : std::vector<Option>{
           {"io-uring", 0, "auto|on|off", "talk to the kernel over io_uring (default: auto)",
            [=](const std::string& value) { return ParseFeature(value, &config->io_uring); }},
           {"passthrough", 0, "auto|on|off", "let the kernel do file I/O itself (default: auto)",
            [=](const std::string& value) { return ParseFeature(value, &config->passthrough); }},
           {"locks", 0, "auto|kernel|daemon", "who keeps flock and fcntl locks (default: auto)",
            [=](const std::string& value) { return ParseLocks(value, &config->locks); }},
           {"options", 'o', "OPTION[,...]", "options for FUSE, such as allow_other or ro",
            [=](const std::string& value) {
              return ParseFuseOptions(value, &config->fuse_options);
            }},
           {"backend", 0, "DIR", "show the files of DIR, and bring there what is changed here",
            [=](const std::string& value) {
              config->backend = value;
              return !value.empty();
            }},
           {"backend-mode", 0, "writeback|readonly", "what is done to the backend (default: writeback)",
            [=](const std::string& value) {
              *backend_mode = value;
              return value == "writeback" || value == "readonly" || value == "writethrough";
            }},
           {"store-size", 0, "SIZE", "how much files of the backend take here, as 500G (default: all)",
            [=](const std::string& value) {
              return ParseBytes(value, &config->backend_store_bytes) &&
                     config->backend_store_bytes >= kStoreBytesMin;
            }},
           {"backend-ttl", 0, "SECONDS",
            "look again at what was looked at longer ago (default: 0, never)",
            [=](const std::string& value) { return ParseTtl(value, &config->backend_ttl); }},
       }) {
    verb.options.push_back(std::move(option));
  }
  verb.run = [=, run_node = std::move(run_node)](const std::vector<std::string>& arguments) {
    return RunMount(options.get(), arguments[0], *backend_mode, run_node);
  };
  return verb;
}

}  // namespace cfs
