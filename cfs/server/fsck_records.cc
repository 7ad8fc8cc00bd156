// The metadata, for CheckStores.
#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/acl.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/namespace.h"
#include "cfs/ring/hash.h"
#include "cfs/server/fsck_internal.h"

namespace cfs {
namespace {

constexpr size_t kKindAt = 2, kInodeEnd = 11;  // Behind the slot; behind the number.

uint8_t TypeOf(uint32_t mode) { return static_cast<uint8_t>(IFTODT(mode)); }

absl::string_view TypeName(uint8_t type) {
  switch (type) {
    case DT_REG:
      return "a regular file";
    case DT_DIR:
      return "a directory";
    case DT_LNK:
      return "a symbolic link";
    case DT_CHR:
      return "a character device";
    case DT_BLK:
      return "a block device";
    case DT_FIFO:
      return "a FIFO";
    case DT_SOCK:
      return "a socket";
    default:
      return "of no known type";
  }
}

}  // namespace

// ---------------------------------------------------- one slot after the other

// In a slot come first its buckets, then dentries, inodes and xattrs; what has to
// agree among these is looked at while they pass.
class Fsck::SlotRecords {
 public:
  SlotRecords(Fsck* fsck, const FsckStore* store) : fsck_(fsck), store_(store) {}

  void Visit(absl::string_view key, absl::string_view value) {
    const absl::Status status = Take(key, value);
    if (status.ok()) return;
    const Subject subject = key.size() < kInodeEnd ? Of(*store_) : Inode(InodeOfKey(key));
    fsck_->Error("malformed record", subject, std::string(status.message()));
  }

  void Finish() {
    for (const auto& [dir, bucket] : buckets_) {
      fsck_->Error("stray bucket", Inode(dir), "a bucket of what is no directory");
    }
    for (const auto& [dir, count] : counted_) {
      fsck_->Error("stray names", Inode(dir),
                   absl::StrCat("it has ", count.entries, " names and is no directory"));
    }
    for (const auto& [ino, found] : found_) {
      if (!expected_.contains(ino)) CheckXattrs(ino, {}, found);
    }
    for (const auto& [ino, expected] : expected_) {
      const auto it = found_.find(ino);
      CheckXattrs(ino, expected, it == found_.end() ? Xattrs() : it->second);
    }
    buckets_.clear();
    counted_.clear();
    found_.clear();
    expected_.clear();
    first_inode_ = fsck_->inodes_.size();
  }

 private:
  struct Count {
    uint64_t entries = 0, subdirs = 0;
  };
  struct Xattrs {
    uint64_t list_bytes = 0;
    uint32_t flags = 0;  // Those that tell of xattrs.
  };
  static constexpr uint32_t kAclFlags = kHasAccessAcl | kHasDefaultAcl;

  absl::Status Take(absl::string_view key, absl::string_view value) {
    if (key.size() < kInodeEnd) return absl::DataLossError("a record with a short key");
    const InodeId ino = InodeOfKey(key);
    if (key[kKindAt] == 'y') {
      if (BackendLinkKey(Raw(ino)) != key) return absl::DataLossError("a link's malformed key");
      return DecodeBackendLinks(value).status();
    }
    if (SlotOf(ino) != SlotOfKey(key)) {
      return absl::DataLossError(absl::StrCat("a record in slot ", Raw(SlotOfKey(key))));
    }
    uint64_t hash;
    absl::string_view name;
    switch (key[kKindAt]) {
      case 'b': {
        if (!IsBucketKey(key)) break;
        CFS_ASSIGN_OR_RETURN(const BucketRecord bucket, DecodeBucket(value));
        buckets_[ino].entries += bucket.entries;
        buckets_[ino].subdirs += bucket.subdirs;
        return absl::OkStatus();
      }
      case 'd': {
        if (!ParseDentryKey(key, &hash, &name)) break;
        if (Hash64(name) != hash) return absl::DataLossError("a name under the hash of another");
        CFS_RETURN_IF_ERROR(CheckName(name));
        CFS_ASSIGN_OR_RETURN(const DentryRecord dentry, DecodeDentry(value));
        Count& count = counted_[ino];
        ++count.entries;
        if (dentry.type == DT_DIR) ++count.subdirs;
        fsck_->names_.push_back(
            {dentry.ino, ino, (hash & ~FsckName::kTypeMask) | (dentry.type & FsckName::kTypeMask)});
        return absl::OkStatus();
      }
      case 'i': {
        if (!IsInodeKey(key)) break;
        CFS_ASSIGN_OR_RETURN(const InodeRecord record, DecodeInode(value));
        fsck_->AddInode(*store_, ino, record);
        if (record.xattr_list_bytes > 0 || (record.flags & kAclFlags) != 0) {
          expected_[ino] = {record.xattr_list_bytes, record.flags & kAclFlags};
        }
        if (record.IsDirectory()) CheckDirectory(ino, record);
        return absl::OkStatus();
      }
      case 'x': {
        Xattrs& found = found_[ino];
        const absl::string_view xattr = key.substr(kInodeEnd);
        found.list_bytes += xattr.size() + 1;
        if (xattr == kAccessAclXattr) found.flags |= kHasAccessAcl;
        if (xattr == kDefaultAclXattr) found.flags |= kHasDefaultAcl;
        return absl::OkStatus();
      }
    }
    return absl::DataLossError("a record with an unknown key");
  }

