#include "cfs/server/store_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/status_macros.h"
#include "cfs/server/small_file.h"

namespace cfs {
namespace {

// How long a process that is ending is waited for.
constexpr std::chrono::milliseconds kEndingMax = std::chrono::seconds(5);

// What a directory may hold without being a store: what an interrupted Open()
// leaves, and what mkfs does.
constexpr std::string_view kFreshNames[] = {"meta",    "data",    "lock",      "node.json.new",
                                            "cfs.pid", "cfs.log", "cfs.log.1", "meta.reserve",
                                            "lost+found"};

absl::Status StoreErrno(absl::string_view path, int err) {
  if (err == EACCES || err == EPERM || err == EROFS) {
    return PosixError(err, absl::StrCat("store ", path, " is not writable (", std::strerror(err),
                                        "); change its permissions or choose another --store"));
  }
  return ErrnoStatus(err, absl::StrCat("store ", path));
}

// The names in a directory; nothing (with errno) when it can't be read.
std::optional<std::vector<std::string>> List(int dir_fd, const char* name) {
  const int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  DIR* dir = fdopendir(fd);
  std::vector<std::string> names;
  while (const dirent* entry = readdir(dir)) {
    const std::string_view entry_name = entry->d_name;
    if (entry_name != "." && entry_name != "..") names.emplace_back(entry_name);
  }
  closedir(dir);
  return names;
}

absl::Status CheckFileSystem(const std::string& path, const std::string& existing) {
  struct statfs fs;
  if (statfs(existing.c_str(), &fs) != 0) return StoreErrno(path, errno);
  if (const auto name = NetworkFileSystem(static_cast<uint32_t>(fs.f_type))) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", path, " is on a network or user-space file system (", *name,
                     "); choose a --store on a local disk"));
  }
  return absl::OkStatus();
}

absl::Status CheckMachine(const std::string& path, const StoreIdentity& identity) {
  const std::string here = MachineId();
  if (identity.machine == here) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "store ", path, " was made on another machine (", identity.machine, ", this one is ", here,
      "); choose another --store or, if it was moved here for good, change \"machine\" in ", path,
      "/node.json"));
}

// The identity of the store that the directory holds; nothing when it is free to
// become one; a Status when it must be left alone.
absl::StatusOr<std::optional<StoreIdentity>> Inspect(const std::string& path, int dir_fd) {
  const auto names = List(dir_fd, ".");
  if (!names) return StoreErrno(path, errno);
  const auto has = [&](absl::string_view name) {
    return std::find(names->begin(), names->end(), name) != names->end();
  };
  if (has("node.json")) {
    auto identity = DecodeIdentity(ReadSmallFile(dir_fd, "node.json"));
    if (!identity.ok()) {
      return absl::Status(identity.status().code(),
                          absl::StrCat("store ", path, ": ", identity.status().message()));
    }
    CFS_RETURN_IF_ERROR(CheckMachine(path, *identity));
    for (const char* directory : {"meta", "data"}) {
      // Made anew, an empty half would condemn what the other one holds.
      if (!has(directory)) {
        return absl::DataLossError(
            absl::StrCat("store ", path, " is damaged: ", directory,
                         "/ is missing; restore it or choose another --store"));
      }
    }
    return std::optional<StoreIdentity>(*std::move(identity));
  }
  for (const std::string& name : *names) {
    bool fresh =
        std::find(std::begin(kFreshNames), std::end(kFreshNames), name) != std::end(kFreshNames);
    if (name == "meta" || name == "data") {
      const auto contents = List(dir_fd, name.c_str());
      fresh = contents && contents->empty();
    }
    if (!fresh) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", path, " is not empty and not a cfs store (it holds ",
                       absl::CHexEscape(name), "); choose an empty directory"));
    }
  }
  return std::optional<StoreIdentity>();
}

// Of the cluster `cluster_id`; "": of one of its own.
absl::StatusOr<StoreIdentity> NewIdentity(absl::string_view cluster_id) {
  unsigned char cluster[16];
  uint32_t node = 0;
  uint64_t store = 0;
  if (getrandom(cluster, sizeof(cluster), 0) != sizeof(cluster) ||
      getrandom(&store, sizeof(store), 0) != sizeof(store)) {
    return ErrnoStatus("getrandom");
  }
  // The transport has a use of its own for the highest number.
  while (node == 0 || node == UINT32_MAX) {
    if (getrandom(&node, sizeof(node), 0) != sizeof(node)) return ErrnoStatus("getrandom");
  }
  std::string id(cluster_id);
  if (id.empty()) {
    id = absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(cluster), sizeof(cluster)));
  }
  return StoreIdentity{std::move(id), NodeId{node}, MachineId(), store};
}

