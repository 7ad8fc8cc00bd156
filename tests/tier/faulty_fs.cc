// Shows a directory as a file system of its own, whose calls fail, wait and do less than they
// are asked for as a file of rules says.
//
//   faulty_fs SOURCE MOUNT_POINT RULES
//
// RULES may be replaced by another file (by rename) at any time. Its lines:
//
//   OP[,OP]... GLOB ACTION [count N]
//
// OP is one of the names below, or *. GLOB is matched (fnmatch, * matches / too) with the path
// relative to SOURCE, of a rename with both; SOURCE itself is ".". With `count` a rule holds for N
// calls. Actions:
//
//   errno NAME   the call is not made, and fails
//   after NAME   the call is made, and fails: an answer that was lost
//   delay S      seconds
//   hang         until the rule has gone, or the caller is killed
//   short N      reads and writes are of at most N bytes
//   rate N       bytes a second, of all calls that the rule is for; K and M are understood
//
// Each errno, after, hang and short is a line in RULES.fired.
//
// Inode numbers are those of SOURCE; nothing is cached by the kernel. Everything is done as root:
// permissions are checked by the kernel, but who makes something is its owner only if root does.
#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <fuse_lowlevel.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(5);
constexpr char kOps[] =
    "lookup getattr chmod chown truncate utimens readlink mknod mkdir unlink rmdir symlink rename "
    "link open create read write flush fsync opendir readdir fsyncdir statfs setxattr getxattr "
    "listxattr removexattr lseek fallocate";

// ----------------------------------------------------------------------- rules

int ErrnoNamed(const std::string& name) {
  for (int number = 1; number < 200; ++number) {
    const char* const known = strerrorname_np(number);
    if (known != nullptr && name == known) return number;
  }
  return 0;
}

double Number(const std::string& text) {
  char* end = nullptr;
  const double number = strtod(text.c_str(), &end);
  return *end == 'K' ? number * 1024 : *end == 'M' ? number * 1024 * 1024 : number;
}

struct Rule {
  enum Action { kErrno, kAfter, kDelay, kHang, kShort, kRate };

  std::set<std::string> ops;  // None: all.
  std::string glob, text;
  Action action = kErrno;
  int error = 0;
  double number = 0;
  int64_t left = INT64_MAX;
  Clock::time_point free_at;  // Of a rate.

  bool IsFor(const std::string& op, const std::vector<std::string>& paths) const {
    if (left <= 0 || (!ops.empty() && !ops.contains(op))) return false;
    return std::ranges::any_of(
        paths, [this](const auto& path) { return fnmatch(glob.c_str(), path.c_str(), 0) == 0; });
  }
};

// What a call has to do differently.
struct Verdict {
  int error = 0;  // It is not made.
  int after = 0;  // It fails all the same.
  size_t size_max = SIZE_MAX;
};

class Rules {
 public:
  explicit Rules(std::string path) : path_(std::move(path)) {}

  // Waits as long as it has to.
  Verdict Of(fuse_req_t req, const std::string& op, const std::vector<std::string>& paths,
             size_t bytes) {
    Verdict verdict;
    Clock::time_point until{};
    {
      const std::lock_guard lock(mutex_);
      Load();
      for (Rule& rule : rules_) {
        if (rule.action == Rule::kHang || !rule.IsFor(op, paths)) continue;
        if (verdict.error != 0) break;
        --rule.left;
        const auto wait = [](double seconds) {
          return std::chrono::duration_cast<Clock::duration>(
              std::chrono::duration<double>(seconds));
        };
        switch (rule.action) {
          case Rule::kErrno:
            verdict.error = rule.error;
            break;
          case Rule::kAfter:
            verdict.after = rule.error;
            break;
          case Rule::kShort:
            verdict.size_max = static_cast<size_t>(rule.number);
            break;
          case Rule::kDelay:
            until = std::max(until, Clock::now() + wait(rule.number));
            break;
          case Rule::kRate:
            rule.free_at = std::max(rule.free_at, Clock::now()) +
                           wait(static_cast<double>(bytes) / rule.number);
            until = std::max(until, rule.free_at);
            break;
          case Rule::kHang:
            break;
        }
        if (rule.action != Rule::kDelay && rule.action != Rule::kRate) Fired(rule, op, paths);
      }
    }
    std::this_thread::sleep_until(until);
    if (!WaitWhileHung(req, op, paths)) verdict.error = EINTR;
    return verdict;
  }

