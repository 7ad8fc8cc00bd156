#include "cfs/server/cluster_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/unique_fd.h"
#include "cfs/net/address.h"
#include "cfs/ring/cluster_map_format.h"
#include "cfs/server/control.h"
#include "cfs/server/small_file.h"

namespace cfs {
namespace {

constexpr uint64_t kFormat = 1;
constexpr char kMemoryName[] = "cluster.json", kMapName[] = "cluster.map";

absl::Status Write(const std::string& store, const char* name, absl::string_view contents) {
  const UniqueFd directory(open(store.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const int err = directory.valid() ? WriteAtomically(directory.get(), name, contents) : errno;
  return err == 0 ? absl::OkStatus() : ErrnoStatus(err, absl::StrCat("write ", store, "/", name));
}

// Nothing where the file is missing.
absl::StatusOr<std::optional<std::string>> Read(const std::string& store, const char* name) {
  const std::string path = absl::StrCat(store, "/", name);
  if (access(path.c_str(), F_OK) != 0) {
    if (errno == ENOENT) return std::optional<std::string>();
    return ErrnoStatus(path);
  }
  return std::optional<std::string>(ReadSmallFile(AT_FDCWD, path, kMapBytesMax));
}

absl::Status In(const std::string& store, const char* name, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(store, "/", name, ": ", status.message()));
}

}  // namespace

std::string HexOf(const ClusterId& cluster) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(cluster.data()), cluster.size()));
}

ClusterId ClusterIdOf(absl::string_view hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  ClusterId cluster = {};
  CFS_CHECK(bytes.size() == cluster.size());
  std::copy(bytes.begin(), bytes.end(), cluster.begin());
  return cluster;
}

std::string EncodeClusterMemory(const ClusterMemory& memory) {
  const nlohmann::ordered_json json = {
      {"format", kFormat},         {"token", FormatToken(memory.token)},
      {"founder", memory.founder}, {"member", memory.member},
      {"listen", memory.listen},   {"address", memory.address},
      {"weight", memory.weight}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<ClusterMemory> DecodeClusterMemory(absl::string_view text) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  const absl::Status damaged =
      absl::DataLossError("damaged; restore it from a backup or choose another --store");
  if (!json.is_object()) return damaged;
  const uint64_t format = UintMember(json, "format");
  if (format > kFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("its format ", format, " is newer than this cfs knows (", kFormat,
                     "); use the cfs that wrote it, or a newer one"));
  }
  for (const char* name : {"founder", "member"}) {
    if (!json.contains(name) || !json[name].is_boolean()) return damaged;
  }
  if (!json.contains("weight") || !json["weight"].is_number_unsigned()) return damaged;
  const uint64_t weight = UintMember(json, "weight");
  auto token = ParseToken(StringMember(json, "token"));
  ClusterMemory memory;
  memory.founder = BoolMember(json, "founder");
  memory.member = BoolMember(json, "member");
  memory.listen = StringMember(json, "listen");
  memory.address = StringMember(json, "address");
  memory.weight = static_cast<uint32_t>(weight);
  if (format == 0 || weight > kNodeWeightMax || !token.ok() ||
      (!memory.listen.empty() && !SplitAddress(memory.listen).ok()) ||
      (!memory.address.empty() && !SplitAddress(memory.address).ok())) {
    return damaged;
  }
  memory.token = *std::move(token);
  return memory;
}

absl::StatusOr<std::optional<ClusterMemory>> ReadClusterMemory(const std::string& store) {
  CFS_ASSIGN_OR_RETURN(const std::optional<std::string> text, Read(store, kMemoryName));
  if (!text) return std::optional<ClusterMemory>();
  auto memory = DecodeClusterMemory(*text);
  if (!memory.ok()) return In(store, kMemoryName, memory.status());
  return std::optional<ClusterMemory>(*std::move(memory));
}

absl::Status WriteClusterMemory(const std::string& store, const ClusterMemory& memory) {
  return Write(store, kMemoryName, EncodeClusterMemory(memory));
}

absl::Status RemoveClusterMemory(const std::string& store) {
  const std::string path = absl::StrCat(store, "/", kMemoryName);
  return unlink(path.c_str()) == 0 || errno == ENOENT ? absl::OkStatus() : ErrnoStatus(path);
}

absl::StatusOr<ClusterMapPtr> ReadStoredMap(const std::string& store, const ClusterId& cluster) {
  CFS_ASSIGN_OR_RETURN(const std::optional<std::string> bytes, Read(store, kMapName));
  if (!bytes) return ClusterMapPtr();
  auto map = DecodeMap(*bytes);
  if (map.ok() && (*map)->cluster() != cluster) {
    map = absl::DataLossError("cluster map: this is of another cluster");
  }
  if (!map.ok()) return In(store, kMapName, map.status());
  return *std::move(map);
}

absl::Status WriteStoredMap(const std::string& store, const ClusterMap& map) {
  return Write(store, kMapName, EncodeMap(map));
}

}  // namespace cfs
