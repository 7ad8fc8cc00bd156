#include "cfs/cli/options.h"

#include <getopt.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace cfs {
namespace {

constexpr int kFirstOption = 256;  // Above every letter.
constexpr int kHelpOption = 'h';

// "-o, --options=FUSE_OPTIONS"
std::string Spelling(const Option& option) {
  return absl::StrCat(option.letter != 0 ? absl::StrCat("-", std::string(1, option.letter), ", ")
                                         : std::string("    "),
                      "--", option.name, option.value.empty() ? "" : "=", option.value);
}

absl::Status UsageError(const Verb& verb, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, "; `cfs ", verb.name, " --help` shows how it is used"));
}

}  // namespace

Option Flag(std::string name, char letter, std::string help, bool* target) {
  return {std::move(name), letter, "", std::move(help), [target](const std::string&) {
            *target = true;
            return true;
          }};
}

std::string HelpText(const Verb& verb) {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Option& option : verb.options) rows.emplace_back(Spelling(option), option.help);
  rows.emplace_back("-h, --help", "show this text");
  size_t width = 0;
  for (const auto& [spelling, help] : rows) width = std::max(width, spelling.size());
  std::string text =
      absl::StrCat("Usage: cfs ", verb.name, " [OPTION]...", verb.arguments.empty() ? "" : " ",
                   verb.arguments, "\n", verb.summary, "\n\n");
  for (const auto& [spelling, help] : rows) {
    absl::StrAppend(&text, "  ", spelling, std::string(width + 2 - spelling.size(), ' '), help,
                    "\n");
  }
  return text;
}

absl::StatusOr<ParsedArguments> ParseArguments(const Verb& verb, std::vector<std::string> words) {
  std::string letters = ":h";  // The colon: a missing value is told from an unknown option.
  std::vector<option> table;
  for (size_t i = 0; i < verb.options.size(); ++i) {
    const Option& item = verb.options[i];
    const int has_value = item.value.empty() ? no_argument : required_argument;
    table.push_back({item.name.c_str(), has_value, nullptr, kFirstOption + static_cast<int>(i)});
    if (item.letter != 0) letters += item.letter;
    if (item.letter != 0 && !item.value.empty()) letters += ':';
  }
  table.push_back({"help", no_argument, nullptr, kHelpOption});
  table.push_back({});

  words.insert(words.begin(), verb.name);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int argc = static_cast<int>(words.size());

  ParsedArguments parsed;
  opterr = 0;
  optind = 0;  // GNU: start over.
  while (true) {
    optarg = nullptr;
    const int found = getopt_long(argc, argv.data(), letters.c_str(), table.data(), nullptr);
    if (found == -1) break;
    const std::string word = argv[optind - 1];
    if (found == kHelpOption) {
      parsed.help = true;
      return parsed;
    }
    if (found == '?' || found == ':') {
      // getopt_long() names a known option in optopt, and always a wrong letter.
      const bool is_long = absl::StartsWith(word, "--");
      const std::string name =
          is_long ? word.substr(0, word.find('=')) : absl::StrCat("-", std::string(1, optopt));
      if (found == ':') return UsageError(verb, absl::StrCat("option ", name, " needs a value"));
      if (is_long && optopt != 0) {
        return UsageError(verb, absl::StrCat("option ", name, " takes no value"));
      }
      return UsageError(verb, absl::StrCat("unknown option ", name));
    }
    const auto option =
        std::find_if(verb.options.begin(), verb.options.end(), [&](const Option& candidate) {
          return candidate.letter == found ||
                 &candidate - verb.options.data() == found - kFirstOption;
        });
    const std::string value = optarg == nullptr ? "" : optarg;
    if (!option->set(value)) {
      return UsageError(verb, absl::StrCat("option --", option->name, " takes ", option->value,
                                           ", not '", value, "'"));
    }
  }
  parsed.arguments.assign(argv.begin() + optind, argv.begin() + argc);
  if (parsed.arguments.size() < verb.arguments_min) {
    return UsageError(verb, absl::StrCat(verb.arguments, " is missing"));
  }
  if (parsed.arguments.size() > verb.arguments_max) {
    return UsageError(
        verb, absl::StrCat("unexpected argument '", parsed.arguments[verb.arguments_max], "'"));
  }
  return parsed;
}

}  // namespace cfs
