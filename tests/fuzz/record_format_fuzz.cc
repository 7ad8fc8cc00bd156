// Values and keys of the metadata store, and ACLs; the selector says which.
// What is taken is, byte for byte, what would be stored.
#include "cfs/base/check.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/record_format.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {
namespace {

enum Selector : char {
  kInode,
  kBucket,
  kDentry,
  kStoreState,
  kBacking,
  kAcl,
  kDentryKey,
  kQueueKey,
  kDoomedKey,
  kBackendIdentity,
  kBackendLinks,
  kDirtyName,
  kDirtyNameKey,
  kSelectors,
};

template <typename Record>
bool Check(const absl::StatusOr<Record>& record, absl::string_view input) {
  if (!record.ok()) return false;
  CFS_CHECK(Encode(*record) == input);
  return true;
}

bool CheckAcl(absl::StatusOr<Acl> acl, absl::string_view input) {
  if (!acl.ok()) return false;
  CFS_CHECK(acl->Encode() == input);
  const uint32_t mode = acl->ModeBits();
  CFS_CHECK((mode & ~0777u) == 0);
  acl->SetModeBits(mode);
  CFS_CHECK(acl->Encode() == input);
  CFS_CHECK((acl->InheritInto(0640) & ~0640u) == 0);
  CFS_CHECK(Acl::Parse(acl->Encode()).ok());
  return true;
}

}  // namespace

bool FuzzOne(absl::string_view input) {
  uint64_t hash;
  absl::string_view name;
  QueueKind kind;
  InodeId ino;
  BackingId number;
  switch (static_cast<Selector>(TakeSelector(&input) % kSelectors)) {
    case kInode:
      return Check(DecodeInode(input), input);
    case kBucket:
      return Check(DecodeBucket(input), input);
    case kDentry:
      return Check(DecodeDentry(input), input);
    case kStoreState:
      return Check(DecodeStoreState(input), input);
    case kBacking: {
      const auto backing = DecodeBacking(input);
      if (!backing.ok()) return false;
      CFS_CHECK(EncodeBacking(*backing) == input);
      return true;
    }
    case kAcl:
      return CheckAcl(Acl::Parse(input), input);
    case kDentryKey:
      if (!ParseDentryKey(input, &hash, &name)) return false;
      CFS_CHECK(!name.empty() && name.data() + name.size() == input.data() + input.size());
      return true;
    case kQueueKey:
      if (!ParseQueueKey(input, &kind, &ino)) return false;
      // The slot is not looked at again: it was part of what was searched for.
      CFS_CHECK(QueueKey(kind, ino).substr(2) == input.substr(2));
      return true;
    case kDoomedKey:
      if (!ParseDoomedKey(input, &number)) return false;
      CFS_CHECK(DoomedKey(number) == input);
      return true;
    case kBackendIdentity:
      return Check(DecodeBackendIdentity(input), input);
    case kBackendLinks:
      return Check(DecodeBackendLinks(input), input);
    case kDirtyName:
      return Check(DecodeDirtyName(input), input);
    case kDirtyNameKey:
      if (!ParseDirtyNameKey(input, &ino, &name)) return false;
      CFS_CHECK(!name.empty() && name.data() + name.size() == input.data() + input.size());
      return true;
    case kSelectors:
      break;
  }
  return false;
}

std::vector<std::string> FuzzSeeds() {
  InodeRecord inode;
  inode.mode = S_IFLNK | 0777;
  inode.target = "somewhere";
  InodeRecord striped;
  striped.layout = Layout::kStriped;
  striped.stripe_nodes = {NodeId{1}, NodeId{2}};
  // Version 2: user, a named user, group, mask, other.
  constexpr char kAclBytes[] =
      "\2\0\0\0"
      "\1\0\6\0\xff\xff\xff\xff"
      "\2\0\4\0\1\0\0\0"
      "\4\0\4\0\xff\xff\xff\xff"
      "\x10\0\4\0\xff\xff\xff\xff"
      "\x20\0\4\0\xff\xff\xff\xff";
  const std::string acl(kAclBytes, sizeof(kAclBytes) - 1);
  CFS_CHECK(Acl::Parse(acl).ok());
  std::vector<std::string> seeds;
  for (const auto& [selector, bytes] : {
           std::pair(kInode, Encode(inode)),
           {kInode, Encode(striped)},
           {kBucket, Encode(BucketRecord{.entries = 3})},
           {kDentry, Encode(DentryRecord{kRootInode, 4})},
           {kStoreState, Encode(StoreState())},
           {kBacking, EncodeBacking(BackingId{5})},
           {kAcl, acl},
           {kDentryKey, DentryKey(kRootInode, "name")},
           {kQueueKey, QueueKey(QueueKind::kOpen, kRootInode)},
           {kDoomedKey, DoomedKey(BackingId{6})},
           {kBackendIdentity, Encode(BackendIdentity{kRootInode, "name", {}, {}})},
           {kBackendLinks, Encode(BackendLinks{kRootInode, {{kRootInode, "a"}, {kRootInode, "b"}}})},
           {kDirtyName, Encode(DirtyName{.since = 7})},
           {kDirtyNameKey, DirtyNameKey(kRootInode, "name")},
       }) {
    seeds.push_back(std::string(1, selector) + bytes);
  }
  return seeds;
}

}  // namespace cfs
