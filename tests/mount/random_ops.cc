// Runs one seeded random sequence of file-system calls in two directories in lockstep: MODEL, on a
// file system that is trusted (ext4), and SUBJECT, on the one under test. Every return value, errno
// and result is compared, and now and then the whole trees are.
//
// Each side is entered by chroot, so that symbolic links and ".." can't lead out of it and absolute
// paths mean the same on both. Calls by other users are made under their ids without capabilities.
// SUBJECT may be several directories that are one, on different nodes: each call is made through
// one of them, drawn at random, and what it has changed is looked at through another one. What to
// do is drawn before it is done and doesn't depend on any answer: a seed replays.
//
// Not compared, because file systems may differ in it: sizes of directories, order of readdir,
// block counts, inode numbers, atime other than one set explicitly, places of holes (they must hold
// zeros), writes to a file with the setgid bit that its group can't execute.
//
// Exit code: 0 equal, 1 mismatch, 2 not able to run.

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

// Descriptors that stay open over several steps; the first few mostly of directories.
constexpr int kSlots = 12;
constexpr int kDirectorySlots = 3;
constexpr off_t kPage = 4096;
constexpr size_t kTail = 30;  // Steps shown before a mismatch.
constexpr off_t kFar = off_t{5} << 30;
constexpr off_t kReadWhole = 8 << 20;  // Files up to this size are compared without SEEK_DATA.
// A time before this one was set by utimensat, one after it comes from the clock.
constexpr time_t kClockStart = 1'577'836'800;
// Time stamps may come from a clock that lags by a tick (10 ms at most).
constexpr auto kTick = std::chrono::milliseconds(10);
// From this many steps on, a kind of call that never succeeded means that the test met no case.
constexpr uint64_t kCoverageSteps = 20'000;

#define PRINTF_LIKE __attribute__((format(printf, 1, 2)))

PRINTF_LIKE std::string Format(const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return text;
}

[[noreturn]] PRINTF_LIKE void Die(const char* format, ...) {
  va_list args;
  va_start(args, format);
  fputs("random_ops: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  _exit(2);
}

std::string Quoted(const std::string& text) {
  std::string out = "'";
  for (const unsigned char c : text.size() > 80 ? text.substr(0, 20) : text) {
    out += c < ' ' || c > '~' ? Format("\\x%02x", c) : std::string(1, static_cast<char>(c));
  }
  if (text.size() > 80) out += Format("...%zu bytes", text.size());
  return out + "'";
}

std::string Hex(const std::string& bytes) {
  std::string out;
  for (const unsigned char c : bytes) out += Format("%02x", c);
  return out;
}

// FNV-1a.
uint64_t Hash(const char* data, size_t size, uint64_t hash = 0xcbf29ce484222325) {
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<unsigned char>(data[i])) * 0x100000001b3;
  }
  return hash;
}

// splitmix64: the same numbers on every compiler, which the std:: distributions don't promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t bound) { return Next() % bound; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return choices.begin()[Below(choices.size())];
  }

 private:
  uint64_t state_;
};

// Bytes that tell where they come from: equal arguments give equal bytes.
std::string Pattern(uint64_t fill, size_t size) {
  std::string bytes(size, '\0');
  Random random(fill);
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    const uint64_t word = random.Next();
    memcpy(&bytes[i], &word, std::min(sizeof word, size - i));
  }
  return bytes;
}

struct Options {
  uint64_t seed = 1;
  uint64_t steps = 0;
  uint64_t seconds = 0;
  uint64_t threads = 1;
  uint64_t walk_every = 1000;
  bool lenient = false;
  bool drop_caches = false;
  bool keep = false;
  bool compare = false;
  bool verbose = false;
  bool help = false;
  std::string self_test;
  std::string model;
  std::vector<std::string> subjects;
};

struct Answer {
  int64_t value = 0;
  int error = 0;
  std::string detail;

  bool operator==(const Answer&) const = default;

  std::string Text() const {
    std::string out =
        value < 0 && error != 0 ? Format("-1 %s", strerrorname_np(error)) : Format("%ld", value);
    return detail.empty() ? out : out + " " + detail;
  }
};

// What a call has returned, taken before anything else changes errno.
Answer Result(int64_t value, std::string detail = {}) {
  return {value, value < 0 ? errno : 0, std::move(detail)};
}

// Local file systems take the setgid bit off a file that its group can't execute when someone from
// outside of the group writes. FUSE doesn't ask for that, and a server can't know the groups of a
// process. So where such a file has come into being, this says that it has to lose the bit at once.
bool HasOddSetgid(const struct stat& st) {
  return S_ISREG(st.st_mode) && (st.st_mode & (S_ISGID | S_IXGRP)) == S_ISGID;
}

// One of the two sides.
struct World {
  const char* name;
  std::vector<int> roots;  // More than one: nodes that have to show the same.
  std::vector<int> fds;    // kSlots for each root that the subject has.

  // The model's only root stands for each of the subject's.
  int Root(size_t number) const { return roots[number % roots.size()]; }
  // Makes one root of this side the root directory of the calling thread.
  void Enter(size_t number) const {
    if (fchdir(Root(number)) != 0 || chroot(".") != 0) Die("chroot to %s: %m", name);
  }
  // Whether some descriptor may write the file.
  bool HasWriter(const struct stat& file) const {
    for (const int fd : fds) {
      struct stat st;
      if (fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == file.st_ino &&
          (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) {
        return true;
      }
    }
    return false;
  }
  Answer Store(int slot, int fd) {
    if (fd < 0) return Result(fd);
    if (fds[slot] >= 0) close(fds[slot]);
    fds[slot] = fd;
    struct stat st;
    if (fstat(fd, &st) == 0 && HasOddSetgid(st)) fchmod(fd, st.st_mode & ~S_ISGID);
    return {};
  }
};

// Makes the calling thread (not the process, as glibc's wrappers would) another user's.
class Identity {
 public:
  explicit Identity(uid_t user) : user_(user) {
    if (user_ != 0) Set({user_, 3000}, user_, user_);
  }
  ~Identity() {
    if (user_ != 0) Set({}, 0, 0);
  }
  Identity(const Identity&) = delete;

 private:
  static void Set(const std::vector<gid_t>& groups, gid_t gid, uid_t uid) {
    // The user id goes last on the way down and first on the way up.
    const bool down = uid != 0;
    if ((!down && syscall(SYS_setresuid, -1, uid, -1) != 0) ||
        syscall(SYS_setgroups, groups.size(), groups.data()) != 0 ||
        syscall(SYS_setresgid, -1, gid, -1) != 0 ||
        (down && syscall(SYS_setresuid, -1, uid, -1) != 0)) {
      Die("becoming user %u: %m", uid);
    }
  }
  const uid_t user_;
};

// A path relative to the root directory, or to the descriptor in a slot.
struct Path {
  int slot = -1;
  std::string text;

  int Base(const World& world) const { return slot < 0 ? AT_FDCWD : world.fds[slot]; }
  const char* c_str() const { return text.c_str(); }
  std::string Name() const {
    return (slot < 0 ? std::string() : Format("[slot %d]/", slot)) + Quoted(text);
  }
  Path Parent() const {
    const size_t slash = text.find_last_of('/');
    if (slash == std::string::npos) return {slot, "."};
    return {slot, slash == 0 ? "/" : text.substr(0, slash)};
  }
};

// What a call that exists for paths and for descriptors is applied to.
struct Target {
  int slot;  // -1: the path.
  Path path;
  bool follow;

