// meta_bench measures one metadata row on a directory and prints it as a line of JSON:
//
//   meta_bench --dir DIR --row ROW [--files N] [--wait]
//
// With --wait it says "ready" and begins when it is told to, by a line, so that several begin at
// once.
//
// Rows leave behind what later rows need, so that bench.py can run one row on every contender back
// to back: create (also writes 4 KiB) -> stat_cold, stat_warm, open_read, readdir_cold,
// readdir_warm -> rename -> unlink, and mkdir -> rmdir. Names are relative to an open directory:
// what is measured is the operation, not the path walk. Cold means after `echo 2 >
// /proc/sys/vm/drop_caches`, which needs root.

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>

namespace {

constexpr size_t kFileBytes = 4096;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "meta_bench: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int Check(int result, const char* what) {
  if (result < 0) Die(what);
  return result;
}

void CheckBytes(ssize_t bytes, const char* what) {
  if (bytes < 0) Die(what);
  if (bytes != static_cast<ssize_t>(kFileBytes)) {
    errno = EIO;
    Die(what);
  }
}

void DropCaches() {
  const int fd = Check(open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC), "drop_caches");
  Check(write(fd, "2", 1), "drop_caches");
  close(fd);
  // What was dropped is reported to FUSE daemons afterwards (FORGET): not part of what follows.
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}

struct Bench {
  int dir = -1;
  int files = 0;

  std::string Name(char kind, int i) const {
    char name[16];
    std::snprintf(name, sizeof(name), "%c%07d", kind, i);
    return name;
  }

  // One call of `operation` a file; returns the number of operations.
  template <typename Operation>
  int Each(char kind, Operation operation) const {
    for (int i = 0; i < files; ++i) operation(Name(kind, i).c_str());
    return files;
  }

  int Create() const {
    static const char data[kFileBytes] = {};
    return Each('f', [this](const char* name) {
      const int fd =
          Check(openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644), "create");
      CheckBytes(write(fd, data, kFileBytes), "write");
      Check(close(fd), "close");
    });
  }

  int Stat() const {
    return Each('f', [this](const char* name) {
      struct stat attr;
      Check(fstatat(dir, name, &attr, AT_SYMLINK_NOFOLLOW), "stat");
      CheckBytes(attr.st_size, "size of file");
    });
  }

  int OpenRead() const {
    return Each('f', [this](const char* name) {
      char data[kFileBytes];
      const int fd = Check(openat(dir, name, O_RDONLY | O_CLOEXEC), "open");
      CheckBytes(read(fd, data, kFileBytes), "read");
      Check(close(fd), "close");
    });
  }

  // As `ls -l` does: each name is followed by its stat.
  int ReadDir() const {
    DIR* stream = fdopendir(Check(openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "opendir"));
    if (stream == nullptr) Die("opendir");
    int seen = 0;
    while (const dirent* entry = readdir(stream)) {
      struct stat attr;
      Check(fstatat(dir, entry->d_name, &attr, AT_SYMLINK_NOFOLLOW), "stat");
      if (S_ISREG(attr.st_mode)) ++seen;
    }
    closedir(stream);
    if (seen != files) {
      errno = EIO;
      Die("readdir: " + std::to_string(seen) + " files of " + std::to_string(files));
    }
    return seen;
  }

  int Rename() const {
    return Each('f', [this](const char* name) {
      std::string renamed = name;
      renamed[0] = 'r';
      Check(renameat(dir, name, dir, renamed.c_str()), "rename");
    });
  }

  int Unlink() const {
    return Each('r', [this](const char* name) { Check(unlinkat(dir, name, 0), "unlink"); });
  }

  int MkDir() const {
    return Each('d', [this](const char* name) { Check(mkdirat(dir, name, 0755), "mkdir"); });
  }

  int RmDir() const {
    return Each('d',
                [this](const char* name) { Check(unlinkat(dir, name, AT_REMOVEDIR), "rmdir"); });
  }
};

struct Row {
  int (Bench::*run)() const;
  enum { kAsIs, kCold, kWarm } cache;
  int passes = 1;  // More where a pass is too short to time.
};

const std::map<std::string, Row> kRows = {
    {"create", {&Bench::Create, Row::kAsIs}},
    {"stat_cold", {&Bench::Stat, Row::kCold}},
    {"stat_warm", {&Bench::Stat, Row::kWarm, 5}},
    {"open_read", {&Bench::OpenRead, Row::kAsIs}},
    {"readdir_cold", {&Bench::ReadDir, Row::kCold}},
    {"readdir_warm", {&Bench::ReadDir, Row::kWarm, 5}},
    {"rename", {&Bench::Rename, Row::kAsIs}},
    {"unlink", {&Bench::Unlink, Row::kAsIs}},
    {"mkdir", {&Bench::MkDir, Row::kAsIs}},
    {"rmdir", {&Bench::RmDir, Row::kAsIs}},
};

void Run(const std::string& name, const Row& row, const std::string& path, int files, bool wait) {
  Bench bench;
  bench.files = files;
  if (row.cache == Row::kCold) DropCaches();
  bench.dir = Check(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), path.c_str());
  if (row.cache == Row::kWarm) (bench.*row.run)();
  if (wait) {
    std::puts("ready");
    std::fflush(stdout);
    if (std::getchar() == EOF) std::exit(1);
  }
  const auto start = std::chrono::steady_clock::now();
  int operations = 0;
  for (int pass = 0; pass < row.passes; ++pass) operations += (bench.*row.run)();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("{\"row\": \"%s\", \"operations\": %d, \"seconds\": %.6f, \"per_second\": %.1f}\n",
              name.c_str(), operations, elapsed.count(), operations / elapsed.count());
}

}  // namespace

int main(int argc, char** argv) {
  const option long_options[] = {{"dir", required_argument, nullptr, 'd'},
                                 {"row", required_argument, nullptr, 'r'},
                                 {"files", required_argument, nullptr, 'n'},
                                 {"wait", no_argument, nullptr, 'w'},
                                 {}};
  std::string dir, row;
  int files = 20000;
  bool wait = false, usage = false;
  for (int c; (c = getopt_long(argc, argv, "", long_options, nullptr)) != -1;) {
    switch (c) {
      case 'd':
        dir = optarg;
        break;
      case 'r':
        row = optarg;
        break;
      case 'n':
        files = std::atoi(optarg);
        break;
      case 'w':
        wait = true;
        break;
      default:
        usage = true;
    }
  }
  if (usage || optind != argc || dir.empty() || kRows.count(row) == 0 || files <= 0) {
    std::fprintf(stderr, "usage: meta_bench --dir DIR --row ROW [--files N] [--wait], ROW one of:");
    for (const auto& [name, unused] : kRows) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 64;
  }
  Run(row, kRows.at(row), dir, files, wait);
  return 0;
}
