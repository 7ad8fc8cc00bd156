#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cfs/base/status_macros.h"
#include "cfs/cli/fuse_probe.h"
#include "cfs/cli/report.h"
#include "cfs/cli/verbs.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

// The files that a busy node keeps open.
constexpr rlim_t kFilesWanted = 20'000;
constexpr uint64_t kPagesLimitDefault = 256;
constexpr char kEnableUring[] = "/sys/module/fuse/parameters/enable_uring";

// kWarn: cfs works, but less well than it could. kFail: it can't mount.
enum class Level { kOk, kWarn, kFail };
constexpr const char* kLevelNames[] = {"ok", "warn", "FAIL"};
constexpr const char* kLevelNamesJson[] = {"ok", "warn", "fail"};

struct Check {
  std::string name;
  Level level;
  std::string finding;
  std::string advice;  // What to change; empty when nothing needs to be.
};

// What several checks look at.
struct Machine {
  bool root;
  bool sys_admin;
  bool has_fusermount;
  std::string kernel;
  std::string store;     // As it would be used.
  std::string existing;  // The part of its path that is there.
  absl::StatusOr<FuseProbe> probe;
};

// Nothing when the file is not there.
std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::stringstream text;
  text << file.rdbuf();
  return std::string(absl::StripAsciiWhitespace(text.str()));
}

bool HasSysAdmin() {
  const std::string status = ReadFile("/proc/self/status").value_or("");
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    uint64_t effective = 0;
    if (absl::ConsumePrefix(&line, "CapEff:") &&
        absl::SimpleHexAtoi(absl::StripAsciiWhitespace(line), &effective)) {
      return (effective >> CAP_SYS_ADMIN & 1) != 0;
    }
  }
  return false;
}