 private:
  bool WaitWhileHung(fuse_req_t req, const std::string& op, const std::vector<std::string>& paths) {
    for (bool first = true;; first = false) {
      {
        const std::lock_guard lock(mutex_);
        Load();
        const auto rule = std::ranges::find_if(rules_, [&](const Rule& each) {
          return each.action == Rule::kHang && each.IsFor(op, paths);
        });
        if (rule == rules_.end()) return true;
        if (first) Fired(*rule, op, paths);
      }
      if (fuse_req_interrupted(req)) return false;
      std::this_thread::sleep_for(kLook);
    }
  }

  void Load() {
    struct stat st {};
    if (stat(path_.c_str(), &st) != 0) st = {};
    if (st.st_ino == seen_.st_ino && st.st_mtim.tv_sec == seen_.st_mtim.tv_sec &&
        st.st_mtim.tv_nsec == seen_.st_mtim.tv_nsec) {
      return;
    }
    seen_ = st;
    rules_.clear();
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      if (!line.empty()) rules_.push_back(Parse(line));
    }
  }

  // Ends the program at what it does not know: no test may pass because of that.
  static Rule Parse(const std::string& line) {
    std::istringstream stream(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(stream), {}};
    const auto refuse = [&line] {
      fprintf(stderr, "faulty_fs: no rule: %s\n", line.c_str());
      exit(1);
    };
    if (words.size() < 3) refuse();
    Rule rule;
    rule.text = line;
    rule.glob = words[1];
    std::istringstream ops(words[0]), known(kOps);
    const std::set<std::string> all{std::istream_iterator<std::string>(known), {}};
    for (std::string op; std::getline(ops, op, ',');) {
      if (op == "*") continue;
      if (!all.contains(op)) refuse();
      rule.ops.insert(op);
    }
    size_t at = 3;
    const std::string& action = words[2];
    if (action == "hang") {
      rule.action = Rule::kHang;
    } else if (at == words.size()) {
      refuse();
    } else if (action == "errno" || action == "after") {
      rule.action = action == "errno" ? Rule::kErrno : Rule::kAfter;
      rule.error = ErrnoNamed(words[at++]);
      if (rule.error == 0) refuse();
    } else {
      rule.action = action == "delay"   ? Rule::kDelay
                    : action == "short" ? Rule::kShort
                                        : Rule::kRate;
      rule.number = Number(words[at++]);
      if (rule.number <= 0 || (rule.action == Rule::kRate && action != "rate")) refuse();
    }
    if (at + 2 == words.size() && words[at] == "count") {
      rule.left = static_cast<int64_t>(Number(words[at + 1]));
    } else if (at != words.size()) {
      refuse();
    }
    return rule;
  }

  void Fired(const Rule& rule, const std::string& op, const std::vector<std::string>& paths) const {
    std::ofstream(path_ + ".fired", std::ios::app)
        << op << ' ' << paths.front() << " by " << rule.text << std::endl;
  }

  const std::string path_;
  std::mutex mutex_;
  struct stat seen_ {};
  std::vector<Rule> rules_;
};

// --------------------------------------------------------------------- objects

struct Object {
  int fd = -1;  // O_PATH
  std::pair<dev_t, ino_t> key;
  uint64_t lookups = 0;
};

struct FileSystem {
  explicit FileSystem(const char* rules_path) : rules(rules_path) {}

  Rules rules;
  std::string source;
  Object root;
  std::mutex mutex;
  std::map<std::pair<dev_t, ino_t>, std::unique_ptr<Object>> objects;
};

FileSystem& Of(fuse_req_t req) { return *static_cast<FileSystem*>(fuse_req_userdata(req)); }

Object* ObjectOf(fuse_req_t req, fuse_ino_t node) {
  return node == FUSE_ROOT_ID ? &Of(req).root : reinterpret_cast<Object*>(node);
}

int FdOf(fuse_req_t req, fuse_ino_t node) { return ObjectOf(req, node)->fd; }

