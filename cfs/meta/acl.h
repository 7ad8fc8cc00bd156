// POSIX ACLs (IEEE 1003.1e draft 17) in the xattr encoding of Linux.
#ifndef CFS_META_ACL_H_
#define CFS_META_ACL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

inline constexpr char kAccessAclXattr[] = "system.posix_acl_access";
inline constexpr char kDefaultAclXattr[] = "system.posix_acl_default";

class Acl {
 public:
  // INVALID_ARGUMENT for anything that is not a well-formed, complete ACL.
  static absl::StatusOr<Acl> Parse(absl::string_view xattr);
  std::string Encode() const;

  // True if the ACL says no more than permission bits do.
  bool IsMinimal() const;
  // The nine permission bits that the ACL stands for.
  uint32_t ModeBits() const;
  // chmod: owner, mask (or group) and other entries follow `mode`.
  void SetModeBits(uint32_t mode);
  // A default ACL becomes the access ACL of a new object created with `mode`:
  // entries lose what `mode` does not grant. Returns the object's mode.
  uint32_t InheritInto(uint32_t mode);

 private:
  enum Tag : uint16_t {
    kUserObj = 0x01,
    kUser = 0x02,
    kGroupObj = 0x04,
    kGroup = 0x08,
    kMask = 0x10,
    kOther = 0x20,
  };
  struct Entry {
    uint16_t tag;
    uint16_t perm;
    uint32_t id;
  };

  Entry* Find(Tag tag);
  const Entry* Find(Tag tag) const;

  std::vector<Entry> entries_;
};

}  // namespace cfs

#endif  // CFS_META_ACL_H_
