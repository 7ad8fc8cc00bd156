#include "cfs/net/transport_ucx_context.h"

#include <dirent.h>
#include <ifaddrs.h>
#include <ucs/debug/log_def.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cfs/base/check.h"
#include "cfs/base/line_limit.h"
#include "cfs/base/log.h"

namespace cfs {
namespace {

ucs_log_func_rc_t UcxLog(const char*, unsigned, const char*, ucs_log_level_t level,
                         const ucs_log_component_config_t*, const char* format, va_list args) {
  static LineLimit limit;
  char text[512];
  vsnprintf(text, sizeof(text), format, args);
  // Of two names for a setting, UCX knows one and complains about the other.
  const bool expected = absl::StartsWith(text, "invalid configuration");
  if (level <= UCS_LOG_LEVEL_WARN && !expected) {
    limit.Log(LogLevel::kWarn, absl::StrCat("ucx: ", text));
  } else {
    LogDebug("ucx: ", text);
  }
  return UCS_LOG_FUNC_RC_STOP;
}

// The interface that has the address, and all RDMA devices; everything when no
// one interface has it. Left alone, UCX would also use those that lead nowhere.
std::string DevicesFor(const SocketAddress& address) {
  std::string devices = "all";
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return devices;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != address.storage.ss_family) continue;
    SocketAddress own;
    own.length = address.length;
    std::memcpy(&own.storage, i->ifa_addr, own.length);
    own.set_port(address.port());
    if (own.ToString() != address.ToString()) continue;
    // An alias is named eth0:1.
    const absl::string_view name = i->ifa_name;
    devices = std::string(name.substr(0, name.find(':')));
  }
  freeifaddrs(interfaces);
  constexpr char kRdma[] = "/sys/class/infiniband";
  DIR* const directory = devices == "all" ? nullptr : opendir(kRdma);
  if (directory == nullptr) return devices;
  while (const dirent* device = readdir(directory)) {
    DIR* const ports = device->d_name[0] == '.'
                           ? nullptr
                           : opendir(absl::StrCat(kRdma, "/", device->d_name, "/ports").c_str());
    if (ports == nullptr) continue;
    while (const dirent* port = readdir(ports)) {
      if (port->d_name[0] != '.') absl::StrAppend(&devices, ",", device->d_name, ":", port->d_name);
    }
    closedir(ports);
  }
  closedir(directory);
  return devices;
}

}  // namespace

absl::Status UcxError(absl::string_view what, ucs_status_t status) {
  return absl::UnavailableError(absl::StrCat(what, ": ", ucs_status_string(status)));
}

void TakeUcxLog() {
  static const bool taken = (ucs_log_push_handler(UcxLog), true);
  CFS_CHECK(taken);
}

absl::StatusOr<ucp_context_h> MakeUcxContext(const std::string& transports,
                                             const SocketAddress& listen) {
  const std::string devices = DevicesFor(listen);
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return UcxError("ucp_config_read", status);
  // Set here, so that a user's environment for MPI does not change them.
  const std::pair<const char*, const char*> settings[] = {
      {"TLS", transports.c_str()},
      {"NET_DEVICES", devices.c_str()},
      {"MAX_RNDV_RAILS", "1"},
      // Those of single transports: UCX 1.13 wants them without their prefix,
      // later ones with it.
      {"TX_SEG_SIZE", "64K"},
      {"TCP_TX_SEG_SIZE", "64K"},
      {"RX_SEG_SIZE", "128K"},
      {"TCP_RX_SEG_SIZE", "128K"},
      {"CONN_NB", "y"},
      {"TCP_CONN_NB", "y"},
      // Or shared memory is left out where errors of a peer are handled.
      {"MM_ERROR_HANDLING", "y"},
      {"POSIX_ERROR_HANDLING", "y"},
  };
  for (const auto& [name, value] : settings) {
    status = ucp_config_modify(config, name, value);
    if (status != UCS_OK) {
      ucp_config_release(config);
      return UcxError(absl::StrCat("UCX_", name, "=", value), status);
    }
  }
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  ucp_context_h context = nullptr;
  status = ucp_init(&params, config, &context);
  ucp_config_release(config);
  if (status != UCS_OK) return UcxError("ucp_init", status);
  return context;
}

// Only its report to people says so:
//     lane[0]: cm rdmacm
//     lane[1]:  2:posix/memory.0 md[2]  -> md[2]/posix/sysdev[255] am am_bw#0 keepalive
std::string TransportsOf(ucp_ep_h ep) {
  char* text = nullptr;
  size_t size = 0;
  FILE* const stream = open_memstream(&text, &size);
  CFS_CHECK(stream != nullptr);
  ucp_ep_print_info(ep, stream);
  fclose(stream);
  std::vector<absl::string_view> found;
  for (const absl::string_view line : absl::StrSplit(absl::string_view(text, size), '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const auto lane = std::find_if(words.begin(), words.end(), [](absl::string_view word) {
      return absl::StartsWith(word, "lane[");
    });
    if (words.end() - lane < 2) continue;
    const absl::string_view number_and_name = lane[1];
    const size_t colon = number_and_name.find(':');
    if (colon == absl::string_view::npos) continue;
    const absl::string_view name =
        number_and_name.substr(colon + 1, number_and_name.rfind('.') - colon - 1);
    const bool small = std::find(lane, words.end(), "am") != words.end();
    if (std::find(found.begin(), found.end(), name) == found.end()) {
      found.insert(small ? found.begin() : found.end(), name);
    }
  }
  std::string names = absl::StrJoin(found, ",");
  free(text);
  return names;
}

}  // namespace cfs
