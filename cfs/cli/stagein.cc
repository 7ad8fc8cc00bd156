#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/cli/mounts.h"
#include "cfs/cli/report.h"
#include "cfs/cli/tree_walk.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

struct Options {
  bool recursive = false;
  std::string from_file;
};

struct File {
  std::string path;
  uint64_t bytes = 0;
};

absl::StatusOr<std::vector<std::string>> ReadList(const std::string& file) {
  std::ifstream in(file == "-" ? "/dev/stdin" : file);
  std::vector<std::string> paths;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) paths.push_back(line);
  }
  if (!in.eof()) return ErrnoStatus(errno != 0 ? errno : EIO, file);
  return paths;
}

absl::Status StageIn(const Options& options, std::vector<std::string> paths) {
  if (!options.from_file.empty()) {
    CFS_ASSIGN_OR_RETURN(const std::vector<std::string> listed, ReadList(options.from_file));
    paths.insert(paths.end(), listed.begin(), listed.end());
  }
  if (paths.empty()) return absl::InvalidArgumentError("no files are named");
  std::vector<File> files;
  uint64_t bytes = 0;
  std::atomic<size_t> failed{0};
  const auto fail = [&failed](const absl::Status& status) {
    fprintf(stderr, "cfs stagein: %s\n", std::string(status.message()).c_str());
    ++failed;
  };
  for (const std::string& path : paths) {
    bool directory = false;
    absl::Status status = CfsMountOf(path).status();
    if (status.ok()) {
      status = WalkTree(
          path,
          [&](const struct stat&) {
            directory = true;
            return options.recursive;
          },
          [&](const std::string& at, const struct stat& st) {
            files.push_back({at, static_cast<uint64_t>(st.st_size)});
            bytes += files.back().bytes;
          });
    }
    if (directory && !options.recursive) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is a directory; --recursive takes what is in it"));
    }
    if (!status.ok()) fail(status);
  }

  // An open returns when the data is here. Others are to get copies meanwhile, too.
  std::atomic<size_t> next{0}, over{0};
  std::atomic<uint64_t> done_files{0}, done_bytes{0};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < std::min<size_t>(kBackendThreads / 2, files.size()); ++i) {
    threads.emplace_back([&] {
      for (size_t at; (at = next.fetch_add(1)) < files.size();) {
        const File& file = files[at];
        const UniqueFd fd(open(file.path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
        if (!fd.valid()) {
          fail(ErrnoStatus(file.path));
        } else {
          done_bytes += file.bytes;
          ++done_files;
        }
        ++over;
      }
    });
  }
  if (isatty(STDERR_FILENO)) {
    while (over < files.size()) {
      absl::SleepFor(absl::Milliseconds(100));
      fprintf(stderr, "\r%" PRIu64 " of %zu files, %s of %s \033[K", done_files.load(),
              files.size(), HumanBytes(done_bytes).c_str(), HumanBytes(bytes).c_str());
    }
    fputs("\r\033[K", stderr);
  }
  for (std::thread& thread : threads) thread.join();
  printf("%" PRIu64 " files, %s are here\n", done_files.load(), HumanBytes(done_bytes).c_str());
  if (failed > 0) {
    return absl::UnknownError(absl::StrCat(failed.load(), failed == 1 ? " file is" : " files are",
                                        " not"));
  }
  return absl::OkStatus();
}

}  // namespace

Verb StageInVerb() {
  const auto options = std::make_shared<Options>();
  return {"stagein",
          "PATH...",
          0,
          kArgumentsMax,
          "Gets files from the backend before they are opened.",
          {Flag("recursive", 'r', "also what is below directories", &options->recursive),
           {"from-file", 0, "LIST", "also what LIST names, a line each; - is the standard input",
            [=](const std::string& value) {
              options->from_file = value;
              return !value.empty();
            }}},
          [=](const std::vector<std::string>& arguments) { return StageIn(*options, arguments); }};
}

}  // namespace cfs
