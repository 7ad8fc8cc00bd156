// A node's store directory: who it belongs to, and that nobody else uses it.
//
//   STORE/node.json  {format, cluster_id, node_id, machine, store_id}: written
//                    when the store is made; a directory without it is no store
//   STORE/meta/      RocksDB            STORE/cfs.pid   the process in charge
//   STORE/data/      backing files      STORE/cfs.log   its log
//   STORE/cluster.*  what the store remembers of its cluster (cluster_store.h)
//   STORE/lock       locked for the life of the process in charge
//   STORE/cfs.sock   its control socket
#ifndef CFS_SERVER_STORE_DIR_H_
#define CFS_SERVER_STORE_DIR_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cfs/base/types.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

inline constexpr int kStoreFormat = 3;

struct StoreIdentity {
  std::string cluster_id;  // 128 bits in hexadecimal.
  NodeId node_id{};        // Never 0 or the highest number.
  std::string machine;     // MachineId() of the machine that made the store.
  uint64_t store_id = 0;   // Random: tells stores with the same node_id apart.
};

// Guarantees: while an object lives no other process has the store open. A
//   refusal changes nothing on disk. A crash while a store is made leaves a
//   directory that Open() completes.
// Thread-safety: immutable but for Renew(). The lock follows fork() and ends with the last copy.
// Errors: UNAVAILABLE in use by another process; FAILED_PRECONDITION on a network
//   file system, of another machine, of a newer format, or not a store;
//   INVALID_ARGUMENT not a directory; DATA_LOSS damaged; else the errno.
class StoreDir {
 public:
  // Opens the store, making it when `path` is missing or an empty directory.
  // A new one is of the cluster `cluster_id`; "": of one of its own.
  static absl::StatusOr<StoreDir> Open(absl::string_view path, absl::string_view cluster_id = "");

  StoreDir(StoreDir&&) = default;
  StoreDir& operator=(StoreDir&&) = delete;
  // Removes cfs.pid and gives up the lock.
  ~StoreDir();

  const std::string& path() const { return path_; }  // Absolute.
  std::string meta_path() const { return path_ + "/meta"; }
  std::string data_path() const { return path_ + "/data"; }
  const StoreIdentity& identity() const { return identity_; }

  // There is no metadata yet, so that the store may become any node.
  bool empty() const;
  // Makes another node of it. REQUIRES: empty().
  absl::Status Renew(absl::string_view cluster_id = "");

 private:
  StoreDir(std::string path, StoreIdentity identity, UniqueFd lock);

  std::string path_;
  StoreIdentity identity_;
  UniqueFd lock_;
};

// A store to look at. Guarantees: nothing on disk changes, and while an object
// lives no process opens the store for use. Errors: as StoreDir, but it may be of
// any machine and on any file system.
struct IdleStore {
  std::string path;  // Absolute.
  StoreIdentity identity;
  UniqueFd lock;
};
absl::StatusOr<IdleStore> OpenIdleStore(absl::string_view path);

// $CFS_STORE, else /var/lib/cfs for root, else $XDG_STATE_HOME/cfs, else
// ~/.local/state/cfs.
absl::StatusOr<std::string> DefaultStorePath();

// A store's path as StoreDir has it: absolute, without symbolic links, "..", and
// a slash at its end. The store need not exist.
absl::StatusOr<std::string> ResolveStorePath(absl::string_view path);

// The process in charge of a store; nothing when there is none or when we may
// not look. 0 when there is one that has not written cfs.pid yet. One that is
// just ending, by kill -9 say, is waited for up to 5 s.
std::optional<pid_t> StoreOwner(absl::string_view path);

// "nfs" for the f_type of a file system that several machines may see or whose
// backing files could not be trusted; nothing for a local one.
std::optional<absl::string_view> NetworkFileSystem(uint32_t f_type);

// Names this machine across restarts.
std::string MachineId();

// 16 hexadecimal digits.
std::string HexOf(uint64_t value);

// node.json as text and back.
std::string EncodeIdentity(const StoreIdentity& identity);
absl::StatusOr<StoreIdentity> DecodeIdentity(absl::string_view json);

}  // namespace cfs

#endif  // CFS_SERVER_STORE_DIR_H_