  std::vector<int> Slots() const { return slot < 0 ? std::vector<int>() : std::vector<int>{slot}; }
  std::string Name() const {
    if (slot >= 0) return Format("slot %d", slot);
    return path.Name() + (follow ? "" : " nofollow");
  }
};

struct Step {
  std::string text;
  std::function<Answer(World&)> run;
  std::vector<Path> paths;  // Looked at afterwards, with their parents,
  std::vector<int> slots;   // and these descriptors.
  int kind = 0;
  uid_t user = 0;
  mode_t mask = 0;
  size_t root = 0;  // Which of the subject's.
};

std::string TimeText(const struct timespec& time) {
  if (time.tv_sec >= kClockStart) return "clock";
  return Format("%ld.%09ld", time.tv_sec, time.tv_nsec);
}

std::string Describe(const struct stat& st) {
  std::string out =
      Format("mode=%06o nlink=%lu uid=%u gid=%u", st.st_mode, st.st_nlink, st.st_uid, st.st_gid);
  if (!S_ISDIR(st.st_mode)) out += Format(" size=%ld", st.st_size);
  // A pipe's times are changed by what goes through it, which no file system sees.
  if (!S_ISFIFO(st.st_mode)) out += " mtime=" + TimeText(st.st_mtim);
  return out;
}

Answer Stat(int fd) {
  struct stat st;
  const int result = fstat(fd, &st);
  return result == 0 ? Answer{0, 0, Describe(st)} : Result(result);
}

Answer Stat(int base, const char* path, int flags) {
  struct stat st;
  const int result = fstatat(base, path, &st, flags);
  return result == 0 ? Answer{0, 0, Describe(st)} : Result(result);
}

// POSIX leaves open what truncating a file to the size that it has does to its times.
bool HasSize(const struct stat& st, off_t size) {
  return S_ISREG(st.st_mode) && st.st_size == size;
}

// Positions in a directory are its file system's own, and so is what fails at them.
bool IsDirectory(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

// Reads all entries from where the directory stands. Each name goes with the cookie after it.
struct Entry {
  std::string name;
  unsigned char type;
  off_t cookie;
  bool operator<(const Entry& other) const { return name < other.name; }
};

int ReadEntries(int fd, size_t buffer_bytes, std::vector<Entry>* entries) {
  std::vector<char> buffer(buffer_bytes);
  while (true) {
    const ssize_t count = getdents64(fd, buffer.data(), buffer.size());
    if (count <= 0) return static_cast<int>(count);
    for (ssize_t at = 0; at < count;) {
      const auto* entry = reinterpret_cast<const struct dirent64*>(buffer.data() + at);
      entries->push_back({entry->d_name, entry->d_type, entry->d_off});
      at += entry->d_reclen;
    }
  }
}

std::vector<std::string> ListAttributes(const char* path) {
  std::array<char, 65536> names;
  const ssize_t size = llistxattr(path, names.data(), names.size());
  std::vector<std::string> out;
  for (ssize_t at = 0; at < size; at += static_cast<ssize_t>(out.back().size()) + 1) {
    out.emplace_back(&names[at]);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Equal contents give equal texts, wherever the holes are.
std::string DescribeData(const char* path, off_t size) {
  const int fd = open(path, O_RDONLY | O_NOATIME | O_CLOEXEC);
  if (fd < 0) return Format("unreadable (%s)", strerrorname_np(errno));
  static const std::string zeros(kPage, '\0');
  thread_local std::vector<char> buffer(1 << 20);
  uint64_t hash = 0;
  std::string problem;
  off_t at = 0;
  while (at < size) {
    if (size > kReadWhole) {
      at = lseek(fd, at, SEEK_DATA);
      if (at < 0) break;
      at -= at % kPage;
    }
    const ssize_t got = pread(fd, buffer.data(), buffer.size(), at);
    if (got <= 0) {
      problem = Format(" read at %ld: %zd %s", at, got,
                       got < 0 ? strerrorname_np(errno) : "before the end");
      break;
    }
    for (ssize_t page = 0; page < got; page += kPage) {
      const size_t count = std::min<size_t>(kPage, got - page);
      if (memcmp(&buffer[page], zeros.data(), count) == 0) continue;
      const off_t index = (at + page) / kPage;
      hash ^= Hash(&buffer[page], count, Hash(reinterpret_cast<const char*>(&index), sizeof index));
    }
    at += got;
  }
  close(fd);
  return Format("data=%016lx", hash) + problem;
}

// Collects a text for everything below the current directory. Goes by chdir, for a path may be
// longer than the kernel takes.
class Walk {
 public:
  Walk(const World& world, size_t root) {
    world.Enter(root);
    Object(".", "/");
  }
  const std::map<std::string, std::string>& objects() const { return objects_; }

 private:
  void Object(const char* name, const std::string& path) {
    struct stat st;
    if (lstat(name, &st) != 0) {
      objects_[path] = Format("lstat: %s", strerrorname_np(errno));
      return;
    }
    std::string text = Describe(st);
    for (const std::string& attribute : ListAttributes(name)) {
      std::array<char, 65536> value;
      const ssize_t size = lgetxattr(name, attribute.c_str(), value.data(), value.size());
      text += " " + attribute + "=";
      text += size < 0 ? strerrorname_np(errno) : Hex({value.data(), static_cast<size_t>(size)});
    }
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
      text += " same_as=" + Quoted(first_name_.emplace(st.st_ino, path).first->second);
    }
    if (S_ISREG(st.st_mode)) {
      text += " " + DescribeData(name, st.st_size);
    } else if (S_ISLNK(st.st_mode)) {
      std::array<char, PATH_MAX> target;
      const ssize_t size = readlink(name, target.data(), target.size());
      text += " target=" + Quoted({target.data(), static_cast<size_t>(std::max<ssize_t>(size, 0))});
    }
    objects_[path] = text;
    if (S_ISDIR(st.st_mode)) Directory(name, path == "/" ? "" : path);
  }

  void Directory(const char* name, const std::string& path) {
    const int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    const int fd = open(name, O_RDONLY | O_DIRECTORY | O_NOATIME | O_CLOEXEC);
    std::vector<Entry> entries;
    if (here < 0 || fd < 0 || ReadEntries(fd, 1 << 16, &entries) != 0 || fchdir(fd) != 0) {
      objects_[path] += Format(" unreadable (%s)", strerrorname_np(errno));
    } else {
      std::sort(entries.begin(), entries.end());
      for (size_t i = 0; i < entries.size(); ++i) {
        const std::string& entry = entries[i].name;
        if (i > 0 && entry == entries[i - 1].name) objects_[path + "/" + entry] += " listed twice";
        if (entry != "." && entry != "..") Object(entry.c_str(), path + "/" + entry);
      }
      if (fchdir(here) != 0) Die("walking: %m");
    }
    if (fd >= 0) close(fd);
    if (here >= 0) close(here);
  }

  std::map<std::string, std::string> objects_;
  std::map<ino_t, std::string> first_name_;
};

// Removes a tree, in an order that is the same on both sides.
int RemoveTree(int base, const char* path) {
  if (unlinkat(base, path, 0) == 0) return 0;
  if (errno != EISDIR) return -1;
  const int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  const int fd = openat(base, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (here < 0 || fd < 0) Die("removing %s: %m", path);
  std::vector<Entry> entries;
  ReadEntries(fd, 1 << 15, &entries);
  std::sort(entries.begin(), entries.end());
  if (fchdir(fd) != 0) Die("removing %s: %m", path);
  for (const Entry& entry : entries) {
    if (entry.name != "." && entry.name != "..") RemoveTree(AT_FDCWD, entry.name.c_str());
  }
  if (fchdir(here) != 0) Die("removing %s: %m", path);
  close(fd);
  close(here);
  return unlinkat(base, path, AT_REMOVEDIR);
}

// SEEK_DATA and SEEK_HOLE may answer differently, but what they call a hole must read as zeros.
Answer CheckSeek(int fd, off_t offset, int whence) {
  struct stat st;
  const off_t found = lseek(fd, offset, whence);
  const int error = found < 0 ? errno : 0;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return {found, error, ""};
  if (offset >= st.st_size) return {found, error, "at or behind the end"};
  if (found < 0 && (whence == SEEK_HOLE || error != ENXIO)) return {found, error, ""};
  if (found >= 0 && (found < offset || found > st.st_size)) {
    return {found, 0, "outside of the file"};
  }
  off_t zeros_begin = offset, zeros_end = found < 0 ? st.st_size : found;
  if (whence == SEEK_HOLE) {
    zeros_begin = found;
    zeros_end = std::min<off_t>(found + 1, st.st_size);
  }
  std::vector<char> buffer(1 << 16);
  zeros_end = std::min<off_t>(zeros_end, zeros_begin + (4 << 20));
  while (zeros_begin < zeros_end) {
    const ssize_t got = pread(fd, buffer.data(),
                              std::min<off_t>(buffer.size(), zeros_end - zeros_begin), zeros_begin);
    if (got <= 0) return Result(got, "reading the hole");
    for (ssize_t i = 0; i < got; ++i) {
      if (buffer[i] != 0) return {zeros_begin + i, 0, "is no hole"};
    }
    zeros_begin += got;
  }
  return {0, 0, "plausible"};
}

// All names, and that the cookie after one of them leads to the rest.
Answer ReadDirectory(int fd, size_t buffer_bytes, uint64_t pick) {
  if (lseek(fd, 0, SEEK_SET) != 0) return Result(-1);
  std::vector<Entry> entries;
  const int result = ReadEntries(fd, buffer_bytes, &entries);
  // How many fit before one that doesn't is a matter of their order.
  if (result < 0) return Result(result);
  std::string problem;
  if (!entries.empty()) {
    const size_t index = pick % entries.size();
    std::vector<Entry> rest;
    const off_t cookie = entries[index].cookie;
    if (lseek(fd, cookie, SEEK_SET) != cookie || ReadEntries(fd, buffer_bytes, &rest) != 0 ||
        !std::equal(entries.begin() + index + 1, entries.end(), rest.begin(), rest.end(),
                    [](const Entry& a, const Entry& b) { return a.name == b.name; })) {
      problem = " cookie after " + Quoted(entries[index].name) + " leads to";
      for (const Entry& entry : rest) problem += " " + Quoted(entry.name);
    }
  }
  std::sort(entries.begin(), entries.end());
  std::string names;
  for (const Entry& entry : entries) names += Quoted(entry.name) + Format(":%d ", entry.type);
  return {static_cast<int64_t>(entries.size()), 0, names + problem};
}

// Stores into the pages of the file that [offset, offset + size) touches, but not behind its end.
Answer StoreMapped(int fd, off_t offset, size_t size, uint64_t fill) {
  const off_t start = offset - offset % kPage;
  const size_t length = offset - start + size;
  void* map = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);
  if (map == MAP_FAILED) return Result(-1);
  struct stat st;
  Answer answer = Result(fstat(fd, &st));
  if (offset < st.st_size) {
    const std::string bytes = Pattern(fill, std::min<off_t>(size, st.st_size - offset));
    memcpy(static_cast<char*>(map) + (offset - start), bytes.data(), bytes.size());
    // Without this the time of the write is open, for a mount that doesn't see it.
    answer = Result(msync(map, length, MS_SYNC), Format("stored %zu", bytes.size()));
  }
  munmap(map, length);
  return answer;
}

Answer CopyRange(int in, off_t in_offset, int out, off_t out_offset, size_t size) {
  size_t done = 0;
  while (done < size) {
    // As cp does: Linux looks at the size it knows, which another node may have
    // changed.
    struct stat st;
    fstat(in, &st);
    const ssize_t count = copy_file_range(in, &in_offset, out, &out_offset, size - done, 0);
    if (count < 0) return Result(-1, Format("after %zu", done));
    if (count == 0) break;
    done += count;
  }
  return Result(static_cast<int64_t>(done));
}

// By its handle the same inode must be found.
Answer OpenHandle(int root, const World& world, const Path& path) {
  struct {
    struct file_handle handle;
    char bytes[MAX_HANDLE_SZ];
  } buffer;
  buffer.handle.handle_bytes = MAX_HANDLE_SZ;
  int mount_id;
  if (name_to_handle_at(path.Base(world), path.c_str(), &buffer.handle, &mount_id, 0) != 0) {
    return Result(-1, "name_to_handle_at");
  }
  const int fd = open_by_handle_at(root, &buffer.handle, O_PATH | O_CLOEXEC);
  if (fd < 0) return Result(fd, "open_by_handle_at");
  struct stat by_name, by_handle;
  Answer answer = Result(fstatat(path.Base(world), path.c_str(), &by_name, AT_SYMLINK_NOFOLLOW) |
                         fstat(fd, &by_handle));
  if (by_name.st_ino != by_handle.st_ino) answer.detail = "another inode";
  close(fd);
  return answer;
}

// A POSIX ACL in its xattr form.
std::string MakeAcl(Random& random) {
  struct Item {
    uint16_t tag, permissions;
    uint32_t id;
  };
  constexpr uint32_t kNoId = ~uint32_t{0};
  const auto permissions = [&random] { return static_cast<uint16_t>(random.Below(8)); };
  std::vector<Item> items = {{0x01, permissions(), kNoId}};
  if (random.OneIn(2)) items.push_back({0x02, permissions(), 1000});
  if (random.OneIn(2)) items.push_back({0x02, permissions(), 2000});
  const bool named_user = items.size() > 1;
  items.push_back({0x04, permissions(), kNoId});
  const bool named_group = random.OneIn(3);
  if (named_group) items.push_back({0x08, permissions(), 3000});
  // Seldom missing where it is needed: EINVAL.
  if ((named_user || named_group) != random.OneIn(20)) {
    items.push_back({0x10, permissions(), kNoId});
  }
  items.push_back({0x20, permissions(), kNoId});
  const uint32_t version = random.OneIn(30) ? 1 : 2;
  std::string out(reinterpret_cast<const char*>(&version), sizeof version);
  out.append(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(Item));
  return out;
}

std::string MakeCapability(Random& random) {
  struct vfs_cap_data data = {};
  data.magic_etc = VFS_CAP_REVISION_2;
  data.data[0].permitted = 1u << random.Below(8);
  return {reinterpret_cast<const char*>(&data), XATTR_CAPS_SZ_2};
}

std::string FlagNames(uint64_t flags,
                      std::initializer_list<std::pair<uint64_t, const char*>> names) {
  std::string out;
  for (const auto& [flag, name] : names) {
    if ((flags & flag) != flag || flag == 0) continue;
    out += (out.empty() ? "" : "|") + std::string(name);
    flags &= ~flag;
  }
  if (flags != 0) out += Format("|0x%lx", flags);
  return out.empty() ? "0" : out;
}

std::string OpenFlags(int flags) {
  const char* access[] = {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"};
  std::string out = access[flags & O_ACCMODE];
  const std::string rest =
      FlagNames(flags & ~(O_ACCMODE | O_NONBLOCK | O_CLOEXEC), {{O_TMPFILE, "O_TMPFILE"},
                                                                {O_CREAT, "O_CREAT"},
                                                                {O_EXCL, "O_EXCL"},
                                                                {O_TRUNC, "O_TRUNC"},
                                                                {O_APPEND, "O_APPEND"},
                                                                {O_SYNC, "O_SYNC"},
                                                                {O_DSYNC, "O_DSYNC"},
                                                                {O_DIRECTORY, "O_DIRECTORY"},
                                                                {O_NOFOLLOW, "O_NOFOLLOW"},
                                                                {O_NOATIME, "O_NOATIME"},
                                                                {O_PATH, "O_PATH"}});
  return rest == "0" ? out : out + "|" + rest;
}

std::string FallocateFlags(int mode) {
  return FlagNames(mode, {{FALLOC_FL_KEEP_SIZE, "KEEP_SIZE"},
                          {FALLOC_FL_PUNCH_HOLE, "PUNCH_HOLE"},
                          {FALLOC_FL_ZERO_RANGE, "ZERO_RANGE"},
                          {FALLOC_FL_COLLAPSE_RANGE, "COLLAPSE_RANGE"},
                          {FALLOC_FL_INSERT_RANGE, "INSERT_RANGE"}});
}

// Draws steps. Knows nothing of either side.
class Generator {
 public:
  struct Kind {
    const char* name;
    int weight;
    Step (Generator::*make)();
    bool root_only = false;
  };
  static const std::vector<Kind> kKinds;

  Generator(uint64_t seed, std::vector<int> fallocate_modes, size_t roots)
      : random_(seed), fallocate_modes_(std::move(fallocate_modes)), roots_(roots) {
    for (const Kind& kind : kKinds) weights_ += kind.weight;
  }

  Step Next() {
    int at = static_cast<int>(random_.Below(weights_));
    int kind = 0;
    while (at >= kKinds[kind].weight) at -= kKinds[kind++].weight;
    const uid_t user = random_.Pick<uid_t>({0, 0, 0, 1000, 2000});
    const mode_t mask = random_.Pick<mode_t>({0, 0, 022, 027, 077});
    root_ = DrawRoot();
    Step step = (this->*kKinds[kind].make)();
    step.kind = kind;
    step.user = kKinds[kind].root_only ? 0 : user;
    step.mask = mask;
    step.root = root_;
    step.text = Format("%s user=%u umask=%03o ", kKinds[kind].name, step.user, mask) + step.text;
    if (roots_ > 1) step.text = Format("root %zu ", root_) + step.text;
    return step;
  }

  // With one root nothing is drawn, so that seeds replay as they always did.
  size_t DrawRoot() { return roots_ > 1 ? random_.Below(roots_) : 0; }

  Random& random() { return random_; }

 private:
  // Each root has slots of its own: no call takes descriptors of two mounts.
  int FirstSlot() const { return static_cast<int>(root_) * kSlots; }
  int DirectorySlot() { return FirstSlot() + static_cast<int>(random_.Below(kDirectorySlots)); }
  int FileSlot() {
    return FirstSlot() + kDirectorySlots +
           static_cast<int>(random_.Below(kSlots - kDirectorySlots));
  }
  int Slot() { return random_.OneIn(12) ? DirectorySlot() : FileSlot(); }

  // What is mostly found under a name: otherwise nearly every call would fail.
  enum Likely { kDirectory, kFile, kEither };

  std::string Component(Likely likely) {
    if (random_.OneIn(60)) return "..";
    if (random_.OneIn(60)) return ".";
    if (random_.OneIn(200)) return std::string(255, 'l');
    if (random_.OneIn(400)) return std::string(256, 'm');
    if (random_.OneIn(40)) return "\xff \n";
    if (likely == kEither || random_.OneIn(8)) likely = random_.Pick({kDirectory, kFile});
    return std::string(1, static_cast<char>((likely == kDirectory ? 'a' : 'p') + random_.Below(4)));
  }

  std::string PathText(Likely likely) {
    std::string text = random_.OneIn(30) ? "/" : "";
    for (auto depth = random_.Pick({0, 0, 0, 1, 1, 2}); depth > 0; --depth) {
      text += Component(kDirectory) + "/";
    }
    text += Component(likely);
    if (random_.OneIn(40)) text += "/";
    return random_.OneIn(500) ? "" : text;
  }

  Path MakePath(Likely likely) {
    Path path = {random_.OneIn(8) ? DirectorySlot() : -1, PathText(likely)};
    // Where `..` leads is the kernel's memory, which does not hear of another
    // node that moves the directory.
    if (roots_ > 1 && path.slot >= 0 && ParentFirst(path.text)) path.slot = -1;
    return path;
  }

  static bool ParentFirst(std::string_view path) {
    while (path.starts_with("./")) path.remove_prefix(2);
    return path == ".." || path.starts_with("../");
  }

  // For calls that take no directory descriptor.
  Path PlainPath(Likely likely) { return {-1, PathText(likely)}; }

  Target MakeTarget(Path path) {
    return {random_.OneIn(3) ? Slot() : -1, std::move(path), !random_.OneIn(4)};
  }

  off_t Offset() {
    const auto page = kPage;
    if (random_.OneIn(300)) return kFar + static_cast<off_t>(random_.Below(3 * kPage));
    switch (random_.Below(3)) {
      case 0:
        return static_cast<off_t>(random_.Below(2 * kPage));
      case 1:
        return page * static_cast<off_t>(random_.Below(16));
      default:
        return static_cast<off_t>(random_.Below(128 << 10));
    }
  }

  size_t Length() {
    switch (random_.Below(4)) {
      case 0:
        return random_.Below(100);
      case 1:
        return kPage * (1 + random_.Below(8));
      default:
        return random_.Below(48 << 10);
    }
  }

  mode_t Mode() {
    if (random_.OneIn(2)) return random_.Pick<mode_t>({0777, 0777, 0755, 0666});
    return random_.Pick<mode_t>(
        {0775, 0700, 0644, 0640, 0600, 0444, 0111, 0, 01777, 02775, 02777, 04755, 06755, 06777});
  }

  struct timespec Time() {
    if (random_.OneIn(5)) return {0, UTIME_NOW};
    if (random_.OneIn(5)) return {0, UTIME_OMIT};
    return {static_cast<time_t>(random_.Below(2'500'000'000)) - 1'000'000'000,
            static_cast<long>(random_.Below(1'000'000'000))};
  }

  std::string AttributeName() {
    if (random_.OneIn(60)) {
      return random_.Pick<std::string>({"user.", "user", "bogus.a", "system.a", "",
                                        "user." + std::string(250, 'n'),
                                        "user." + std::string(251, 'n')});
    }
    return random_.Pick<std::string>({"user.a", "user.a", "user.b", "user.b", "user.c", "user.\xfe",
                                      "trusted.a", "security.a", "security.capability",
                                      "system.posix_acl_access", "system.posix_acl_default"});
  }

  // --- Descriptors

  Step Open() {
    const bool directory = random_.OneIn(8);
    const int slot = directory ? DirectorySlot() : FileSlot();
    const Path path = MakePath(directory ? kDirectory : kFile);
    const mode_t mode = Mode();
    int flags = O_RDONLY | O_DIRECTORY;
    if (!directory) {
      flags = random_.Pick({O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_WRONLY});
      if (random_.OneIn(2)) flags |= O_CREAT;
      if (random_.OneIn(5)) flags |= O_APPEND;
      for (const int flag : {O_EXCL, O_TRUNC, O_SYNC, O_DSYNC, O_NOFOLLOW, O_PATH, O_NOATIME}) {
        if (random_.OneIn(20)) flags |= flag;
      }
      // The node that a file was removed on does not know of this.
      if (roots_ > 1) flags &= ~O_PATH;
    }
    // A pipe must not block the opener.
    const int used = flags | O_NONBLOCK | O_CLOEXEC;
    return {Format("slot %d %s mode=%04o ", slot, OpenFlags(flags).c_str(), mode) + path.Name(),
            [=, nodes = roots_](World& world) {
              // What waits at the other end of a pipe is each node's own.
              struct stat st;
              if (nodes > 1 && fstatat(path.Base(world), path.c_str(), &st, 0) == 0 &&
                  S_ISFIFO(st.st_mode)) {
                return Answer{};
              }
              return world.Store(slot, openat(path.Base(world), path.c_str(), used, mode));
            },
            {path},
            {slot}};
  }

  Step OpenTemporary() {
    const int slot = FileSlot();
    const Path path = MakePath(kDirectory);
    const mode_t mode = Mode();
    int flags = random_.OneIn(6) ? O_RDONLY : O_RDWR;
    flags |= random_.OneIn(6) ? O_TMPFILE | O_EXCL : O_TMPFILE;
    return {Format("slot %d %s mode=%04o ", slot, OpenFlags(flags).c_str(), mode) + path.Name(),
            [=](World& world) {
              // In a removed directory ext4 says EPERM where others, and create, say ENOENT.
              struct stat st;
              if (fstatat(path.Base(world), path.c_str(), &st, 0) == 0 && st.st_nlink == 0) {
                return Answer{};
              }
              return world.Store(slot,
                                 openat(path.Base(world), path.c_str(), flags | O_CLOEXEC, mode));
            },
            {path},
            {slot}};
  }

  Step LinkDescriptor() {
    const int slot = Slot();
    const Path path = MakePath(kFile);
    return {
        Format("slot %d -> ", slot) + path.Name(),
        [=](World& world) {
          return Result(linkat(world.fds[slot], "", path.Base(world), path.c_str(), AT_EMPTY_PATH));
        },
        {path},
        {slot}};
  }

  Step Close() {
    const int slot = Slot();
    return {Format("slot %d", slot), [=](World& world) {
              const int fd = std::exchange(world.fds[slot], -1);
              return Result(close(fd));
            }};
  }

  Step Read() {
    const int slot = Slot();
    const size_t size = Length();
    const off_t offset = random_.OneIn(2) ? Offset() : -1;
    return {Format("slot %d size=%zu offset=%ld", slot, size, offset), [=](World& world) {
              std::string data(size, '\0');
              const ssize_t got =
                  offset < 0 && !IsDirectory(world.fds[slot])
                      ? read(world.fds[slot], data.data(), size)
                      : pread(world.fds[slot], data.data(), size, std::max<off_t>(offset, 0));
              if (got < 0) return Result(got);
              return Result(got, Format("hash=%016lx", Hash(data.data(), got)));
            }};
  }

  Step Write() {
    const int slot = Slot();
    const size_t size = Length();
    const uint64_t fill = random_.Next();
    const off_t offset = random_.OneIn(2) ? Offset() : -1;
    return {Format("slot %d size=%zu offset=%ld", slot, size, offset),
            [=](World& world) {
              const std::string data = Pattern(fill, size);
              return Result(offset < 0 ? write(world.fds[slot], data.data(), size)
                                       : pwrite(world.fds[slot], data.data(), size, offset));
            },
            {},
            {slot}};
  }

  Step Seek() {
    const int slot = Slot();
    const int whence = random_.Pick({SEEK_SET, SEEK_CUR, SEEK_END});
    const off_t offset = random_.OneIn(4) ? -static_cast<off_t>(random_.Below(9000)) : Offset();
    return {Format("slot %d whence=%d offset=%ld", slot, whence, offset), [=](World& world) {
              if (IsDirectory(world.fds[slot])) return Answer{};
              return Result(lseek(world.fds[slot], offset, whence));
            }};
  }

  Step SeekHole() {
    const int slot = Slot();
    const int whence = random_.Pick({SEEK_DATA, SEEK_HOLE});
    const off_t offset = Offset();
    return {Format("slot %d %s offset=%ld", slot, whence == SEEK_DATA ? "data" : "hole", offset),
            [=](World& world) {
              // A descriptor that can't be read can't be checked.
              if ((fcntl(world.fds[slot], F_GETFL) & (O_ACCMODE | O_PATH)) == O_WRONLY) {
                return Answer{};
              }
              if (IsDirectory(world.fds[slot])) return Answer{};
              const off_t position = lseek(world.fds[slot], 0, SEEK_CUR);
              const Answer answer = CheckSeek(world.fds[slot], offset, whence);
              lseek(world.fds[slot], position, SEEK_SET);
              return answer;
            }};
  }

  Step TruncatePath() {
    const Path path = PlainPath(kFile);
    const off_t size = random_.OneIn(40) ? -1 : Offset();
    return {Format("size=%ld ", size) + path.Name(),
            [=](World&) {
              struct stat st;
              if (stat(path.c_str(), &st) == 0 && HasSize(st, size)) return Answer{};
              return Result(truncate(path.c_str(), size));
            },
            {path}};
  }

  Step TruncateDescriptor() {
    const int slot = Slot();
    const off_t size = Offset();
    return {Format("slot %d size=%ld", slot, size),
            [=](World& world) {
              struct stat st;
              if (fstat(world.fds[slot], &st) == 0 && HasSize(st, size)) return Answer{};
              return Result(ftruncate(world.fds[slot], size));
            },
            {},
            {slot}};
  }

  Step Fallocate() {
    const int slot = Slot();
    const int mode = fallocate_modes_[random_.Below(fallocate_modes_.size())];
    off_t offset = Offset();
    auto size = static_cast<off_t>(Length());
    if ((mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) != 0 && !random_.OneIn(8)) {
      // These take whole blocks only.
      offset -= offset % kPage;
      size += kPage - size % kPage;
    }
    return {Format("slot %d mode=%s offset=%ld size=%ld", slot, FallocateFlags(mode).c_str(),
                   offset, size),
            [=](World& world) { return Result(fallocate(world.fds[slot], mode, offset, size)); },
            {},
            {slot}};
  }

  Step CopyFileRange() {
    const int in = Slot(), out = Slot();
    const off_t in_offset = Offset(), out_offset = Offset();
    const size_t size = Length();
    return {Format("slot %d offset=%ld -> slot %d offset=%ld size=%zu", in, in_offset, out,
                   out_offset, size),
            [=](World& world) {
              return CopyRange(world.fds[in], in_offset, world.fds[out], out_offset, size);
            },
            {},
            {in, out}};
  }

  Step MmapStore() {
    const int slot = Slot();
    const off_t offset = Offset();
    const size_t size = Length() + 1;
    const uint64_t fill = random_.Next();
    return {Format("slot %d offset=%ld size=%zu", slot, offset, size),
            [=](World& world) { return StoreMapped(world.fds[slot], offset, size, fill); },
            {},
            {slot}};
  }

  Step Sync() {
    const int slot = Slot();
    const int how = static_cast<int>(random_.Below(5)) / 2;
    const char* names[] = {"fsync", "fdatasync", "syncfs"};
    return {Format("slot %d %s", slot, names[how]), [=](World& world) {
              const int fd = world.fds[slot];
              return Result(how == 0 ? fsync(fd) : how == 1 ? fdatasync(fd) : syncfs(fd));
            }};
  }

  // --- Names

  Step Link() {
    const Path from = MakePath(kFile), to = MakePath(kFile);
    const int flags = random_.OneIn(3) ? AT_SYMLINK_FOLLOW : 0;
    return {
        from.Name() + " " + to.Name() + (flags != 0 ? " follow" : ""),
        [=](World& world) {
          return Result(linkat(from.Base(world), from.c_str(), to.Base(world), to.c_str(), flags));
        },
        {from, to}};
  }

  Step Symlink() {
    const std::string target =
        random_.OneIn(60) ? std::string(random_.Pick({3000, 4095}), 't') : PathText(kEither);
    const Path path = MakePath(kFile);
    return {Quoted(target) + " " + path.Name(),
            [=](World& world) {
              return Result(symlinkat(target.c_str(), path.Base(world), path.c_str()));
            },
            {path}};
  }

  Step ReadLink() {
    const Path path = MakePath(kFile);
    const size_t size = random_.OneIn(10) ? 1 : PATH_MAX;
    return {path.Name(), [=](World& world) {
              std::string target(size, '\0');
              const ssize_t got =
                  readlinkat(path.Base(world), path.c_str(), target.data(), target.size());
              if (got < 0) return Result(got);
              return Result(got, Quoted(target.substr(0, got)));
            }};
  }

  Step Unlink() {
    const Path path = MakePath(kFile);
    return {path.Name(),
            [=](World& world) { return Result(unlinkat(path.Base(world), path.c_str(), 0)); },
            {path}};
  }

  Step MakeDirectory() {
    const Path path = MakePath(kDirectory);
    const mode_t mode = Mode();
    return {Format("mode=%04o ", mode) + path.Name(),
            [=](World& world) { return Result(mkdirat(path.Base(world), path.c_str(), mode)); },
            {path}};
  }

  Step RemoveDirectory() {
    const Path path = MakePath(kDirectory);
    return {path.Name(),
            [=](World& world) {
              return Result(unlinkat(path.Base(world), path.c_str(), AT_REMOVEDIR));
            },
            {path}};
  }

  Step MakeNode() {
    const Path path = MakePath(kFile);
    const auto type = random_.Pick<mode_t>({S_IFREG, S_IFIFO, S_IFSOCK});
    const mode_t mode = type | (Mode() & ~S_ISGID);
    return {Format("mode=%06o ", mode) + path.Name(),
            [=](World& world) { return Result(mknodat(path.Base(world), path.c_str(), mode, 0)); },
            {path}};
  }

  Step Rename() {
    const Likely likely = random_.Pick({kFile, kFile, kDirectory, kEither});
    const Path from = MakePath(likely), to = MakePath(likely);
    const unsigned flags =
        random_.Pick<unsigned>({0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE,
                                random_.OneIn(10) ? RENAME_NOREPLACE | RENAME_EXCHANGE : 0u});
    return {from.Name() + " " + to.Name() + " " +
                FlagNames(flags, {{RENAME_NOREPLACE, "NOREPLACE"}, {RENAME_EXCHANGE, "EXCHANGE"}}),
            [=, nodes = roots_](World& world) {
              // Linux gives ESTALE for a directory that another node has moved
              // when it meets it in rename first.
              for (const Path& path : {from, to}) {
                struct stat st;
                if (nodes > 1) fstatat(path.Base(world), path.c_str(), &st, AT_SYMLINK_NOFOLLOW);
              }
              Answer answer = Result(
                  renameat2(from.Base(world), from.c_str(), to.Base(world), to.c_str(), flags));
              // That one is above the other comes before all else that is wrong, but only a kernel
              // says so that knows where another node has moved an open directory to.
              constexpr int kWrong[] = {EACCES, EPERM, EISDIR, ENOTDIR, EINVAL, EEXIST};
              if (nodes > 1 && (from.slot >= 0 || to.slot >= 0) &&
                  std::ranges::find(kWrong, answer.error) != std::end(kWrong)) {
                answer.error = ENOTEMPTY;
              }
              return answer;
            },
            {from, to}};
  }

  Step RemoveTreeStep() {
    const Path path = MakePath(kDirectory);
    return {path.Name(),
            [=](World& world) { return Result(RemoveTree(path.Base(world), path.c_str())); },
            {path}};
  }

  Step ListDirectory() {
    const Target target = MakeTarget(MakePath(kDirectory));
    const size_t buffer_bytes = random_.Pick<size_t>({200, 280, 1024, 4096, 32768});
    const uint64_t pick = random_.Next();
    return {target.Name() + Format(" buffer=%zu", buffer_bytes), [=](World& world) {
              if (target.slot >= 0) {
                return ReadDirectory(world.fds[target.slot], buffer_bytes, pick);
              }
              const int fd = openat(target.path.Base(world), target.path.c_str(),
                                    O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
              if (fd < 0) return Result(fd);
              const Answer answer = ReadDirectory(fd, buffer_bytes, pick);
              close(fd);
              return answer;
            }};
  }

  // --- Attributes

  Step StatStep() {
    const Target target = MakeTarget(MakePath(kEither));
    return {target.Name(), [=](World& world) {
              if (target.slot >= 0) return Stat(world.fds[target.slot]);
              return Stat(target.path.Base(world), target.path.c_str(),
                          target.follow ? 0 : AT_SYMLINK_NOFOLLOW);
            }};
  }

  Step Access() {
    const Path path = MakePath(kEither);
    const int mode = static_cast<int>(random_.Below(8));
    return {
        Format("mode=%d ", mode) + path.Name(), [=](World& world) {
          return Result(syscall(SYS_faccessat2, path.Base(world), path.c_str(), mode, AT_EACCESS));
        }};
  }

  Step ChangeMode() {
    const Target target = MakeTarget(MakePath(kEither));
    const mode_t mode = Mode();
    return {Format("mode=%04o ", mode) + target.Name(),
            [=](World& world) {
              return Result(target.slot >= 0
                                ? fchmod(world.fds[target.slot], mode)
                                : fchmodat(target.path.Base(world), target.path.c_str(), mode, 0));
            },
            {target.path},
            target.Slots()};
  }

  Step ChangeOwner() {
    const Target target = MakeTarget(MakePath(kEither));
    const auto uid = random_.Pick<uid_t>({static_cast<uid_t>(-1), 0, 1000, 2000});
    auto gid = random_.Pick<gid_t>({static_cast<gid_t>(-1), 0, 1000, 2000, 3000});
    // Changing neither takes away the setuid bit if the caller may do so; FUSE asks for it in any
    // case, in the same way as after a write.
    if (uid == static_cast<uid_t>(-1) && gid == uid) gid = 3000;
    return {Format("uid=%d gid=%d ", static_cast<int>(uid), static_cast<int>(gid)) + target.Name(),
            [=](World& world) {
              return Result(target.slot >= 0
                                ? fchown(world.fds[target.slot], uid, gid)
                                : fchownat(target.path.Base(world), target.path.c_str(), uid, gid,
                                           target.follow ? 0 : AT_SYMLINK_NOFOLLOW));
            },
            {target.path},
            target.Slots()};
  }

  Step SetTimes() {
    const Target target = MakeTarget(MakePath(kEither));
    const std::array<struct timespec, 2> times = {Time(), Time()};
    return {Format("atime=%ld.%09ld mtime=%ld.%09ld ", times[0].tv_sec, times[0].tv_nsec,
                   times[1].tv_sec, times[1].tv_nsec) +
                target.Name(),
            [=](World& world) {
              const int flags = target.follow ? 0 : AT_SYMLINK_NOFOLLOW;
              struct stat st;
              Answer answer;
              if (target.slot >= 0) {
                const int fd = world.fds[target.slot];
                answer = Result(futimens(fd, times.data()));
                if (answer.error == 0) answer = Result(fstat(fd, &st));
              } else {
                const int base = target.path.Base(world);
                answer = Result(utimensat(base, target.path.c_str(), times.data(), flags));
                if (answer.error == 0) {
                  answer = Result(fstatat(base, target.path.c_str(), &st, flags));
                }
              }
              if (answer.error == 0) {
                if (times[0].tv_nsec != UTIME_OMIT) answer.detail = "atime=" + TimeText(st.st_atim);
                // A FIFO's changes by I/O, of which FUSE does not tell.
                if (!S_ISFIFO(st.st_mode)) answer.detail += " mtime=" + TimeText(st.st_mtim);
              }
              return answer;
            },
            {target.path},
            target.Slots()};
  }

  Step SetAttribute() {
    const Target target = MakeTarget(PlainPath(kEither));
    const std::string name = AttributeName();
    const int flags = random_.Pick<int>({0, 0, 0, XATTR_CREATE, XATTR_REPLACE});
    const size_t value_bytes = random_.Below(300);
    std::string value = Pattern(random_.Next(), value_bytes);
    if (name.starts_with("system.posix_acl")) {
      value = MakeAcl(random_);
    } else if (name == "security.capability" && !random_.OneIn(20)) {
      value = MakeCapability(random_);
    }
    return {target.Name() + " " + Quoted(name) + "=" + Quoted(value) + Format(" flags=%d", flags),
            [=, nodes = roots_](World& world) {
              const char* path = target.path.c_str();
              const char* key = name.c_str();
              const char* data = value.data();
              const size_t size = value.size();
              struct stat st;
              // Who has written before another node sets it does not see that it is there.
              if (nodes > 1 && name == "security.capability" &&
                  (target.slot >= 0 ? fstat(world.fds[target.slot], &st) : stat(path, &st)) == 0 &&
                  world.HasWriter(st)) {
                return Answer{0, 0, "may be written"};
              }
              if (target.slot >= 0) {
                const int fd = world.fds[target.slot];
                const Answer answer = Result(fsetxattr(fd, key, data, size, flags));
                if (fstat(fd, &st) == 0 && HasOddSetgid(st)) fchmod(fd, st.st_mode & ~S_ISGID);
                return answer;
              }
              const Answer answer = Result(target.follow ? setxattr(path, key, data, size, flags)
                                                         : lsetxattr(path, key, data, size, flags));
              if (stat(path, &st) == 0 && HasOddSetgid(st)) chmod(path, st.st_mode & ~S_ISGID);
              return answer;
            },
            {target.path},
            target.Slots()};
  }

  Step GetAttribute() {
    const Target target = MakeTarget(PlainPath(kEither));
    const std::string name = AttributeName();
    const auto size = random_.Pick<size_t>({0, 5, 100, 65536, 65536});
    return {target.Name() + " " + Quoted(name) + Format(" buffer=%zu", size), [=](World& world) {
              const char* path = target.path.c_str();
              const char* key = name.c_str();
              std::string value(size, '\0');
              const ssize_t got = target.slot >= 0
                                      ? fgetxattr(world.fds[target.slot], key, value.data(), size)
                                  : target.follow ? getxattr(path, key, value.data(), size)
                                                  : lgetxattr(path, key, value.data(), size);
              if (got < 0) return Result(got);
              return Result(got, Hex(value.substr(0, got)));
            }};
  }

  Step RemoveAttribute() {
    const Target target = MakeTarget(PlainPath(kEither));
    const std::string name = AttributeName();
    return {target.Name() + " " + Quoted(name),
            [=](World& world) {
              const char* path = target.path.c_str();
              const char* key = name.c_str();
              if (target.slot >= 0) return Result(fremovexattr(world.fds[target.slot], key));
              return Result(target.follow ? removexattr(path, key) : lremovexattr(path, key));
            },
            {target.path},
            target.Slots()};
  }

  Step ListAttributesStep() {
    const Target target = MakeTarget(PlainPath(kEither));
    const auto size = random_.Pick<size_t>({0, 10, 65536, 65536});
    return {target.Name() + Format(" buffer=%zu", size), [=](World& world) {
              const char* path = target.path.c_str();
              std::string names(size, '\0');
              const ssize_t got = target.slot >= 0
                                      ? flistxattr(world.fds[target.slot], names.data(), size)
                                  : target.follow ? listxattr(path, names.data(), size)
                                                  : llistxattr(path, names.data(), size);
              if (got < 0 || size == 0) return Result(got);
              std::vector<std::string> sorted;
              for (ssize_t at = 0; at < got; at += static_cast<ssize_t>(sorted.back().size()) + 1) {
                sorted.emplace_back(&names[at]);
              }
              std::sort(sorted.begin(), sorted.end());
              std::string text;
              for (const std::string& name : sorted) text += Quoted(name) + " ";
              return Result(got, text);
            }};
  }

  Step Handle() {
    const Path path = MakePath(kEither);
    const size_t root = root_;
    return {path.Name(), [=](World& world) { return OpenHandle(world.Root(root), world, path); }};
  }

  Random random_;
  const std::vector<int> fallocate_modes_;
  const size_t roots_;
  size_t root_ = 0;  // That of the step being made.
  int weights_ = 0;
};

const std::vector<Generator::Kind> Generator::kKinds = {
    {"open", 140, &Generator::Open},
    {"tmpfile", 12, &Generator::OpenTemporary},
    {"link_fd", 15, &Generator::LinkDescriptor},
    {"close", 12, &Generator::Close},
    {"read", 50, &Generator::Read},
    {"write", 80, &Generator::Write},
    {"lseek", 12, &Generator::Seek},
    {"seek_hole", 15, &Generator::SeekHole},
    {"truncate", 15, &Generator::TruncatePath},
    {"ftruncate", 15, &Generator::TruncateDescriptor},
    {"fallocate", 25, &Generator::Fallocate},
    {"copy_file_range", 20, &Generator::CopyFileRange},
    {"mmap_store", 25, &Generator::MmapStore},
    {"sync", 3, &Generator::Sync},
    {"link", 30, &Generator::Link},
    {"symlink", 15, &Generator::Symlink},
    {"readlink", 10, &Generator::ReadLink},
    {"unlink", 22, &Generator::Unlink},
    {"mkdir", 60, &Generator::MakeDirectory},
    {"rmdir", 15, &Generator::RemoveDirectory},
    {"mknod", 10, &Generator::MakeNode},
    {"rename", 60, &Generator::Rename},
    // Has to reach all of the tree.
    {"rmtree", 1, &Generator::RemoveTreeStep, true},
    {"readdir", 25, &Generator::ListDirectory},
    {"stat", 30, &Generator::StatStep},
    {"access", 15, &Generator::Access},
    {"chmod", 25, &Generator::ChangeMode},
    {"chown", 25, &Generator::ChangeOwner},
    {"utimens", 20, &Generator::SetTimes},
    {"setxattr", 30, &Generator::SetAttribute},
    {"getxattr", 20, &Generator::GetAttribute},
    {"removexattr", 12, &Generator::RemoveAttribute},
    {"listxattr", 12, &Generator::ListAttributesStep},
    {"handle", 8, &Generator::Handle, true},
};

constexpr char kVictim[] = "victim";
constexpr size_t kVictimBytes = 100'000;

// What --self-test can do to the victim; 0 if done.
const std::map<std::string, int (*)(int fd)> kDamages = {
    {"byte",
     [](int fd) {
       char byte;
       if (pread(fd, &byte, 1, kVictimBytes / 2) != 1) return -1;
       byte ^= 1;
       return pwrite(fd, &byte, 1, kVictimBytes / 2) == 1 ? 0 : -1;
     }},
    {"size", [](int fd) { return ftruncate(fd, kVictimBytes - 1); }},
    {"mode", [](int fd) { return fchmod(fd, 0645); }},
    {"owner", [](int fd) { return fchown(fd, 1000, 0); }},
    {"xattr", [](int fd) { return fsetxattr(fd, "user.a", "x", 1, 0); }},
    {"link", [](int) { return link(kVictim, "other"); }},
    {"entry", [](int) { return mkdir("other", 0700); }},
    {"time",
     [](int fd) {
       const struct timespec times[2] = {{1, 1}, {1, 1}};
       return futimens(fd, times);
     }},
};

// The directory of a thread in that of one side.
std::string Directory(const Options& options, const std::string& top, uint64_t thread) {
  return top + Format("/ops-%lu-%lu", options.seed, thread);
}

// One thread's two directories, and the steps that are done in both.
class Lockstep {
 public:
  Lockstep(const Options& options, const std::vector<int>& fallocate_modes, uint64_t thread,
           int drop_caches_fd, std::atomic<bool>* stop)
      : options_(options),
        thread_(thread),
        drop_caches_fd_(drop_caches_fd),
        stop_(*stop),
        // Threads must differ, and thread 0 be what a run with one thread is.
        generator_(options.seed + uint64_t{1'000'000'007} * thread, fallocate_modes,
                   options.subjects.size()) {
    for (int side = 0; side < 2; ++side) {
      worlds_[side].name = side == 0 ? "model" : "subject";
      for (const std::string& top : side == 0 ? std::vector{options.model} : options.subjects) {
        const std::string path = Directory(options, top, thread);
        worlds_[side].roots.push_back(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (worlds_[side].roots.back() < 0) Die("%s: %m", path.c_str());
      }
      worlds_[side].fds.resize(kSlots * options.subjects.size(), -1);
    }
    tried_.resize(Generator::kKinds.size());
    succeeded_.resize(Generator::kKinds.size());
  }
  ~Lockstep() {
    CloseAll();
    for (World& world : worlds_) {
      for (const int root : world.roots) close(root);
    }
  }
  Lockstep(const Lockstep&) = delete;

  // False: a mismatch, which has been reported.
  bool Run(std::chrono::steady_clock::time_point deadline) {
    while (steps_ < options_.steps && !stop_ && std::chrono::steady_clock::now() < deadline) {
      if (!DoStep() || (steps_ % options_.walk_every == 0 && !CompareTrees())) return false;
    }
    CloseAll();
    if (!options_.self_test.empty()) Sabotage();
    return CompareTrees() && (steps_ < kCoverageSteps || CheckCoverage());
  }

  bool CompareTrees() {
    if (drop_caches_fd_ >= 0 && pwrite(drop_caches_fd_, "2", 1, 0) != 1) Die("drop_caches: %m");
    const Walk model(worlds_[0], 0);
    objects_ = model.objects().size();
    for (size_t root = 0; root < options_.subjects.size(); ++root) {
      if (!CompareTree(model, root)) return false;
    }
    return true;
  }

  void PrintStatistics() const {
    uint64_t succeeded = 0;
    for (size_t i = 0; i < tried_.size(); ++i) {
      succeeded += succeeded_[i];
      if (options_.verbose) {
        printf("  %-16s %8lu tried %8lu succeeded\n", Generator::kKinds[i].name, tried_[i],
               succeeded_[i]);
      }
    }
    printf("equal: seed=%lu thread=%lu steps=%lu succeeded=%lu objects=%zu\n", options_.seed,
           thread_, steps_, succeeded, objects_);
  }

 private:
  using SystemTime = std::chrono::system_clock::time_point;

  bool CompareTree(const Walk& model, size_t root) {
    const Walk subject(worlds_[1], root);
    const auto [at, other] = std::mismatch(model.objects().begin(), model.objects().end(),
                                           subject.objects().begin(), subject.objects().end());
    const bool only_subject = at == model.objects().end();
    if (only_subject && other == subject.objects().end()) return true;
    const std::string path =
        only_subject || (other != subject.objects().end() && other->first < at->first)
            ? other->first
            : at->first;
    const auto text = [&path](const Walk& walk) {
      const auto found = walk.objects().find(path);
      return found == walk.objects().end() ? "does not exist" : found->second;
    };
    const std::string where = options_.subjects.size() > 1 ? Format(" in root %zu", root) : "";
    return Report("comparing the trees at " + Quoted(path) + where, text(model), text(subject));
  }

  // What another node changed, a kernel learns of an open file when it asks.
  void TellKernels(const Step& step) {
    struct stat st;
    for (size_t slot = 0; slot < worlds_[0].fds.size(); ++slot) {
      // Of a directory that is gone it does not learn at all, and refuses with what
      // it would refuse in a living one.
      if (fstat(worlds_[0].fds[slot], &st) != 0 || !S_ISDIR(st.st_mode) || st.st_nlink > 0) continue;
      for (World& world : worlds_) close(std::exchange(world.fds[slot], -1));
    }
    for (const int slot : step.slots) fstat(worlds_[1].fds[slot], &st);
  }

  bool DoStep() {
    const Step step = generator_.Next();
    // Not always, for looking warms the kernel's caches.
    const bool look = generator_.random().OneIn(2);
    const bool timed = generator_.random().OneIn(100);
    const size_t look_root = generator_.DrawRoot();
    ++steps_;
    tail_.push_back(Format("%lu ", steps_) + step.text);
    if (tail_.size() > kTail) tail_.pop_front();
    // So that older time stamps are told from those of this step.
    if (timed) std::this_thread::sleep_for(kTick * 3 / 2);
    const SystemTime start = std::chrono::system_clock::now();
    if (options_.subjects.size() > 1) TellKernels(step);
    Answer answers[2];
    for (int side = 0; side < 2; ++side) {
      worlds_[side].Enter(step.root);
      umask(step.mask);
      const Identity identity(step.user);
      answers[side] = step.run(worlds_[side]);
    }
    ++tried_[step.kind];
    if (answers[0].error == 0) ++succeeded_[step.kind];
    tail_.back() += " = " + answers[0].Text();
    if (answers[0] != answers[1]) {
      return Report("the answers", answers[0].Text(), answers[1].Text());
    }
    return (!look || CompareAfter(step, look_root, "the state after it of",
                                  [](const struct stat& st) { return Describe(st); })) &&
           (!timed ||
            CompareAfter(step, look_root, "the times after it of",
                         [start](const struct stat& st) { return Freshness(st, start); }));
  }

  // Compares what `describe` says of each object that the step touched, seen through a root.
  template <typename F>
  bool CompareAfter(const Step& step, size_t root, const std::string& what, F describe) {
    struct Object {
      std::string name, text;
    };
    std::vector<Object> objects[2];
    for (int side = 0; side < 2; ++side) {
      const World& world = worlds_[side];
      struct stat st;
      const auto add = [&](const std::string& name, int result) {
        objects[side].push_back({name, result == 0 ? describe(st) : strerrorname_np(errno)});
      };
      for (const Path& path : step.paths) {
        // From a descriptor ".." leads out of every root but its own.
        world.Enter(path.slot < 0 ? root : step.root);
        for (const Path& each : {path, path.Parent()}) {
          add(each.Name(), fstatat(each.Base(world), each.c_str(), &st, AT_SYMLINK_NOFOLLOW));
        }
      }
      for (const int slot : step.slots) add(Format("slot %d", slot), fstat(world.fds[slot], &st));
    }
    for (size_t i = 0; i < objects[0].size(); ++i) {
      const Object &model = objects[0][i], &subject = objects[1][i];
      if (model.text != subject.text) {
        const std::string where = options_.subjects.size() > 1 ? Format(" in root %zu", root) : "";
        return Report(what + " " + model.name + where, model.text, subject.text);
      }
    }
    return true;
  }

  static std::string Freshness(const struct stat& st, SystemTime start) {
    if (S_ISFIFO(st.st_mode)) return "a pipe";
    const SystemTime end = std::chrono::system_clock::now();
    const auto text = [&](const struct timespec& time) {
      const SystemTime at{std::chrono::seconds(time.tv_sec) +
                          std::chrono::nanoseconds(time.tv_nsec)};
      return at > end ? "in the future" : at >= start - kTick ? "new" : "old";
    };
    return std::string("mtime ") + text(st.st_mtim) + ", ctime " + text(st.st_ctim);
  }

  bool CheckCoverage() {
    for (size_t i = 0; i < succeeded_.size(); ++i) {
      if (succeeded_[i] > 0) continue;
      return Report(std::string("coverage: no ") + Generator::kKinds[i].name + " ever succeeded",
                    "", "");
    }
    return true;
  }

  // Changes the subject behind the comparison's back; CompareTrees must find it.
  void Sabotage() {
    const struct timespec times[2] = {{1'000'000'000, 1}, {1'000'000'000, 2}};
    for (const World& world : worlds_) {
      world.Enter(0);
      umask(0);
      RemoveTree(AT_FDCWD, kVictim);
      const int fd = open(kVictim, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
      const std::string data = Pattern(options_.seed, kVictimBytes);
      if (pwrite(fd, data.data(), data.size(), 0) != static_cast<ssize_t>(data.size()) ||
          (&world == &worlds_[1] && kDamages.at(options_.self_test)(fd) != 0) ||
          (options_.self_test != "time" && futimens(fd, times) != 0)) {
        Die("self-test: %m");
      }
      close(fd);
    }
  }

  void CloseAll() {
    for (World& world : worlds_) {
      for (int& fd : world.fds) {
        if (fd >= 0) close(std::exchange(fd, -1));
      }
    }
  }

  bool Report(const std::string& what, const std::string& model, const std::string& subject) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    stop_ = true;
    const auto number = [](uint64_t value) { return std::to_string(value); };
    std::string out = "MISMATCH seed=" + number(options_.seed) + " thread=" + number(thread_) +
                      " step=" + number(steps_) + " in " + what + "\n";
    if (!tail_.empty()) out += "  step:    " + tail_.back() + "\n";
    out += "  model:   " + model + "\n  subject: " + subject + "\nlast steps:\n";
    for (const std::string& line : tail_) out += "  " + line + "\n";
    out += "replay: random_ops --seed " + number(options_.seed) + " --steps " +
           number(std::max<uint64_t>(steps_, 1)) + " --threads " + number(options_.threads) +
           " --walk-every " + number(options_.walk_every) + (options_.lenient ? " --lenient" : "") +
           (options_.drop_caches ? " --drop-caches" : "") +
           (options_.self_test.empty() ? "" : " --self-test " + options_.self_test) + " " +
           options_.model;
    for (const std::string& top : options_.subjects) out += " " + top;
    out += "\nleft in " + Directory(options_, options_.model, thread_) + " and " +
           Directory(options_, options_.subjects[0], thread_) + "\n";
    fputs(out.c_str(), stdout);
    fflush(stdout);
    return false;
  }

  const Options& options_;
  const uint64_t thread_;
  const int drop_caches_fd_;
  std::atomic<bool>& stop_;
  Generator generator_;
  World worlds_[2];
  uint64_t steps_ = 0;
  size_t objects_ = 0;
  std::vector<uint64_t> tried_, succeeded_;
  std::deque<std::string> tail_;
};

// The modes that both have. What only the model has is a mismatch, unless `lenient` or if it is one
// that Linux doesn't pass on to FUSE file systems.
std::vector<int> FallocateModes(const Options& options) {
  constexpr int kNotInFuse = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE;
  constexpr int kAll[] = {0,
                          FALLOC_FL_KEEP_SIZE,
                          FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          FALLOC_FL_ZERO_RANGE,
                          FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                          FALLOC_FL_COLLAPSE_RANGE,
                          FALLOC_FL_INSERT_RANGE};
  std::vector<int> modes;
  for (const int mode : kAll) {
    bool has[2];
    for (int side = 0; side < 2; ++side) {
      const std::string& top = side == 0 ? options.model : options.subjects[0];
      const std::string path = Directory(options, top, 0) + "/probe";
      const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      if (fd < 0 || ftruncate(fd, 3 * kPage) != 0) Die("%s: %m", path.c_str());
      has[side] = fallocate(fd, mode, 0, kPage) == 0;
      close(fd);
      unlink(path.c_str());
    }
    if (has[0] && has[1]) {
      modes.push_back(mode);
    } else if (has[0] && !options.lenient && (mode & kNotInFuse) == 0) {
      printf("MISMATCH the subject refuses fallocate %s\n", FallocateFlags(mode).c_str());
      exit(1);
    }
  }
  return modes;
}

[[noreturn]] void Usage(int code) {
  fputs(
      "usage: random_ops [OPTION]... MODEL SUBJECT...\n"
      "Do the same random file-system calls in two directories and compare the answers.\n"
      "Several SUBJECTs are one directory, seen through several mounts.\n"
      "  --seed=N         what is drawn (1)\n"
      "  --steps=N        calls a thread (20000, or no limit with --seconds)\n"
      "  --seconds=N      stop after this time\n"
      "  --threads=N      that many at once, each in its own subtree (1)\n"
      "  --walk-every=N   compare the whole trees every N steps (1000; 0: at the end only)\n"
      "  --drop-caches    make the kernel forget inodes and names before that\n"
      "  --lenient        leave out fallocate modes that the subject doesn't have\n"
      "  --keep           leave the two trees behind\n"
      "  --compare        only compare the trees that --keep has left, then remove them\n"
      "  --self-test=KIND change the subject before the last comparison, which then has to fail;\n"
      "                   KIND: byte size mode owner xattr link entry time\n"
      "  --verbose        print how often each call was tried and succeeded\n",
      code == 0 ? stdout : stderr);
  exit(code);
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  const std::map<std::string, uint64_t*> numbers = {{"seed", &options.seed},
                                                    {"steps", &options.steps},
                                                    {"seconds", &options.seconds},
                                                    {"threads", &options.threads},
                                                    {"walk-every", &options.walk_every}};
  const std::map<std::string, bool*> flags = {{"drop-caches", &options.drop_caches},
                                              {"lenient", &options.lenient},
                                              {"keep", &options.keep},
                                              {"compare", &options.compare},
                                              {"verbose", &options.verbose},
                                              {"help", &options.help}};
  std::vector<struct option> known;
  for (const auto& [name, number] : numbers) {
    known.push_back({name.c_str(), required_argument, nullptr, 0});
  }
  for (const auto& [name, flag] : flags) known.push_back({name.c_str(), no_argument, nullptr, 0});
  known.push_back({"self-test", required_argument, nullptr, 0});
  known.push_back({});
  int index;
  for (int c; (c = getopt_long(argc, argv, "", known.data(), &index)) != -1;) {
    if (c != 0) Usage(2);
    const std::string name = known[index].name;
    if (const auto number = numbers.find(name); number != numbers.end()) {
      char* end;
      *number->second = strtoull(optarg, &end, 10);
      if (*optarg == '\0' || *end != '\0') Die("--%s: not a number: %s", name.c_str(), optarg);
    } else if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
    } else {
      options.self_test = optarg;
    }
  }
  if (options.help) Usage(0);
  if (!options.self_test.empty() && !kDamages.contains(options.self_test)) Usage(2);
  if (options.walk_every == 0) options.walk_every = UINT64_MAX;
  if (argc - optind < 2) Usage(2);
  if (options.steps == 0) options.steps = options.seconds > 0 ? UINT64_MAX : 20'000;
  options.model = argv[optind];
  options.subjects.assign(argv + optind + 1, argv + argc);
  return options;
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  if (geteuid() != 0) Die("has to be run by root: it acts as several users");
  signal(SIGPIPE, SIG_IGN);
  umask(0);
  for (uint64_t thread = 0; thread < options.threads && !options.compare; ++thread) {
    for (const std::string& top : {options.model, options.subjects[0]}) {
      const std::string path = Directory(options, top, thread);
      if (mkdir(path.c_str(), 0777) != 0) Die("mkdir %s: %m", path.c_str());
    }
  }
  const std::vector<int> modes = options.compare ? std::vector<int>() : FallocateModes(options);
  int drop_caches_fd = -1;
  if (options.drop_caches) {
    drop_caches_fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (drop_caches_fd < 0) Die("/proc/sys/vm/drop_caches: %m");
  }
  const auto deadline = options.seconds == 0 ? std::chrono::steady_clock::time_point::max()
                                             : std::chrono::steady_clock::now() +
                                                   std::chrono::seconds(options.seconds);
  std::atomic<bool> stop = false, equal = true;
  std::mutex print;
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < options.threads; ++thread) {
    threads.emplace_back([&, thread] {
      // A root directory, a current directory and a umask of its own.
      if (unshare(CLONE_FS) != 0) Die("unshare: %m");
      Lockstep lockstep(options, modes, thread, drop_caches_fd, &stop);
      if (!(options.compare ? lockstep.CompareTrees() : lockstep.Run(deadline))) {
        equal = false;
        return;
      }
      const std::lock_guard lock(print);
      lockstep.PrintStatistics();
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (equal && !options.keep) {
    for (uint64_t thread = 0; thread < options.threads; ++thread) {
      for (const std::string& top : {options.model, options.subjects.back()}) {
        const std::string path = Directory(options, top, thread);
        if (RemoveTree(AT_FDCWD, path.c_str()) != 0) {
          printf("MISMATCH can't remove %s: %m\n", path.c_str());
          equal = false;
        }
      }
    }
  }
  return equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