bool InPath(const std::string& program) {
  const char* path = getenv("PATH");
  for (absl::string_view directory : absl::StrSplit(path == nullptr ? "" : path, ':')) {
    if (access(absl::StrCat(directory, "/", program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

absl::StatusOr<Machine> Examine(const std::string& store_option) {
  Machine machine;
  machine.root = geteuid() == 0;
  machine.sys_admin = HasSysAdmin();
  machine.has_fusermount = InPath("fusermount3");
  utsname name;
  uname(&name);
  machine.kernel = name.release;
  machine.store = store_option;
  if (machine.store.empty()) {
    CFS_ASSIGN_OR_RETURN(machine.store, DefaultStorePath());
  }
  std::error_code error;
  std::filesystem::path existing = std::filesystem::absolute(machine.store, error);
  while (!std::filesystem::is_directory(existing, error) && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  machine.existing = existing.string();
  machine.probe = machine.sys_admin ? ProbeFuse(machine.existing)
                                    : absl::PermissionDeniedError("it needs CAP_SYS_ADMIN");
  return machine;
}

Check CheckKernel(const Machine& machine) {
  std::string finding = "Linux " + machine.kernel;
  if (machine.probe.ok()) {
    absl::StrAppend(&finding, ", FUSE protocol 7.", machine.probe->protocol_minor);
  }
  return {"kernel", Level::kOk, finding, ""};
}

Check CheckModule(const Machine&) {
  const std::string file_systems = ReadFile("/proc/filesystems").value_or("");
  if (absl::StrContains(file_systems, "\tfuse\n")) {
    return {"fuse module", Level::kOk, "loaded", ""};
  }
  // Opening /dev/fuse loads it where that is allowed.
  return {"fuse module", Level::kWarn, "not loaded",
          "modprobe fuse; echo fuse > /etc/modules-load.d/fuse.conf"};
}

Check CheckDevice(const Machine&) {
  const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    close(fd);
    return {"/dev/fuse", Level::kOk, "can be opened", ""};
  }
  const bool denied = errno == EACCES || errno == EPERM;
  return {"/dev/fuse", Level::kFail, strerror(errno),
          denied ? "run as root; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
                 : "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"};
}

Check CheckPrivileges(const Machine& machine) {
  if (machine.sys_admin) {
    if (machine.probe.ok()) {
      return {"privileges", Level::kOk, "CAP_SYS_ADMIN; a mount was tried and worked", ""};
    }
    return {"privileges", Level::kFail,
            absl::StrCat("CAP_SYS_ADMIN, but ", machine.probe.status().message()),
            "look for a security module or a container that forbids mounts"};
  }
  if (machine.has_fusermount && !machine.root) {
    return {"privileges", Level::kWarn, "no CAP_SYS_ADMIN; fusermount3 mounts for us",
            "run as root for passthrough"};
  }
  return {"privileges", Level::kFail, "no CAP_SYS_ADMIN, and no fusermount3 that mounts for us",
          machine.root ? "give the container CAP_SYS_ADMIN (--cap-add SYS_ADMIN)"
                       : "install fusermount3 (package fuse3), or run as root"};
}

Check CheckAllowOther(const Machine& machine) {
  if (machine.root) return {"allow_other", Level::kOk, "root may let other users in", ""};
  const std::string config = ReadFile("/etc/fuse.conf").value_or("");
  for (absl::string_view line : absl::StrSplit(config, '\n')) {
    if (absl::StripAsciiWhitespace(line) == "user_allow_other") {
      return {"allow_other", Level::kOk, "user_allow_other is in /etc/fuse.conf", ""};
    }
  }
  return {"allow_other", Level::kWarn, "only you can use what you mount",
          "add user_allow_other to /etc/fuse.conf to use -o allow_other"};
}

Check CheckPassthrough(const Machine& machine) {
  Check check = {"passthrough", Level::kWarn, "", ""};
  if (!machine.sys_admin) {
    check.finding = "off: the kernel wants CAP_SYS_ADMIN for it; the daemon does the I/O";
    check.advice = "run as root";
  } else if (!machine.probe.ok()) {
    check.finding = absl::StrCat("unknown: ", machine.probe.status().message(), " was refused");
  } else if (!machine.probe->offers_passthrough) {
    check.finding = "off: the kernel has none; the daemon does the I/O";
    check.advice = "use Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH";
  } else if (machine.probe->passthrough_errno != 0) {
    check.finding =
        absl::StrCat("off: a file in ", machine.existing, " was refused as backing file (",
                     strerror(machine.probe->passthrough_errno), ")");
    check.advice = "put the store on a local ext4, XFS or tmpfs";
  } else {
    check.level = Level::kOk;
    check.finding = absl::StrCat("works; tried with a file in ", machine.existing);
  }
  return check;
}

Check CheckIoUring(const Machine&) {
  io_uring_params params = {};
  const long fd = syscall(__NR_io_uring_setup, 1, &params);
  if (fd >= 0) {
    close(static_cast<int>(fd));
    return {"io_uring", Level::kOk, "io_uring_setup works", ""};
  }
  const std::string disabled = ReadFile("/proc/sys/kernel/io_uring_disabled").value_or("0");
  return {"io_uring", Level::kWarn, absl::StrCat("io_uring_setup: ", strerror(errno)),
          disabled != "0" ? "sysctl kernel.io_uring_disabled=0"
                          : "let the container's seccomp profile allow io_uring"};
}

Check CheckFuseOverIoUring(const Machine&) {
  Check check = {"fuse over io_uring", Level::kWarn, "", ""};
#ifndef CFS_FUSE_URING_SAFE
  check.finding = "off: the libfuse of this build may lose replies over io_uring";
  check.advice =
      "build cfs with the libfuse that it brings (meson setup --force-fallback-for=fuse3)";
#else
  const auto enabled = ReadFile(kEnableUring);
  if (!enabled) {
    check.finding = "off: the kernel has none";
    check.advice = "use Linux 6.14 or newer with CONFIG_FUSE_IO_URING";
  } else if (*enabled != "Y" && *enabled != "1") {
    check.finding = "off: switched off in the kernel";
    check.advice =
        absl::StrCat("echo Y > ", kEnableUring,
                     "; for good: options fuse enable_uring=Y in /etc/modprobe.d/fuse.conf");
  } else {
    check.level = Level::kOk;
    check.finding = "the kernel and the libfuse of this build have it";
  }
#endif
  return check;
}

Check CheckOpenFiles(const Machine&) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string finding =
      limit.rlim_max == RLIM_INFINITY ? "no limit" : absl::StrCat("up to ", limit.rlim_max);
  if (limit.rlim_max >= kFilesWanted) return {"open files", Level::kOk, finding, ""};
  return {"open files", Level::kWarn, finding,
          absl::StrCat("raise the hard limit to ", kFilesWanted,
                       " (ulimit -Hn, LimitNOFILE= of systemd)")};
}

Check CheckRequestSize(const Machine&) {
  const auto text = ReadFile("/proc/sys/fs/fuse/max_pages_limit");
  uint64_t pages = kPagesLimitDefault;
  if (text && !absl::SimpleAtoi(*text, &pages)) pages = kPagesLimitDefault;
  const std::string finding = absl::StrCat("up to ", HumanBytes(pages * getpagesize()));
  if (pages >= kPagesLimitDefault) return {"request size", Level::kOk, finding, ""};
  return {"request size", Level::kWarn, finding,
          absl::StrCat("sysctl fs.fuse.max_pages_limit=", kPagesLimitDefault)};
}

std::string FileSystemName(uint32_t f_type) {
  static constexpr struct {
    uint32_t f_type;
    const char* name;
  } kTable[] = {{0xef53, "ext4"},      {0x58465342, "xfs"},     {0x9123683e, "btrfs"},
                {0x01021994, "tmpfs"}, {0x794c7630, "overlay"}, {0xf2f52010, "f2fs"},
                {0x2fc12fc1, "zfs"},   {0x858458f6, "ramfs"}};
  for (const auto& row : kTable) {
    if (row.f_type == f_type) return row.name;
  }
  return absl::StrFormat("type 0x%x", f_type);
}

Check CheckStore(const Machine& machine) {
  struct statfs fs;
  if (statfs(machine.existing.c_str(), &fs) != 0) {
    return {"store", Level::kFail, absl::StrCat(machine.existing, ": ", strerror(errno)),
            "choose another --store"};
  }
  const uint32_t f_type = static_cast<uint32_t>(fs.f_type);
  if (const auto network = NetworkFileSystem(f_type)) {
    return {"store", Level::kFail,
            absl::StrCat(machine.store, " is on ", *network, ", which is not a local file system"),
            "choose a --store on a local disk"};
  }
  const std::string name = FileSystemName(f_type);
  const std::string finding =
      absl::StrCat(machine.store, " is on ", name, ", ",
                   HumanBytes(uint64_t{fs.f_bavail} * static_cast<uint64_t>(fs.f_frsize)), " free");
  if (access(machine.existing.c_str(), W_OK | X_OK) != 0) {
    return {"store", Level::kFail, absl::StrCat(finding, ", but ", strerror(errno)),
            "choose another --store, or change the permissions of " + machine.existing};
  }
  if (name == "tmpfs" || name == "ramfs") {
    return {"store", Level::kWarn, finding + "; its data ends with the machine's next start",
            "choose a --store on a disk to keep it"};
  }
  return {"store", Level::kOk, finding, ""};
}

constexpr Check (*kChecks[])(const Machine&) = {
    CheckKernel,     CheckModule,      CheckDevice,  CheckPrivileges,
    CheckAllowOther, CheckPassthrough, CheckIoUring, CheckFuseOverIoUring,
    CheckOpenFiles,  CheckRequestSize, CheckStore};

void PrintText(const std::vector<Check>& checks) {
  size_t width = 0;
  for (const Check& check : checks) width = std::max(width, check.name.size());
  for (const Check& check : checks) {
    printf("%-4s  %-*s  %s\n", kLevelNames[static_cast<int>(check.level)], static_cast<int>(width),
           check.name.c_str(), check.finding.c_str());
    if (!check.advice.empty()) {
      printf("      %-*s  -> %s\n", static_cast<int>(width), "", check.advice.c_str());
    }
  }
}

void PrintJson(const std::vector<Check>& checks, bool can_mount) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Check& check : checks) {
    list.push_back({{"name", check.name},
                    {"level", kLevelNamesJson[static_cast<int>(check.level)]},
                    {"finding", check.finding},
                    {"advice", check.advice}});
  }
  puts(ToText({{"can_mount", can_mount}, {"checks", list}}, 2).c_str());
}

absl::Status Doctor(const std::string& store, bool json) {
  CFS_ASSIGN_OR_RETURN(const Machine machine, Examine(store));
  std::vector<Check> checks;
  for (const auto check : kChecks) checks.push_back(check(machine));
  const bool can_mount = std::none_of(
      checks.begin(), checks.end(), [](const Check& check) { return check.level == Level::kFail; });
  if (json) {
    PrintJson(checks, can_mount);
  } else {
    PrintText(checks);
  }
  return can_mount ? absl::OkStatus() : absl::UnavailableError("cfs can't mount here");
}

}  // namespace

Verb DoctorVerb() {
  struct Options {
    std::string store;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  return {"doctor",
          "",
          0,
          0,
          "Says what this machine can do for cfs, and what to change.",
          {{"store", 0, "DIR", "look at the store DIR (default: as for cfs mount)",
            [=](const std::string& value) {
              options->store = value;
              return !value.empty();
            }},
           Flag("json", 0, "print JSON", &options->json)},
          [=](const std::vector<std::string>&) { return Doctor(options->store, options->json); }};
}

}  // namespace cfs
