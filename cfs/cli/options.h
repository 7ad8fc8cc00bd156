// A verb of the command line: one table gives its parser, its --help and what
// the man pages are compared with.
#ifndef CFS_CLI_OPTIONS_H_
#define CFS_CLI_OPTIONS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cfs {

struct Option {
  std::string name;   // Of --name.
  char letter;        // Of -l; 0 for none.
  std::string value;  // What it takes, as --help shows it; empty for a flag.
  std::string help;   // One line.
  // Gets the value, empty for a flag; false when it is none of those allowed.
  std::function<bool(const std::string& value)> set;
};

inline constexpr size_t kArgumentsMax = 1 << 20;

struct Verb {
  std::string name;
  std::string arguments;  // As --help shows them.
  size_t arguments_min;
  size_t arguments_max;
  std::string summary;  // One line.
  std::vector<Option> options;
  std::function<absl::Status(const std::vector<std::string>& arguments)> run;
};

// A flag that sets `*target`, which must outlive the option.
Option Flag(std::string name, char letter, std::string help, bool* target);

std::string HelpText(const Verb& verb);

struct ParsedArguments {
  bool help = false;  // --help was given: nothing else matters.
  std::vector<std::string> arguments;
};

// Applies the options among `words` (what follows the verb), in GNU manner: in
// any place, abbreviated, up to a "--". Errors are INVALID_ARGUMENT.
// Thread-safety: none, for getopt_long() has none.
absl::StatusOr<ParsedArguments> ParseArguments(const Verb& verb, std::vector<std::string> words);

}  // namespace cfs

#endif  // CFS_CLI_OPTIONS_H_