std::string ProcOf(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

std::string PathOf(fuse_req_t req, fuse_ino_t node) {
  char path[PATH_MAX];
  const ssize_t size = readlink(ProcOf(FdOf(req, node)).c_str(), path, sizeof(path));
  if (size <= 0) return "?";
  std::string text(path, static_cast<size_t>(size));
  constexpr char kGone[] = " (deleted)";
  if (text.ends_with(kGone)) text.resize(text.size() - strlen(kGone));
  const std::string& source = Of(req).source;
  return text == source                   ? "."
         : text.starts_with(source + "/") ? text.substr(source.size() + 1)
                                          : text;
}

std::string PathOf(fuse_req_t req, fuse_ino_t parent, const char* name) {
  const std::string path = PathOf(req, parent);
  return path == "." ? name : path + "/" + name;
}

// Makes a call (which returns < 0 and sets errno if it fails) unless a rule says otherwise. False:
// it has failed, and that was replied.
bool Do(fuse_req_t req, const char* op, const std::vector<std::string>& paths,
        const std::function<int64_t(size_t size_max)>& call, size_t bytes = 0) {
  const Verdict verdict = Of(req).rules.Of(req, op, paths, bytes);
  int error = verdict.error;
  if (error == 0 && call(verdict.size_max) < 0) error = errno;
  if (error == 0) error = verdict.after;
  if (error != 0) fuse_reply_err(req, error);
  return error == 0;
}

// Of an object that is there by now.
int Enter(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_entry_param* entry) {
  const int fd = openat(FdOf(req, parent), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  *entry = {};
  if (fstatat(fd, "", &entry->attr, AT_EMPTY_PATH) != 0) {
    close(fd);
    return -1;
  }
  FileSystem& fs = Of(req);
  const std::pair key(entry->attr.st_dev, entry->attr.st_ino);
  const std::lock_guard lock(fs.mutex);
  std::unique_ptr<Object>& object = fs.objects[key];
  if (object == nullptr) {
    object = std::make_unique<Object>();
    object->key = key;
    object->fd = fd;
  } else {
    close(fd);  // The other one may be in use.
  }
  ++object->lookups;
  entry->ino = reinterpret_cast<fuse_ino_t>(object.get());
  return 0;
}

void Forget(FileSystem* fs, fuse_ino_t node, uint64_t count) {
  if (node == FUSE_ROOT_ID) return;
  const std::lock_guard lock(fs->mutex);
  auto* const object = reinterpret_cast<Object*>(node);
  object->lookups -= count;
  if (object->lookups > 0) return;
  close(object->fd);
  const auto key = object->key;
  fs->objects.erase(key);
}

// -------------------------------------------------------------------- requests

void Lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  fuse_entry_param entry;
  if (Do(req, "lookup", {PathOf(req, parent, name)},
         [&](size_t) { return Enter(req, parent, name, &entry); })) {
    fuse_reply_entry(req, &entry);
  }
}

void ForgetOne(fuse_req_t req, fuse_ino_t node, uint64_t count) {
  Forget(&Of(req), node, count);
  fuse_reply_none(req);
}

void GetAttr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  struct stat st {};
  if (Do(req, "getattr", {PathOf(req, node)},
         [&](size_t) { return fstatat(FdOf(req, node), "", &st, AT_EMPTY_PATH); })) {
    fuse_reply_attr(req, &st, 0);
  }
}

void SetAttr(fuse_req_t req, fuse_ino_t node, struct stat* attr, int to_set, fuse_file_info* fi) {
  const int fd = FdOf(req, node);
  const std::string proc = ProcOf(fd);
  const std::vector<std::string> paths{PathOf(req, node)};
  const auto given = [to_set](int flag, auto value) {
    return to_set & flag ? value : static_cast<decltype(value)>(-1);
  };
  if ((to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) && !Do(req, "chown", paths, [&](size_t) {
        return fchownat(fd, "", given(FUSE_SET_ATTR_UID, attr->st_uid),
                        given(FUSE_SET_ATTR_GID, attr->st_gid), AT_EMPTY_PATH);
      })) {
    return;
  }
  if ((to_set & FUSE_SET_ATTR_MODE) &&
      !Do(req, "chmod", paths, [&](size_t) { return chmod(proc.c_str(), attr->st_mode); })) {
    return;
  }
  if ((to_set & FUSE_SET_ATTR_SIZE) && !Do(req, "truncate", paths, [&](size_t) {
        return fi != nullptr ? ftruncate(static_cast<int>(fi->fh), attr->st_size)
                             : truncate(proc.c_str(), attr->st_size);
      })) {
    return;
  }
  if (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) {
    timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    if (to_set & FUSE_SET_ATTR_ATIME) times[0] = attr->st_atim;
    if (to_set & FUSE_SET_ATTR_MTIME) times[1] = attr->st_mtim;
    if (to_set & FUSE_SET_ATTR_ATIME_NOW) times[0].tv_nsec = UTIME_NOW;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW) times[1].tv_nsec = UTIME_NOW;
    if (!Do(req, "utimens", paths,
            [&](size_t) { return utimensat(AT_FDCWD, proc.c_str(), times, 0); })) {
      return;
    }
  }
  struct stat st {};
  if (fstatat(fd, "", &st, AT_EMPTY_PATH) != 0) {
    fuse_reply_err(req, errno);
  } else {
    fuse_reply_attr(req, &st, 0);
  }
}

