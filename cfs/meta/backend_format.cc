#include "cfs/meta/backend_format.h"

#include <utility>

#include "cfs/base/clock.h"
#include "cfs/base/coding.h"
#include "cfs/meta/record_format.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

constexpr uint8_t kVersion = 1;
// As those of dentries, but for the kind.
constexpr size_t kKindAt = 2;
constexpr size_t kInodeAt = kKindAt + 1;
constexpr size_t kNameAt = kInodeAt + 8 + 8;

void AppendStamp(std::string* out, const BackendStamp& stamp) {
  AppendLittle(out, stamp.number);
  AppendLittle(out, stamp.size);
  AppendTime(out, stamp.mtime);
  AppendTime(out, stamp.ctime);
}

bool ConsumeStamp(absl::string_view* in, BackendStamp* stamp) {
  return ConsumeLittle(in, &stamp->number) && ConsumeLittle(in, &stamp->size) &&
         ConsumeTime(in, &stamp->mtime) && ConsumeTime(in, &stamp->ctime);
}

}  // namespace

bool BackendStamp::operator==(const BackendStamp& other) const {
  return number == other.number && size == other.size && mtime == other.mtime &&
         ctime == other.ctime;
}

std::string Encode(const BackendIdentity& identity) {
  std::string out(1, static_cast<char>(kVersion));
  out.reserve(1 + 8 + 8 + 8 + 3 * 12 + 2 + identity.name.size());
  AppendLittle(&out, Raw(identity.dir));
  AppendStamp(&out, identity.stamp);
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
  if (version == 0 || !ConsumeLittle(&in, &dir) || !ConsumeStamp(&in, &identity.stamp) ||
      !ConsumeTime(&in, &identity.clean_ctime) || !ConsumeSized<uint16_t>(&in, &identity.name) ||
      !in.empty()) {
    return absl::DataLossError("backend identity: malformed");
  }
  identity.dir = InodeId(dir);
  return identity;
}

std::string Encode(const DirtyName& mark) {
  std::string out(1, static_cast<char>(kVersion));
  AppendLittle(&out, mark.since);
  AppendLittle(&out, Raw(mark.base));
  AppendStamp(&out, mark.stamp);
  AppendLittle(&out, Raw(mark.next));
  AppendLittle(&out, mark.next_number);
  return out;
}

absl::StatusOr<DirtyName> DecodeDirtyName(absl::string_view in) {
  DirtyName mark;
  uint64_t base, next;
  uint8_t version;
  if (!ConsumeLittle(&in, &version)) return absl::DataLossError("dirty name: empty");
  if (version > kVersion) return absl::UnimplementedError("dirty name: newer than this program");
  if (version == 0 || !ConsumeLittle(&in, &mark.since) || !ConsumeLittle(&in, &base) ||
      !ConsumeStamp(&in, &mark.stamp) || !ConsumeLittle(&in, &next) ||
      !ConsumeLittle(&in, &mark.next_number) || !in.empty()) {
    return absl::DataLossError("dirty name: malformed");
  }
  mark.base = InodeId(base);
  mark.next = InodeId(next);
  return mark;
}

std::string DirtyNameKey(InodeId dir, absl::string_view name) {
  std::string key = DentryKey(dir, name);
  key[kKindAt] = 'm';
  return key;
}

bool ParseDirtyNameKey(absl::string_view key, InodeId* dir, absl::string_view* name) {
  if (key.size() <= kNameAt || key[kKindAt] != 'm') return false;
  *dir = InodeOfKey(key);
  *name = key.substr(kNameAt);
  return true;
}

std::string Encode(const BackendLinks& links) {
  std::string out(1, static_cast<char>(kVersion));
  AppendLittle(&out, Raw(links.ino));
  for (const BackendLinks::Place& place : links.places) {
    AppendLittle(&out, Raw(place.dir));
    AppendSized<uint16_t>(&out, place.name);
  }
  return out;
}

absl::StatusOr<BackendLinks> DecodeBackendLinks(absl::string_view in) {
  BackendLinks links;
  uint64_t ino, dir;
  uint8_t version;
  if (!ConsumeLittle(&in, &version)) return absl::DataLossError("backend links: empty");
  if (version > kVersion) return absl::UnimplementedError("backend links: newer than this program");
  if (version == 0 || !ConsumeLittle(&in, &ino)) {
    return absl::DataLossError("backend links: malformed");
  }
  links.ino = InodeId(ino);
  while (!in.empty()) {
    BackendLinks::Place place;
    if (!ConsumeLittle(&in, &dir) || !ConsumeSized<uint16_t>(&in, &place.name)) {
      return absl::DataLossError("backend links: malformed");
    }
    place.dir = InodeId(dir);
    links.places.push_back(std::move(place));
  }
  return links;
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
