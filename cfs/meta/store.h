// The key-value store under a shard, and the write set that one operation
// applies to it.
#ifndef CFS_META_STORE_H_
#define CFS_META_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cfs {

// Families of keys; record_format.h says what is in them.
enum class Family : uint8_t { kRecords = 0, kQueue = 1, kLocal = 2 };
inline constexpr int kFamilyCount = 3;

// An ordered list of puts and deletes that is applied whole or not at all.
class WriteSet {
 public:
  struct Write {
    Family family;
    bool is_delete;
    std::string key;
    std::string value;
  };

  void Put(Family family, std::string key, std::string value) {
    writes_.push_back({family, false, std::move(key), std::move(value)});
  }
  void Delete(Family family, std::string key) {
    writes_.push_back({family, true, std::move(key), {}});
  }
  bool empty() const { return writes_.empty(); }
  const std::vector<Write>& writes() const { return writes_; }

 private:
  std::vector<Write> writes_;
};

// Guarantees: Apply is atomic and survives kill -9 of this process once it has
// returned; it survives power loss once a SyncWal that began later has
// returned OK. After power loss the store is a prefix of what was applied.
// Thread-safe. Errors: NOT_FOUND from Get; RESOURCE_EXHAUSTED when the device
// is full and the reserve is short; anything else is an I/O error or corruption.
// The first error of SyncWal stays.
class Store {
 public:
  virtual ~Store() = default;
  virtual absl::Status Get(Family family, absl::string_view key, std::string* value) = 0;
  // results[i] is for keys[i].
  virtual std::vector<absl::StatusOr<std::string>> MultiGet(
      Family family, const std::vector<std::string>& keys) = 0;
  virtual absl::Status Apply(const WriteSet& writes) = 0;
  // Calls `visit` for each key from `start` on that begins with `prefix`, in
  // order, until it returns false. Sees a consistent snapshot.
  virtual absl::Status Scan(
      Family family, absl::string_view start, absl::string_view prefix,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) = 0;
  virtual absl::Status SyncWal() = 0;
  // Makes the space that is set aside for metadata whole again, if there is
  // room. To be called now and then.
  virtual void KeepReserve() = 0;
  virtual uint64_t MemoryBytes() = 0;
};

// Opens or creates the store in `directory`.
absl::StatusOr<std::unique_ptr<Store>> OpenRocksdbStore(const std::string& directory);
// Opens one to look at: nothing on disk changes, and Apply is refused. What is in
// its log is read into memory. NOT_FOUND if there is none. REQUIRES: nobody has it
// open for writing.
absl::StatusOr<std::unique_ptr<Store>> OpenRocksdbStoreForReading(const std::string& directory);

}  // namespace cfs

#endif  // CFS_META_STORE_H_
