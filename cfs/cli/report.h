// JSON for people: aligned `name  value` lines.
#ifndef CFS_CLI_REPORT_H_
#define CFS_CLI_REPORT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace cfs {

// A node answers at once; one that takes longer hangs.
inline constexpr absl::Duration kControlTimeout = absl::Seconds(10);

// A line for each member of the object, indented. Members that are objects
// themselves follow under their name.
std::string Report(const nlohmann::json& object, absl::string_view indent = "");

// What a node replied, without the "ok" that the exit code says too.
void PrintReply(nlohmann::json reply, bool as_json);

// "1.50 MiB".
std::string HumanBytes(uint64_t bytes);

}  // namespace cfs

#endif  // CFS_CLI_REPORT_H_