  void CheckDirectory(InodeId ino, const InodeRecord& record) {
    Count bucket, count;
    if (const auto it = buckets_.find(ino); it != buckets_.end()) {
      bucket = it->second;
      buckets_.erase(it);
    }
    if (const auto it = counted_.find(ino); it != counted_.end()) {
      count = it->second;
      counted_.erase(it);
    }
    if (const auto it = store_->decided_counts.find(ino); it != store_->decided_counts.end()) {
      bucket.entries += static_cast<uint64_t>(it->second.first);
      bucket.subdirs += static_cast<uint64_t>(it->second.second);
    }
    // Not complete, and seen by nobody.
    if (record.flags & kNotImported) return;
    if (bucket.entries != count.entries || bucket.subdirs != count.subdirs) {
      fsck_->Error("wrong bucket", Inode(ino),
                   absl::StrCat("it has ", count.entries, " entries, ", count.subdirs,
                                " of them directories, and its bucket counts ", bucket.entries,
                                " and ", bucket.subdirs));
    }
    if (record.nlink == 0 && count.entries > 0) {
      fsck_->Error("stray names", Inode(ino), "a removed directory that is not empty");
    }
  }

  void CheckXattrs(InodeId ino, const Xattrs& expected, const Xattrs& found) {
    if (expected.list_bytes == found.list_bytes && expected.flags == found.flags) return;
    const auto begin = fsck_->inodes_.begin() + static_cast<ptrdiff_t>(first_inode_);
    const auto it = std::ranges::lower_bound(begin, fsck_->inodes_.end(), ino, {}, &FsckInode::ino);
    if (it == fsck_->inodes_.end() || it->ino != ino) {
      fsck_->Error("stray xattrs", Inode(ino), "xattrs of an inode that is missing");
    } else if (expected.list_bytes != found.list_bytes) {
      fsck_->Error("wrong xattr count", Inode(ino),
                   absl::StrCat("its xattrs list as ", found.list_bytes,
                                " bytes, and its record counts ", expected.list_bytes));
    } else {
      fsck_->Error("wrong ACL flags", Inode(ino), "its flags and its ACLs do not agree");
    }
  }

