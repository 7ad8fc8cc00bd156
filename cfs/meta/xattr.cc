#include "cfs/meta/xattr.h"

#include <sys/stat.h>
#include <sys/xattr.h>

#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/acl.h"

namespace cfs {
namespace {

absl::Status CheckXattrName(absl::string_view name) {
  if (name.size() > kXattrNameBytesMax) return PosixError(ERANGE);
  for (absl::string_view prefix : {"user.", "trusted.", "security."}) {
    if (absl::StartsWith(name, prefix)) {
      return name.size() > prefix.size() ? absl::OkStatus() : PosixError(EINVAL);
    }
  }
  if (name == kAccessAclXattr || name == kDefaultAclXattr) return absl::OkStatus();
  return PosixError(EOPNOTSUPP);
}

constexpr char kCapabilityXattr[] = "security.capability";
constexpr uint32_t kFlushSecondsMax = 7 * 24 * 3600;

// Of those that mean something to cfs.
absl::Status CheckXattrValue(const InodeRecord& record, absl::string_view name,
                             absl::string_view value) {
  if (name == kPlacementXattr) {
    if (!record.IsDirectory()) return PosixError(ENOTDIR);
    if (value != kPlacementLocal && value != kPlacementSpread) return PosixError(EINVAL);
  }
  if (name == kFlushErrorXattr) return PosixError(EPERM);
  if (name == kPinXattr && value != "0" && value != "1") return PosixError(EINVAL);
  if (name == kFlushXattr && !ParseFlushPolicy(value)) return PosixError(EINVAL);
  return absl::OkStatus();
}

// Presence, without its value.
absl::StatusOr<bool> Exists(Shard* shard, InodeId ino, const InodeRecord& record,
                            absl::string_view name) {
  if (record.xattr_list_bytes == 0) return false;
  const auto value = shard->GetXattr(ino, name);
  if (value.ok()) return true;
  if (absl::IsNotFound(value.status())) return false;
  return value.status();
}

}  // namespace

std::optional<FlushPolicy> ParseFlushPolicy(absl::string_view value) {
  if (value == "never") return FlushPolicy{true, std::nullopt};
  if (value == "close") return FlushPolicy{false, 0};
  uint32_t seconds;
  // Digits only: SimpleAtoi takes signs and spaces.
  if (!absl::ConsumeSuffix(&value, "s") || value.empty() ||
      value.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(value, &seconds) || seconds > kFlushSecondsMax) {
    return std::nullopt;
  }
  return FlushPolicy{false, seconds};
}

void AddXattr(InodeId ino, absl::string_view name, absl::string_view value, InodeRecord* record,
              Shard::Update* update) {
  update->PutXattr(ino, name, value);
  record->xattr_list_bytes += static_cast<uint32_t>(name.size() + 1);
}

absl::Status DropXattr(Shard* shard, InodeId ino, absl::string_view name, InodeRecord* record,
                       Shard::Update* update) {
  CFS_ASSIGN_OR_RETURN(const bool exists, Exists(shard, ino, *record, name));
  if (!exists) return absl::OkStatus();
  if (record->xattr_list_bytes <= name.size()) return absl::DataLossError("more xattrs than counted");
  update->DeleteXattr(ino, name);
  record->xattr_list_bytes -= static_cast<uint32_t>(name.size() + 1);
  return absl::OkStatus();
}

absl::Status DropCapability(Shard* shard, InodeId ino, InodeRecord* record,
                            Shard::Update* update) {
  if (record->xattr_list_bytes == 0) return absl::OkStatus();
  const auto value = shard->GetXattr(ino, kCapabilityXattr);
  if (absl::IsNotFound(value.status()) || (value.ok() && value->empty())) return absl::OkStatus();
  CFS_RETURN_IF_ERROR(value.status());
  return DropXattr(shard, ino, kCapabilityXattr, record, update);
}

absl::StatusOr<std::string> GetXattr(Shard* shard, InodeId ino, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckXattrName(name));
  StripeLocks::Hold hold(&shard->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard->GetInode(ino));
  if (record.xattr_list_bytes == 0) return PosixError(ENODATA);
  auto value = shard->GetXattr(ino, name);
  if (absl::IsNotFound(value.status())) return PosixError(ENODATA);
  return value;
}

