#include "cfs/meta/backend_format.h"

#include "cfs/base/clock.h"
#include "cfs/base/coding.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

constexpr uint8_t kVersion = 1;

}  // namespace

bool BackendStamp::operator==(const BackendStamp& other) const {
  return number == other.number && size == other.size && mtime == other.mtime &&
         ctime == other.ctime;
}

std::string Encode(const BackendIdentity& identity) {
  std::string out(1, static_cast<char>(kVersion));
  out.reserve(1 + 8 + 8 + 8 + 3 * 12 + 2 + identity.name.size());
  AppendLittle(&out, Raw(identity.dir));
  AppendLittle(&out, identity.stamp.number);
  AppendLittle(&out, identity.stamp.size);
  AppendTime(&out, identity.stamp.mtime);
  AppendTime(&out, identity.stamp.ctime);
  AppendTime(&out, identity.clean_ctime);
  AppendSized<uint16_t>(&out, identity.name);
  return out;
}

absl::StatusOr<BackendIdentity> DecodeBackendIdentity(absl::string_view in) {
  BackendIdentity identity;
  uint64_t dir;
  uint8_t version;
  if (!ConsumeLittle(&in, &version)) return absl::DataLossError("backend identity: empty");
  if (version > kVersion) {
    return absl::UnimplementedError("backend identity: newer than this program");
  }
  if (version == 0 || !ConsumeLittle(&in, &dir) || !ConsumeLittle(&in, &identity.stamp.number) ||
      !ConsumeLittle(&in, &identity.stamp.size) || !ConsumeTime(&in, &identity.stamp.mtime) ||
      !ConsumeTime(&in, &identity.stamp.ctime) || !ConsumeTime(&in, &identity.clean_ctime) ||
      !ConsumeSized<uint16_t>(&in, &identity.name) || !in.empty()) {
    return absl::DataLossError("backend identity: malformed");
  }
  identity.dir = InodeId(dir);
  return identity;
}

std::string BackendLinkKey(uint64_t number) {
  std::string bytes, key;
  AppendBig(&bytes, number);
  AppendBig(&key, static_cast<uint16_t>(Hash64(bytes)));
  key.push_back('y');
  key += bytes;
  return key;
}

}  // namespace cfs