  Fsck* const fsck_;
  const FsckStore* const store_;
  size_t first_inode_ = 0;  // Of this slot.
  absl::flat_hash_map<InodeId, Count> buckets_, counted_;
  absl::flat_hash_map<InodeId, Xattrs> expected_, found_;
};

absl::Status Fsck::Scan(const FsckStore& store, Family family, const Visit& visit) {
  const auto& decided = store.decided[static_cast<size_t>(family)];
  auto next = decided.begin();
  const auto visit_until = [&](absl::string_view key) {
    for (; next != decided.end() && next->first < key; ++next) {
      if (next->second) visit(next->first, *next->second);
    }
  };
  CFS_RETURN_IF_ERROR(
      store.meta->Scan(family, "", "", [&](absl::string_view key, absl::string_view value) {
        visit_until(key);
        if (next == decided.end() || next->first != key) visit(key, value);
        return true;
      }));
  for (; next != decided.end(); ++next) {
    if (next->second) visit(next->first, *next->second);
  }
  return absl::OkStatus();
}

absl::Status Fsck::ReadRecords(FsckStore* store) {
  SlotRecords records(this, store);
  uint64_t left_over = 0;
  std::optional<Slot> slot;
  CFS_RETURN_IF_ERROR(
      Scan(*store, Family::kRecords, [&](absl::string_view key, absl::string_view value) {
        if (key.size() <= kKindAt) return records.Visit(key, value);
        if (OwnerOf(SlotOfKey(key)) != store) {
          ++left_over;
          return;
        }
        if (slot != SlotOfKey(key)) records.Finish();
        slot = SlotOfKey(key);
        records.Visit(key, value);
      }));
  records.Finish();
  if (left_over > 0) {
    Note("left over", Of(*store),
         absl::StrCat("it has ", left_over, " records of slots that are another node's"));
  }
  return absl::OkStatus();
}

void Fsck::AddInode(const FsckStore& owner, InodeId ino, const InodeRecord& record) {
  const uint8_t type = TypeOf(record.mode);
  inodes_.push_back({ino, record.IsDirectory() ? record.parent : kNoInode, record.nlink, type,
                     !record.backend_identity.empty()});
  if (record.nlink == 0) unlinked_.push_back(ino);
  if (TypeName(type) == TypeName(DT_UNKNOWN)) {
    Error("wrong mode", Inode(ino), absl::StrCat("its mode is that of no file: ", record.mode));
  }
  if (!record.IsRegular()) return;
  if (record.layout == Layout::kBackend) {
    const auto identity = DecodeBackendIdentity(record.backend_identity);
    if (!identity.ok()) Error("malformed record", Inode(ino), std::string(identity.status().message()));
    return;
  }
  if (record.layout != Layout::kWhole || record.backing == kNoBacking) {
    return Error("no backing file", Inode(ino), "its record names no backing file");
  }
  if (const auto home = by_node_.find(record.home); home != by_node_.end()) {
    return home->second->uses.push_back({record.backing, ino});
  }
  const ClusterNode* const node = map_ == nullptr ? nullptr : map_->Find(record.home);
  if (node == nullptr) {
    Error("unknown home", Inode(ino),
          absl::StrCat("its home is node ", Raw(record.home), ", which is not there; its owner is ",
                       Raw(owner.dir.identity.node_id)));
  } else if (IsGone(node->state)) {
    Note("lost data", Inode(ino), absl::StrCat("its home, node ", Raw(node->id), ", is lost"));
  }
}

// ---------------------------------------------------------------------- queue

absl::Status Fsck::ReadTransactions() {
  struct Prepared {
    FsckStore* store;
    TransactionId id;
    TransactionPart part;
  };
  std::vector<Prepared> prepared;
  std::set<TransactionId> committed;
  for (FsckStore& store : stores_) {
    if (store.meta == nullptr) continue;
    CFS_RETURN_IF_ERROR(store.meta->Scan(
        Family::kQueue, "", "", [&](absl::string_view key, absl::string_view value) {
          Slot slot;
          TransactionId id;
          if (key.size() <= kKindAt || OwnerOf(SlotOfKey(key)) != &store) return true;
          absl::Status malformed;
          if (ParsePreparedKey(key, &slot, &id)) {
            auto part = DecodeTransactionPart(value);
            malformed = part.status();
            if (part.ok()) prepared.push_back({&store, id, *std::move(part)});
          } else if (ParseOutcomeKey(key, &id)) {
            malformed = DecodeNodes(value).status();
            committed.insert(id);
            Note("outcome", Of(store),
                 absl::StrCat("transaction ", id.sequence, " of node ", Raw(id.node),
                              " is committed, and not everywhere for certain"));
          }
          if (!malformed.ok()) {
            Error("malformed record", Of(store), std::string(malformed.message()));
          }
          return true;
        }));
  }
  for (Prepared& each : prepared) {
    const bool done = committed.contains(each.id);
    const std::string what =
        absl::StrCat("transaction ", each.id.sequence, " of node ", Raw(each.id.node),
                     " is prepared", done ? ", and committed elsewhere" : "");
    if (strict_) {
      Error("prepared", Of(*each.store), what);
    } else {
      Note("prepared", Of(*each.store), what);
    }
    if (!done) continue;
    // As the next start does it.
    for (const WriteSet::Write& write : each.part.writes.writes()) {
      auto& value = each.store->decided[static_cast<size_t>(write.family)][write.key];
      value.reset();
      if (!write.is_delete) value = write.value;
    }
    for (const TransactionPart::Count& count : each.part.counts) {
      auto& [entries, subdirs] = each.store->decided_counts[count.dir];
      entries += count.entries;
      subdirs += count.subdirs;
    }
  }
  return absl::OkStatus();
}

absl::Status Fsck::ReadQueue(FsckStore* store) {
  return Scan(*store, Family::kQueue, [&](absl::string_view key, absl::string_view value) {
    if (key.size() > kKindAt && OwnerOf(SlotOfKey(key)) != store) return;
    QueueKind kind;
    InodeId ino;
    Slot slot;
    RequestId request;
    TransactionId transaction;
    absl::string_view name;
    absl::Status malformed;
    if (ParseQueueKey(key, &kind, &ino)) {
      malformed = DecodeBacking(value).status();
      if (SlotOf(ino) != SlotOfKey(key)) malformed = absl::DataLossError("queue: in a wrong slot");
      if (kind == QueueKind::kOrphan) {
        orphans_.push_back(ino);
      } else if (kind == QueueKind::kOpen) {
        marked_.push_back(ino);
      } else if (kind == QueueKind::kStaged || kind == QueueKind::kDirty ||
                 kind == QueueKind::kPending) {
        // What they say, only the backend can tell.
      } else {
        malformed = absl::DataLossError("queue: unknown key");
      }
    } else if (ParseDirtyNameKey(key, &ino, &name)) {
      malformed = DecodeDirtyName(value).status();
    } else if (ParseReplyKey(key, &slot, &request)) {
      malformed = DecodeInodeNumber(value).status();
    } else if (!ParsePreparedKey(key, &slot, &transaction) && !ParseOutcomeKey(key, &transaction)) {
      malformed = absl::DataLossError("queue: unknown key");
    }
    if (!malformed.ok()) {
      Error("malformed record", Of(*store), std::string(malformed.message()));
    }
  });
}

void Fsck::CheckQueue() {
  std::ranges::sort(orphans_);
  std::ranges::sort(unlinked_);
  std::vector<InodeId> wrong;
  std::ranges::set_difference(unlinked_, orphans_, std::back_inserter(wrong));
  for (const InodeId ino : wrong) {
    Error("orphan not queued", Inode(ino), "it has no links, and is not queued to be removed");
  }
  wrong.clear();
  std::ranges::set_difference(orphans_, unlinked_, std::back_inserter(wrong));
  for (const InodeId ino : wrong) {
    Error("wrong orphan", Inode(ino),
          Find(ino) == nullptr ? "it is queued to be removed, and is not there"
                               : "it is queued to be removed, and has links");
  }
  for (const InodeId ino : marked_) {
    if (Find(ino) != nullptr) continue;
    Error("stray open mark", Inode(ino), "it is marked as open, and is not there");
  }
}

// ---------------------------------------------------------------------- names

FsckInode* Fsck::Find(InodeId ino) {
  const auto it = std::ranges::lower_bound(inodes_, ino, {}, &FsckInode::ino);
  return it == inodes_.end() || it->ino != ino ? nullptr : &*it;
}

void Fsck::CheckNames() {
  const FsckStore* const root = OwnerOf(SlotOf(kRootInode));
  if (root != nullptr && root->meta != nullptr && Find(kRootInode) == nullptr) {
    Error("no root", Inode(kRootInode), "the root directory is missing");
  }
  auto name = names_.begin();
  // Those of inodes before `ino`.
  const auto check_missing = [&](auto end) {
    for (; name != end; ++name) {
      if (OwnerOf(SlotOf(name->child)) == nullptr) continue;
      Loss("missing inode", Inode(name->dir),
           absl::StrCat("its entry ", NameOf(*name), " is inode ", Raw(name->child),
                        ", which is missing"));
    }
  };
  for (FsckInode& inode : inodes_) {
    check_missing(
        std::find_if(name, names_.end(), [&](const FsckName& n) { return n.child >= inode.ino; }));
    const auto end =
        std::find_if(name, names_.end(), [&](const FsckName& n) { return n.child != inode.ino; });
    const FsckName* const begin = names_.data() + (name - names_.begin());
    CheckInode(&inode, begin, begin + (end - name));
    name = end;
  }
  check_missing(names_.end());
}

void Fsck::CheckInode(FsckInode* inode, const FsckName* begin, const FsckName* end) {
  const uint64_t names = static_cast<uint64_t>(end - begin);
  for (const FsckName* name = begin; name != end; ++name) {
    if (name->type() == inode->type) continue;
    Error("wrong type", Inode(inode->ino),
          absl::StrCat("it is ", TypeName(inode->type), ", and its name ", NameOf(*name),
                       " in inode ", Raw(name->dir), " says ", TypeName(name->type())));
  }
  if (inode->ino == kRootInode) {
    if (inode->type != DT_DIR || inode->nlink != 1 || inode->parent != kRootInode || names > 0) {
      Error("no root", Inode(inode->ino), "the root is not what it should be");
    }
    return;
  }
  // A directory's record counts its name; its subdirectories are in its bucket.
  const bool wrong_links = inode->type == DT_DIR && inode->nlink > 1;
  // Other names may be in directories of the backend that nobody has looked at.
  const bool too_few = names < inode->nlink && complete_ && !inode->on_backend;
  if (wrong_links || names > inode->nlink || too_few) {
    Loss("wrong nlink", Inode(inode->ino),
         absl::StrCat("it has ", names, names == 1 ? " name" : " names", ", and its record counts ",
                      inode->nlink));
  }
  if (inode->type != DT_DIR) return;
  if (names == 1 && begin->dir != inode->parent) {
    Loss("wrong parent", Inode(inode->ino),
         absl::StrCat("it is in inode ", Raw(begin->dir), ", and its record says ",
                      Raw(inode->parent)));
  }
  if (names > 0) inode->parent = begin->dir;
}

// Where each directory has its one name, what cannot be reached from the root is in
// a cycle, or below one.
void Fsck::CheckReachable() {
  enum : uint8_t { kUnknown, kOnTheWay, kDone };
  std::vector<uint8_t> states(inodes_.size(), kUnknown);
  std::vector<size_t> way;
  for (size_t i = 0; i < inodes_.size(); ++i) {
    if (inodes_[i].type != DT_DIR || inodes_[i].nlink == 0) continue;
    for (size_t at = i; states[at] == kUnknown;) {
      states[at] = kOnTheWay;
      way.push_back(at);
      if (inodes_[at].ino == kRootInode) break;
      const FsckInode* const parent = Find(inodes_[at].parent);
      if (parent == nullptr) break;  // Told before, or in a store that is missing.
      at = static_cast<size_t>(parent - inodes_.data());
      if (states[at] == kOnTheWay) {
        Error("cycle", Inode(inodes_[at].ino), "the directory is below itself");
      }
    }
    for (const size_t at : way) states[at] = kDone;
    way.clear();
  }
}

std::string Fsck::NameOf(const FsckName& name) {
  std::string found = "?";
  FsckStore* const store = OwnerOf(SlotOf(name.dir));
  const uint64_t hash = name.hash_and_type & ~FsckName::kTypeMask;
  store->meta
      ->Scan(Family::kRecords, DentrySeekKey(name.dir, hash), DentryPrefix(name.dir),
             [&](absl::string_view key, absl::string_view value) {
               uint64_t at;
               absl::string_view text;
               if (!ParseDentryKey(key, &at, &text) || (at & ~FsckName::kTypeMask) != hash) {
                 return false;
               }
               const auto dentry = DecodeDentry(value);
               if (!dentry.ok() || dentry->ino != name.child) return true;
               found = absl::Utf8SafeCHexEscape(text);
               return false;
             })
      .IgnoreError();  // It was read before.
  return found;
}

std::string Fsck::PathOf(InodeId ino) {
  if (ino == kRootInode) return "/";
  std::string path;
  // More than any path that somebody could use.
  for (size_t depth = 0; ino != kRootInode && depth < kFsckPathNamesMax; ++depth) {
    const auto name = std::ranges::lower_bound(names_, ino, {}, &FsckName::child);
    if (name == names_.end() || name->child != ino) return path.empty() ? "" : "..." + path;
    path = absl::StrCat("/", NameOf(*name), path);
    ino = name->dir;
  }
  return ino == kRootInode ? path : "..." + path;
}

}  // namespace cfs