void ReadLink(fuse_req_t req, fuse_ino_t node) {
  char target[PATH_MAX + 1] = {};
  if (Do(req, "readlink", {PathOf(req, node)},
         [&](size_t) { return readlinkat(FdOf(req, node), "", target, PATH_MAX); })) {
    fuse_reply_readlink(req, target);
  }
}

// What makes a name: `make` is given the directory.
void Make(fuse_req_t req, const char* op, fuse_ino_t parent, const char* name,
          const std::function<int(int dir)>& make) {
  fuse_entry_param entry;
  if (Do(req, op, {PathOf(req, parent, name)}, [&](size_t) {
        const int made = make(FdOf(req, parent));
        return made < 0 ? made : Enter(req, parent, name, &entry);
      })) {
    fuse_reply_entry(req, &entry);
  }
}

mode_t Masked(fuse_req_t req, mode_t mode) { return mode & ~fuse_req_ctx(req)->umask; }

void MkNod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t rdev) {
  Make(req, "mknod", parent, name,
       [&](int dir) { return mknodat(dir, name, Masked(req, mode), rdev); });
}

void MkDir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
  Make(req, "mkdir", parent, name, [&](int dir) { return mkdirat(dir, name, Masked(req, mode)); });
}

void SymLink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
  Make(req, "symlink", parent, name, [&](int dir) { return symlinkat(target, dir, name); });
}

void Link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  Make(req, "link", parent, name, [&](int dir) {
    return linkat(AT_FDCWD, ProcOf(FdOf(req, node)).c_str(), dir, name, AT_SYMLINK_FOLLOW);
  });
}

void Remove(fuse_req_t req, const char* op, fuse_ino_t parent, const char* name, int flags) {
  if (Do(req, op, {PathOf(req, parent, name)},
         [&](size_t) { return unlinkat(FdOf(req, parent), name, flags); })) {
    fuse_reply_err(req, 0);
  }
}

void Unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
  Remove(req, "unlink", parent, name, 0);
}

void RmDir(fuse_req_t req, fuse_ino_t parent, const char* name) {
  Remove(req, "rmdir", parent, name, AT_REMOVEDIR);
}

void Rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t to, const char* to_name,
            unsigned int flags) {
  if (Do(req, "rename", {PathOf(req, to, to_name), PathOf(req, parent, name)}, [&](size_t) {
        return renameat2(FdOf(req, parent), name, FdOf(req, to), to_name, flags);
      })) {
    fuse_reply_err(req, 0);
  }
}

void Open(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
  int fd = -1;
  if (Do(req, "open", {PathOf(req, node)}, [&](size_t) {
        return fd = open(ProcOf(FdOf(req, node)).c_str(), (fi->flags & ~O_NOFOLLOW) | O_CLOEXEC);
      })) {
    fi->fh = static_cast<uint64_t>(fd);
    fi->direct_io = 1;  // Or the kernel takes short reads for the end of the file.
    fuse_reply_open(req, fi);
  } else if (fd >= 0) {
    close(fd);
  }
}

void Create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* fi) {
  int fd = -1;
  fuse_entry_param entry;
  if (Do(req, "create", {PathOf(req, parent, name)}, [&](size_t) {
        fd = openat(FdOf(req, parent), name, fi->flags | O_CREAT | O_CLOEXEC, Masked(req, mode));
        return fd < 0 ? fd : Enter(req, parent, name, &entry);
      })) {
    fi->fh = static_cast<uint64_t>(fd);
    fi->direct_io = 1;
    fuse_reply_create(req, &entry, fi);
  } else if (fd >= 0) {
    close(fd);
  }
}