absl::StatusOr<std::vector<std::string>> ListXattrs(Shard* shard, InodeId ino) {
  StripeLocks::Hold hold(&shard->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(const InodeRecord record, shard->GetInode(ino));
  if (record.xattr_list_bytes == 0) return std::vector<std::string>();
  return shard->ListXattrs(ino);
}

absl::Status SetXattr(Shard* shard, Clock* clock, InodeId ino, absl::string_view name,
                      absl::string_view value, int flags, bool clear_setgid) {
  CFS_RETURN_IF_ERROR(CheckXattrName(name));
  if (value.size() > kXattrValueBytesMax) return PosixError(E2BIG);
  StripeLocks::Hold hold(&shard->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard->GetInode(ino));
  CFS_ASSIGN_OR_RETURN(const bool exists, Exists(shard, ino, record, name));
  if ((flags & XATTR_CREATE) && exists) return PosixError(EEXIST);
  if ((flags & XATTR_REPLACE) && !exists) return PosixError(ENODATA);
  // listxattr(2) must be able to return all names.
  if (!exists && record.xattr_list_bytes + name.size() + 1 > kXattrListBytesMax) {
    return PosixError(ENOSPC);
  }
  CFS_RETURN_IF_ERROR(CheckXattrValue(record, name, value));
  Shard::Update update(shard, Shard::Update::Purpose::kRequested);
  bool keep = true;
  if (name == kAccessAclXattr) {
    if (S_ISLNK(record.mode)) return PosixError(EOPNOTSUPP);
    CFS_ASSIGN_OR_RETURN(const Acl acl, Acl::Parse(value));
    record.mode = (record.mode & ~0777u) | acl.ModeBits();
    if (clear_setgid) record.mode &= ~uint32_t{S_ISGID};
    keep = !acl.IsMinimal();
    record.flags = keep ? record.flags | kHasAccessAcl : record.flags & ~kHasAccessAcl;
  } else if (name == kDefaultAclXattr) {
    if (!record.IsDirectory()) return PosixError(EACCES);
    CFS_RETURN_IF_ERROR(Acl::Parse(value).status());
    record.flags |= kHasDefaultAcl;
  }
  if (!keep) {
    CFS_RETURN_IF_ERROR(DropXattr(shard, ino, name, &record, &update));
  } else if (exists) {
    update.PutXattr(ino, name, value);
  } else {
    AddXattr(ino, name, value, &record, &update);
  }
  record.ctime = clock->Now();
  update.PutInode(ino, std::move(record));
  return update.Commit();
}

absl::Status RemoveXattr(Shard* shard, Clock* clock, InodeId ino, absl::string_view name) {
  CFS_RETURN_IF_ERROR(CheckXattrName(name));
  StripeLocks::Hold hold(&shard->locks(), {ino});
  CFS_ASSIGN_OR_RETURN(InodeRecord record, shard->GetInode(ino));
  CFS_ASSIGN_OR_RETURN(const bool exists, Exists(shard, ino, record, name));
  // To take away an ACL that is not there is to set the minimal one.
  const bool is_acl = name == kAccessAclXattr || name == kDefaultAclXattr;
  if (!exists) return is_acl ? absl::OkStatus() : PosixError(ENODATA);
  if (name == kAccessAclXattr) record.flags &= ~kHasAccessAcl;
  if (name == kDefaultAclXattr) record.flags &= ~kHasDefaultAcl;
  Shard::Update update(shard, Shard::Update::Purpose::kRequested);
  CFS_RETURN_IF_ERROR(DropXattr(shard, ino, name, &record, &update));
  record.ctime = clock->Now();
  update.PutInode(ino, std::move(record));
  return update.Commit();
}

}  // namespace cfs