// What was made on the way to a store, to be unmade unless it got there.
class Undo {
 public:
  ~Undo() {
    for (auto it = paths_.rbegin(); it != paths_.rend(); ++it) remove(it->c_str());
  }
  void Add(std::string path) { paths_.push_back(std::move(path)); }
  void Commit() { paths_.clear(); }

 private:
  std::vector<std::string> paths_;
};

UniqueFd OpenDirectory(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

int MakeDirectory(const std::string& path, Undo* undo) {
  if (mkdir(path.c_str(), 0700) == 0) {
    undo->Add(path);
    return 0;
  }
  return errno == EEXIST ? 0 : errno;
}

absl::Status InUse(absl::string_view path) {
  const pid_t owner = StoreOwner(path).value_or(0);
  return absl::UnavailableError(
      absl::StrCat("store ", path, " is in use by ",
                   owner > 0 ? absl::StrCat("process ", owner) : std::string("another process"),
                   "; `cfs umount` its mount or choose another --store"));
}

struct flock WholeFile(short type = F_WRLCK) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

// The first thread of the process is gone, but others may not be yet, and what
// it had open is still open.
bool IsEnding(pid_t pid) {
  const std::string stat = ReadSmallFile(AT_FDCWD, absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = stat.rfind(')');
  return name_end != std::string::npos && absl::StartsWith(stat.substr(name_end), ") Z");
}

// The locked descriptor. An OFD lock: it survives fork(), and F_OFD_GETLK can ask
// after it without taking it.
absl::StatusOr<UniqueFd> Lock(const std::string& path, int dir_fd, Undo* undo) {
  UniqueFd fd(openat(dir_fd, "lock", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  const bool made = fd.valid();
  if (!made && errno == EEXIST) fd.reset(openat(dir_fd, "lock", O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return StoreErrno(path, errno);
  StoreOwner(path);  // Waits for one that is just ending.
  struct flock lock = WholeFile();
  if (fcntl(fd.get(), F_OFD_SETLK, &lock) != 0) {
    return errno == EAGAIN || errno == EACCES ? InUse(path) : StoreErrno(path, errno);
  }
  struct stat st;
  if (fstat(fd.get(), &st) != 0 || st.st_nlink == 0) {
    // Its maker failed and took it away between our open and our lock.
    return InUse(path);
  }
  if (made) undo->Add(path + "/lock");
  return fd;
}

}  // namespace

absl::StatusOr<StoreDir> StoreDir::Open(absl::string_view given, absl::string_view cluster_id) {
  namespace fs = std::filesystem;
  CFS_ASSIGN_OR_RETURN(std::string path, ResolveStorePath(given));

  // All refusals first: they must leave no trace.
  std::vector<fs::path> missing;
  fs::path existing = path;
  std::error_code error;
  while (!fs::exists(existing, error) && !error && existing.has_relative_path()) {
    missing.push_back(existing);
    existing = existing.parent_path();
  }
  if (error) return StoreErrno(path, error.value());
  if (!fs::is_directory(existing, error)) {
    return absl::InvalidArgumentError(absl::StrCat("store ", path, ": ", existing.string(),
                                                   " is not a directory; choose another --store"));
  }
  CFS_RETURN_IF_ERROR(CheckFileSystem(path, existing.string()));

  UniqueFd lock;
  Undo undo;  // Goes first: what is removed is still locked.
  for (auto it = missing.rbegin(); it != missing.rend(); ++it) {
    if (const int err = MakeDirectory(it->string(), &undo)) return StoreErrno(path, err);
  }
  const UniqueFd directory = OpenDirectory(path);
  if (!directory.valid()) return StoreErrno(path, errno);
  CFS_RETURN_IF_ERROR(Inspect(path, directory.get()).status());

  CFS_ASSIGN_OR_RETURN(lock, Lock(path, directory.get(), &undo));
  // Again, for another process may have been at work before we had the lock.
  CFS_ASSIGN_OR_RETURN(std::optional<StoreIdentity> identity, Inspect(path, directory.get()));
  if (!identity) {
    CFS_ASSIGN_OR_RETURN(identity, NewIdentity(cluster_id));
    for (const char* name : {"/meta", "/data"}) {
      if (const int err = MakeDirectory(path + name, &undo)) return StoreErrno(path, err);
    }
    for (const fs::path& made : missing) {
      const UniqueFd parent = OpenDirectory(made.parent_path().string());
      if (!parent.valid() || fsync(parent.get()) != 0) return StoreErrno(path, errno);
    }
    // Up to here a crash leaves a directory that is not yet a store; from here
    // on, also after a power loss, a whole one.
    if (const int err = WriteAtomically(directory.get(), "node.json", EncodeIdentity(*identity))) {
      return StoreErrno(path, err);
    }
  }
  undo.Commit();
  if (const int err = WriteAtomically(directory.get(), "cfs.pid", absl::StrCat(getpid(), "\n"))) {
    return StoreErrno(path, err);
  }
  return StoreDir(std::move(path), *std::move(identity), std::move(lock));
}

StoreDir::StoreDir(std::string path, StoreIdentity identity, UniqueFd lock)
    : path_(std::move(path)), identity_(std::move(identity)), lock_(std::move(lock)) {}

bool StoreDir::empty() const {
  const auto names = List(AT_FDCWD, meta_path().c_str());
  return names && names->empty();
}

absl::Status StoreDir::Renew(absl::string_view cluster_id) {
  CFS_CHECK(empty());
  CFS_ASSIGN_OR_RETURN(StoreIdentity identity, NewIdentity(cluster_id));
  const UniqueFd directory = OpenDirectory(path_);
  if (!directory.valid()) return StoreErrno(path_, errno);
  if (const int err = WriteAtomically(directory.get(), "node.json", EncodeIdentity(identity))) {
    return StoreErrno(path_, err);
  }
  identity_ = std::move(identity);
  return absl::OkStatus();
}

StoreDir::~StoreDir() {
  if (lock_.valid()) unlink((path_ + "/cfs.pid").c_str());
}

absl::StatusOr<IdleStore> OpenIdleStore(absl::string_view given) {
  IdleStore store;
  CFS_ASSIGN_OR_RETURN(store.path, ResolveStorePath(given));
  const std::string& path = store.path;
  const UniqueFd directory = OpenDirectory(path);
  if (!directory.valid()) {
    if (errno == ENOTDIR) {
      return absl::InvalidArgumentError(absl::StrCat("store ", path, " is not a directory"));
    }
    return ErrnoStatus(absl::StrCat("store ", path));
  }
  const auto has = [&](const char* name) {
    return faccessat(directory.get(), name, F_OK, 0) == 0;
  };
  if (!has("node.json")) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", path, " is not a cfs store: it has no node.json"));
  }
  auto identity = DecodeIdentity(ReadSmallFile(directory.get(), "node.json"));
  if (!identity.ok()) {
    return absl::Status(identity.status().code(),
                        absl::StrCat("store ", path, ": ", identity.status().message()));
  }
  store.identity = *std::move(identity);
  for (const char* name : {"meta", "data"}) {
    if (!has(name)) {
      return absl::DataLossError(
          absl::StrCat("store ", path, " is damaged: ", name, "/ is missing"));
    }
  }
  store.lock.reset(openat(directory.get(), "lock", O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!store.lock.valid()) {
    // A copy need not have it.
    if (errno == ENOENT) return store;
    return ErrnoStatus(absl::StrCat("store ", path, ": lock"));
  }
  const std::optional<pid_t> owner = StoreOwner(path);  // Waits for one that is just ending.
  struct flock lock = WholeFile(F_RDLCK);
  if (fcntl(store.lock.get(), F_OFD_SETLK, &lock) != 0) {
    if (errno != EAGAIN && errno != EACCES) return ErrnoStatus(absl::StrCat("store ", path));
    return absl::UnavailableError(absl::StrCat(
        "store ", path, " is in use by ",
        owner.value_or(0) > 0 ? absl::StrCat("process ", *owner) : std::string("another process"),
        "; end its node first"));
  }
  return store;
}

absl::StatusOr<std::string> ResolveStorePath(absl::string_view path) {
  namespace fs = std::filesystem;
  if (path.empty()) return absl::InvalidArgumentError("the store's path is empty");
  std::error_code error;
  const fs::path absolute = fs::absolute(std::string(path), error);
  fs::path resolved;
  if (!error) resolved = fs::weakly_canonical(absolute, error);
  if (error) return StoreErrno(path, error.value());
  if (!resolved.has_filename()) resolved = resolved.parent_path();  // Was "store/".
  return resolved.string();
}

absl::StatusOr<std::string> DefaultStorePath() {
  const auto variable = [](const char* name) {
    const char* value = getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string store = variable("CFS_STORE"); !store.empty()) return store;
  if (geteuid() == 0) return std::string("/var/lib/cfs");
  // The XDG specification has relative paths ignored.
  const std::string state = variable("XDG_STATE_HOME");
  if (!state.empty() && state[0] == '/') return state + "/cfs";
  if (const std::string home = variable("HOME"); !home.empty()) return home + "/.local/state/cfs";
  return absl::InvalidArgumentError("no store: HOME is not set; give --store or set CFS_STORE");
}

std::optional<pid_t> StoreOwner(absl::string_view path) {
  const std::string store(path);
  const UniqueFd fd(open((store + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
  constexpr auto kPause = std::chrono::milliseconds(10);
  for (auto waited = std::chrono::milliseconds(0);; waited += kPause) {
    struct flock lock = WholeFile();
    if (fcntl(fd.get(), F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return std::nullopt;
    pid_t pid = 0;
    const std::string text = ReadSmallFile(AT_FDCWD, store + "/cfs.pid");
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &pid)) return 0;
    if (!IsEnding(pid) || waited >= kEndingMax) return pid;
    std::this_thread::sleep_for(kPause);
  }
}

std::optional<absl::string_view> NetworkFileSystem(uint32_t f_type) {
  // <linux/magic.h> lacks most of them.
  static constexpr struct {
    uint32_t f_type;
    const char* name;
  } kTable[] = {
      {NFS_SUPER_MAGIC, "nfs"},     {SMB_SUPER_MAGIC, "smb"},   {CIFS_SUPER_MAGIC, "cifs"},
      {SMB2_SUPER_MAGIC, "smb"},    {0x0bd00bd0, "lustre"},     {0x47504653, "gpfs"},
      {0x19830326, "beegfs"},       {CEPH_SUPER_MAGIC, "ceph"}, {V9FS_MAGIC, "9p"},
      {FUSE_SUPER_MAGIC, "fuse"},   {AFS_SUPER_MAGIC, "afs"},   {AFS_FS_MAGIC, "afs"},
      {CODA_SUPER_MAGIC, "coda"},   {NCP_SUPER_MAGIC, "ncp"},   {0x20030528, "orangefs"},
      {OCFS2_SUPER_MAGIC, "ocfs2"}, {0x01161970, "gfs2"},       {0x786f4256, "vboxsf"},
      {0x013111a8, "ibrix"},        {0xaad7aaea, "panfs"},      {0xbacbacbc, "vmhgfs"},
      {0x61636673, "acfs"},         {0xbeefdead, "snfs"},       {0x7c7c6673, "prlfs"},
  };
  for (const auto& row : kTable) {
    if (row.f_type == f_type) return row.name;
  }
  return std::nullopt;
}

std::string MachineId() {
  for (const char* file : {"/etc/machine-id", "/var/lib/dbus/machine-id"}) {
    const std::string text = ReadSmallFile(AT_FDCWD, file);
    const absl::string_view id = absl::StripAsciiWhitespace(text);
    if (!id.empty() && id != "uninitialized") return std::string(id);
  }
  utsname name;
  uname(&name);
  return absl::StrCat("host ", name.nodename);
}

std::string HexOf(uint64_t value) { return absl::StrCat(absl::Hex(value, absl::kZeroPad16)); }

std::string EncodeIdentity(const StoreIdentity& identity) {
  const nlohmann::ordered_json json = {{"format", kStoreFormat},
                                       {"cluster_id", identity.cluster_id},
                                       {"node_id", Raw(identity.node_id)},
                                       {"machine", identity.machine},
                                       {"store_id", HexOf(identity.store_id)}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<StoreIdentity> DecodeIdentity(absl::string_view text) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  const auto member = [&](const char* name) {
    const auto it = json.find(name);
    return it == json.end() ? nlohmann::json() : *it;
  };
  const auto unsigned_member = [&](const char* name) {
    const auto value = member(name);
    return value.is_number_unsigned() ? value.get<uint64_t>() : 0;
  };
  const absl::Status damaged = absl::DataLossError(
      "node.json is damaged; restore it from a backup or choose another --store");
  if (!json.is_object()) return damaged;
  // The format first: the rest of a newer one may look like anything.
  const uint64_t format = unsigned_member("format");
  if (format > kStoreFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("its format ", format, " is newer than this cfs knows (", kStoreFormat,
                     "); use the cfs that made it, or a newer one"));
  }
  if (format > 0 && format < kStoreFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("its format ", format, " is of a cfs before the first release, which this one (",
                     kStoreFormat, ") cannot read; use that cfs, or choose another --store"));
  }
  const auto cluster_id = member("cluster_id"), machine = member("machine");
  const uint64_t node_id = unsigned_member("node_id");
  if (format == 0 || !cluster_id.is_string() || !machine.is_string() || node_id == 0 ||
      node_id >= UINT32_MAX) {
    return damaged;
  }
  StoreIdentity identity{cluster_id.get<std::string>(), NodeId{static_cast<uint32_t>(node_id)},
                         machine.get<std::string>(), 0};
  const auto store_id = member("store_id");
  if (!store_id.is_string() ||
      !absl::SimpleHexAtoi(store_id.get<std::string>(), &identity.store_id)) {
    return damaged;
  }
  if (identity.cluster_id.size() != 32 ||
      identity.cluster_id.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return damaged;
  }
  return identity;
}

}  // namespace cfs