void Read(fuse_req_t req, fuse_ino_t node, size_t size, off_t at, fuse_file_info* fi) {
  const std::unique_ptr<char[]> buffer(new char[size]);
  ssize_t got = 0;
  if (Do(
          req, "read", {PathOf(req, node)},
          [&](size_t size_max) {
            return got =
                       pread(static_cast<int>(fi->fh), buffer.get(), std::min(size, size_max), at);
          },
          size)) {
    fuse_reply_buf(req, buffer.get(), static_cast<size_t>(got));
  }
}

void Write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t at,
           fuse_file_info* fi) {
  ssize_t put = 0;
  if (Do(
          req, "write", {PathOf(req, node)},
          [&](size_t size_max) {
            return put = pwrite(static_cast<int>(fi->fh), data, std::min(size, size_max), at);
          },
          size)) {
    fuse_reply_write(req, static_cast<size_t>(put));
  }
}

void Flush(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  if (Do(req, "flush", {PathOf(req, node)}, [](size_t) { return 0; })) fuse_reply_err(req, 0);
}

void Release(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  close(static_cast<int>(fi->fh));
  fuse_reply_err(req, 0);
}

void FSync(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* fi) {
  if (Do(req, "fsync", {PathOf(req, node)}, [&](size_t) {
        const int fd = static_cast<int>(fi->fh);
        return data_only ? fdatasync(fd) : fsync(fd);
      })) {
    fuse_reply_err(req, 0);
  }
}

DIR* StreamOf(fuse_file_info* fi) { return reinterpret_cast<DIR*>(fi->fh); }

void OpenDir(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
  DIR* stream = nullptr;
  if (Do(req, "opendir", {PathOf(req, node)}, [&](size_t) {
        const int fd = openat(FdOf(req, node), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) stream = fdopendir(fd);
        return stream == nullptr ? -1 : 0;
      })) {
    fi->fh = reinterpret_cast<uint64_t>(stream);
    fuse_reply_open(req, fi);
  } else if (stream != nullptr) {
    closedir(stream);
  }
}

void ReadDir(fuse_req_t req, fuse_ino_t node, size_t size, off_t at, fuse_file_info* fi) {
  const std::unique_ptr<char[]> buffer(new char[size]);
  size_t used = 0;
  if (!Do(req, "readdir", {PathOf(req, node)}, [&](size_t) {
        DIR* const stream = StreamOf(fi);
        seekdir(stream, at);
        for (;;) {
          errno = 0;
          const dirent* const entry = readdir(stream);
          if (entry == nullptr) return errno == 0 ? 0 : -1;
          struct stat st {};
          st.st_ino = entry->d_ino;
          st.st_mode = static_cast<mode_t>(DTTOIF(entry->d_type));
          const size_t needed = fuse_add_direntry(req, buffer.get() + used, size - used,
                                                  entry->d_name, &st, telldir(stream));
          if (needed > size - used) return 0;
          used += needed;
        }
      })) {
    return;
  }
  fuse_reply_buf(req, buffer.get(), used);
}

void ReleaseDir(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  closedir(StreamOf(fi));
  fuse_reply_err(req, 0);
}

void FSyncDir(fuse_req_t req, fuse_ino_t node, int, fuse_file_info* fi) {
  if (Do(req, "fsyncdir", {PathOf(req, node)},
         [&](size_t) { return fsync(dirfd(StreamOf(fi))); })) {
    fuse_reply_err(req, 0);
  }
}

void StatFs(fuse_req_t req, fuse_ino_t node) {
  struct statvfs st {};
  if (Do(req, "statfs", {PathOf(req, node)},
         [&](size_t) { return fstatvfs(FdOf(req, node), &st); })) {
    fuse_reply_statfs(req, &st);
  }
}

void SetXattr(fuse_req_t req, fuse_ino_t node, const char* name, const char* value, size_t size,
              int flags) {
  if (Do(req, "setxattr", {PathOf(req, node)}, [&](size_t) {
        return setxattr(ProcOf(FdOf(req, node)).c_str(), name, value, size, flags);
      })) {
    fuse_reply_err(req, 0);
  }
}

void RemoveXattr(fuse_req_t req, fuse_ino_t node, const char* name) {
  if (Do(req, "removexattr", {PathOf(req, node)},
         [&](size_t) { return removexattr(ProcOf(FdOf(req, node)).c_str(), name); })) {
    fuse_reply_err(req, 0);
  }
}

