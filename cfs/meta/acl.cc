#include "cfs/meta/acl.h"

#include <tuple>

#include "cfs/base/coding.h"

namespace cfs {
namespace {

constexpr uint32_t kXattrVersion = 2;
constexpr size_t kEntriesMax = (64 << 10) / 8;

}  // namespace

absl::StatusOr<Acl> Acl::Parse(absl::string_view in) {
  const absl::Status malformed = absl::InvalidArgumentError("malformed ACL");
  uint32_t version;
  if (!ConsumeLittle(&in, &version) || version != kXattrVersion) return malformed;
  if (in.size() % 8 != 0 || in.size() / 8 > kEntriesMax) return malformed;
  Acl acl;
  uint32_t seen = 0;
  while (!in.empty()) {
    Entry e;
    if (!ConsumeLittle(&in, &e.tag) || !ConsumeLittle(&in, &e.perm) || !ConsumeLittle(&in, &e.id)) {
      return malformed;
    }
    const bool named = e.tag == kUser || e.tag == kGroup;
    const bool known = named || e.tag == kUserObj || e.tag == kGroupObj || e.tag == kMask ||
                       e.tag == kOther;
    if (!known || e.perm > 7) return malformed;
    if (!named && (seen & e.tag)) return malformed;
    if (!acl.entries_.empty()) {
      // Sorted by tag; named entries strictly by id.
      const Entry& last = acl.entries_.back();
      if (e.tag < last.tag || (named && e.tag == last.tag && e.id <= last.id)) return malformed;
    }
    seen |= e.tag;
    acl.entries_.push_back(e);
  }
  constexpr uint32_t kRequired = kUserObj | kGroupObj | kOther;
  if ((seen & kRequired) != kRequired) return malformed;
  if ((seen & (kUser | kGroup)) && !(seen & kMask)) return malformed;
  return acl;
}

std::string Acl::Encode() const {
  std::string out;
  AppendLittle(&out, kXattrVersion);
  for (const Entry& e : entries_) {
    AppendLittle(&out, e.tag);
    AppendLittle(&out, e.perm);
    AppendLittle(&out, e.id);
  }
  return out;
}

Acl::Entry* Acl::Find(Tag tag) {
  for (Entry& e : entries_) {
    if (e.tag == tag) return &e;
  }
  return nullptr;
}

const Acl::Entry* Acl::Find(Tag tag) const { return const_cast<Acl*>(this)->Find(tag); }

bool Acl::IsMinimal() const { return entries_.size() == 3; }

uint32_t Acl::ModeBits() const {
  const Entry* mask = Find(kMask);
  const Entry* group = mask != nullptr ? mask : Find(kGroupObj);
  return (uint32_t{Find(kUserObj)->perm} << 6) | (uint32_t{group->perm} << 3) |
         Find(kOther)->perm;
}

void Acl::SetModeBits(uint32_t mode) {
  Find(kUserObj)->perm = (mode >> 6) & 7;
  Entry* mask = Find(kMask);
  (mask != nullptr ? mask : Find(kGroupObj))->perm = (mode >> 3) & 7;
  Find(kOther)->perm = mode & 7;
}

uint32_t Acl::InheritInto(uint32_t mode) {
  Find(kUserObj)->perm &= (mode >> 6) & 7;
  Entry* mask = Find(kMask);
  (mask != nullptr ? mask : Find(kGroupObj))->perm &= (mode >> 3) & 7;
  Find(kOther)->perm &= mode & 7;
  return (mode & ~0777u) | ModeBits();
}

}  // namespace cfs
