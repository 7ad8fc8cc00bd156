#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cfs/cli/exit_code.h"
#include "cfs/cli/verbs.h"

namespace cfs {
namespace {

std::string Overview(const std::vector<Verb>& verbs) {
  std::string text =
      "Usage: cfs VERB [OPTION]... [ARGUMENT]...\n"
      "A node-local caching parallel file system.\n\n";
  size_t width = 0;
  for (const Verb& verb : verbs) width = std::max(width, verb.name.size());
  for (const Verb& verb : verbs) {
    absl::StrAppend(&text, "  ", verb.name, std::string(width + 2 - verb.name.size(), ' '),
                    verb.summary, "\n");
  }
  return text + "\n`cfs VERB --help` shows the options of a verb; see also cfs(1).\n";
}

// A file that we open must never take the place of a standard stream that our
// caller has closed.
void FillStandardDescriptors() {
  int fd;
  do {
    fd = open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

// A token in the arguments would be seen in the list of processes.
void HideTokens(int argc, char** argv) {
  for (int i = 0; i < argc; ++i) {
    char* const token = strstr(argv[i], "cfs1-");
    if (token != nullptr) memset(token + 5, 'x', strlen(token + 5));
  }
}

int Fail(const std::string& who, const absl::Status& status) {
  const std::string line = absl::StrReplaceAll(status.message(), {{"\n", " "}});
  fprintf(stderr, "%s: %s\n", who.c_str(), line.c_str());
  return ExitCode(status);
}

absl::Status Run(const Verb& verb, std::vector<std::string> words) {
  const auto parsed = ParseArguments(verb, std::move(words));
  if (!parsed.ok()) return parsed.status();
  if (!parsed->help) return verb.run(parsed->arguments);
  fputs(HelpText(verb).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

Verb VersionVerb() {
  return {"version", "", 0, 0, "Shows the version of cfs.", {}, [](const auto&) {
            puts("cfs " CFS_VERSION);
            return absl::OkStatus();
          }};
}

int RunCli(int argc, char** argv, RunNodeFn run_node) {
  FillStandardDescriptors();
  const std::vector<Verb> verbs = {MountVerb(run_node), ServeVerb(std::move(run_node)),
                                   UmountVerb(),        StopVerb(),
                                   StatusVerb(),        NodesVerb(),
                                   TokenVerb(),         StatVerb(),
                                   StageInVerb(),       EvictVerb(),
                                   SyncVerb(),          RefreshVerb(),
                                   FsckVerb(),          DoctorVerb(),
                                   VersionVerb()};
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  HideTokens(argc, argv);
  std::string name = words.empty() ? "" : words.front();
  if (name == "--version") name = "version";
  if (name == "--help" || name == "-h" || name == "help") {
    fputs(Overview(verbs).c_str(), stdout);
    return 0;
  }
  const auto verb = std::find_if(verbs.begin(), verbs.end(),
                                 [&](const Verb& candidate) { return candidate.name == name; });
  if (verb == verbs.end()) {
    const std::string what =
        name.empty() ? "a verb is missing" : absl::StrCat("unknown verb '", name, "'");
    return Fail("cfs", absl::InvalidArgumentError(what + "; `cfs --help` lists them"));
  }
  words.erase(words.begin());
  const absl::Status status = Run(*verb, std::move(words));
  return status.ok() ? 0 : Fail("cfs " + verb->name, status);
}

}  // namespace cfs