// `get` as getxattr(2).
void ReplyXattr(fuse_req_t req, const char* op, fuse_ino_t node, size_t size,
                const std::function<ssize_t(const char* path, char* buffer)>& get) {
  const std::unique_ptr<char[]> buffer(new char[size]);
  ssize_t got = 0;
  if (!Do(req, op, {PathOf(req, node)},
          [&](size_t) { return got = get(ProcOf(FdOf(req, node)).c_str(), buffer.get()); })) {
    return;
  }
  if (size == 0) {
    fuse_reply_xattr(req, static_cast<size_t>(got));
  } else {
    fuse_reply_buf(req, buffer.get(), static_cast<size_t>(got));
  }
}

void GetXattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size) {
  ReplyXattr(req, "getxattr", node, size,
             [&](const char* path, char* buffer) { return getxattr(path, name, buffer, size); });
}

void ListXattr(fuse_req_t req, fuse_ino_t node, size_t size) {
  ReplyXattr(req, "listxattr", node, size,
             [&](const char* path, char* buffer) { return listxattr(path, buffer, size); });
}

void Seek(fuse_req_t req, fuse_ino_t node, off_t at, int whence, fuse_file_info* fi) {
  off_t found = 0;
  if (Do(req, "lseek", {PathOf(req, node)},
         [&](size_t) { return found = lseek(static_cast<int>(fi->fh), at, whence); })) {
    fuse_reply_lseek(req, found);
  }
}

void Allocate(fuse_req_t req, fuse_ino_t node, int mode, off_t at, off_t size, fuse_file_info* fi) {
  if (Do(req, "fallocate", {PathOf(req, node)},
         [&](size_t) { return fallocate(static_cast<int>(fi->fh), mode, at, size); })) {
    fuse_reply_err(req, 0);
  }
}

void Init(void*, fuse_conn_info* connection) {
  fuse_set_feature_flag(connection, FUSE_CAP_POSIX_ACL);
  fuse_unset_feature_flag(connection, FUSE_CAP_SPLICE_READ);
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops ops{};
  ops.init = Init;
  ops.lookup = Lookup;
  ops.forget = ForgetOne;
  ops.getattr = GetAttr;
  ops.setattr = SetAttr;
  ops.readlink = ReadLink;
  ops.mknod = MkNod;
  ops.mkdir = MkDir;
  ops.unlink = Unlink;
  ops.rmdir = RmDir;
  ops.symlink = SymLink;
  ops.rename = Rename;
  ops.link = Link;
  ops.open = Open;
  ops.create = Create;
  ops.read = Read;
  ops.write = Write;
  ops.flush = Flush;
  ops.release = Release;
  ops.fsync = FSync;
  ops.opendir = OpenDir;
  ops.readdir = ReadDir;
  ops.releasedir = ReleaseDir;
  ops.fsyncdir = FSyncDir;
  ops.statfs = StatFs;
  ops.setxattr = SetXattr;
  ops.getxattr = GetXattr;
  ops.listxattr = ListXattr;
  ops.removexattr = RemoveXattr;
  ops.lseek = Seek;
  ops.fallocate = Allocate;
  return ops;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: faulty_fs SOURCE MOUNT_POINT RULES\n");
    return 2;
  }
  umask(0);
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  FileSystem fs(argv[3]);
  const std::unique_ptr<char, decltype(&free)> source(realpath(argv[1], nullptr), free);
  if (source != nullptr) fs.source = source.get();
  fs.root.fd = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fs.root.fd < 0) {
    perror(argv[1]);
    return 1;
  }
  char options[] = "allow_other,default_permissions,dev,suid,fsname=faulty,subtype=faulty";
  char flag[] = "-o";
  char* words[] = {argv[0], flag, options, nullptr};
  fuse_args args = FUSE_ARGS_INIT(3, words);
  const fuse_lowlevel_ops ops = Operations();
  fuse_session* const session = fuse_session_new(&args, &ops, sizeof(ops), &fs);
  if (session == nullptr || fuse_session_mount(session, argv[2]) != 0) return 1;
  fuse_loop_config* const config = fuse_loop_cfg_create();
  // Those that hang must not hold up the others.
  fuse_loop_cfg_set_max_threads(config, 200);
  fuse_loop_cfg_set_idle_threads(config, 20);
  const int ended = fuse_session_loop_mt(session, config);
  // Some may hang still.
  _exit(ended == 0 ? 0 : 1);
}
