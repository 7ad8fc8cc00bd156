#include "cfs/cli/report.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cfs/server/control.h"

namespace cfs {
namespace {

std::string Value(absl::string_view name, const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_unsigned() && absl::EndsWith(name, "_bytes")) {
    return HumanBytes(value.get<uint64_t>());
  }
  return ToText(value);
}

}  // namespace

std::string Report(const nlohmann::json& object, absl::string_view indent) {
  size_t width = 0;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_object()) width = std::max(width, name.size());
  }
  std::string lines, sections;
  for (const auto& [name, value] : object.items()) {
    if (value.is_object()) {
      absl::StrAppend(&sections, indent, name, "\n", Report(value, absl::StrCat(indent, "  ")));
    } else {
      absl::StrAppend(&lines, indent, name, std::string(width + 2 - name.size(), ' '),
                      Value(name, value), "\n");
    }
  }
  return lines + sections;
}

void PrintReply(nlohmann::json reply, bool as_json) {
  reply.erase("ok");
  const std::string text = as_json ? ToText(reply, 2) + "\n" : Report(reply);
  fputs(text.c_str(), stdout);
}

std::string HumanBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double amount = bytes / 1024.0;
  size_t unit = 0;
  for (; amount >= 1024 && unit + 1 < std::size(kUnits); ++unit) amount /= 1024;
  return absl::StrFormat("%.2f %s", amount, kUnits[unit]);
}

}  // namespace cfs
