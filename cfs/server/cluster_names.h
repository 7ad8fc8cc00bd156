// Changes of names by the owner of the directory, whoever owns the inodes.
#ifndef CFS_SERVER_CLUSTER_NAMES_H_
#define CFS_SERVER_CLUSTER_NAMES_H_

#include <functional>

#include "absl/strings/string_view.h"
#include "cfs/ring/cluster_map.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/transactor.h"

namespace cfs {

// Each does what FileSystem says of it, in this node's shard where that has all
// that it takes, else by a transaction. Beside those errors: IsNotOwned when the
// directory (of a rename, the first) is another node's; IsBusy: try again in a
// moment. A RequestScope of the caller's holds for both. Thread-safe.
class ClusterNames {
 public:
  // Asks the owner of a slot for a new inode number of it.
  using ReserveFn = std::function<void(Slot, Done<InodeId>)>;
  using MapFn = std::function<ClusterMapPtr()>;

  // None is owned.
  ClusterNames(LocalFileSystem* local, Transactor* transactor, ReserveFn reserve, MapFn map)
      : local_(local),
        transactor_(transactor),
        reserve_(std::move(reserve)),
        map_(std::move(map)) {}

  // `creator`: the node whose program calls mkdir.
  void MakeDirectory(NodeId creator, const Caller& caller, InodeId dir, absl::string_view name,
                     uint32_t mode, Done<Attr> done);
  // The result has no attributes where another node has the inode.
  void Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done);
  void Unlink(InodeId dir, absl::string_view name, DoneStatus done);
  void RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done);
  void Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
              absl::string_view to_name, uint32_t flags, DoneStatus done);

 private:
  using Request = std::optional<RequestScope::Request>;
  // Runs it as a transaction if it came to that.
  DoneStatus OrTransact(InodeId dir, Transactor::Body body, DoneStatus done);
  // Of a new directory, as the placement of `dir` says.
  absl::StatusOr<Slot> SlotOfNew(NodeId creator, InodeId dir, absl::string_view name);

  LocalFileSystem* const local_;
  Transactor* const transactor_;
  const ReserveFn reserve_;
  const MapFn map_;
};

}  // namespace cfs

#endif  // CFS_SERVER_CLUSTER_NAMES_H_
