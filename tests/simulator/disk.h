// A store in memory that remembers what is on the device.
#ifndef CFS_TESTS_SIMULATOR_DISK_H_
#define CFS_TESTS_SIMULATOR_DISK_H_

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "cfs/meta/store.h"

namespace cfs {

// Guarantees: those of Store, and no more: what was applied is lost with the
// power as far as no SyncWal came after it. Outlives the processes that use it;
// when one is dead, nothing it still does has any effect. Of one thread.
class SimulatedDisk final : public Store {
 public:
  // May kill the process: of what it does then, only this write set stays.
  void SetOnApply(std::function<void(const WriteSet&)> on_apply) {
    on_apply_ = std::move(on_apply);
  }
  void SetDead(bool dead) { dead_ = dead; }

  size_t applied() const { return log_.size(); }
  size_t synced() const { return synced_; }
  // The write sets that are not lost, oldest first.
  const std::vector<WriteSet>& log() const { return log_; }

  // Keeps the first `keep` write sets; returns what is lost.
  // REQUIRES: synced() <= keep <= applied().
  std::vector<WriteSet> LosePower(size_t keep) {
    std::vector<WriteSet> lost(log_.begin() + static_cast<ptrdiff_t>(keep), log_.end());
    log_.resize(keep);
    synced_ = keep;
    values_.clear();
    for (const WriteSet& writes : log_) Take(writes);
    return lost;
  }

  absl::Status Get(Family family, absl::string_view key, std::string* value) override {
    if (dead_) return Dead();
    const auto it = values_.find({family, std::string(key)});
    if (it == values_.end()) return absl::NotFoundError("");
    *value = it->second;
    return absl::OkStatus();
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Family,
                                                    const std::vector<std::string>& keys) override {
    return std::vector<absl::StatusOr<std::string>>(keys.size(), Dead());
  }
  absl::Status Apply(const WriteSet& writes) override {
    if (dead_) return Dead();
    log_.push_back(writes);
    Take(writes);
    if (on_apply_) on_apply_(writes);
    return absl::OkStatus();
  }
  absl::Status Scan(
      Family family, absl::string_view start, absl::string_view prefix,
      const std::function<bool(absl::string_view, absl::string_view)>& visit) override {
    for (auto it = values_.lower_bound({family, std::string(start)});
         it != values_.end() && it->first.first == family &&
         absl::StartsWith(it->first.second, prefix);
         ++it) {
      if (!visit(it->first.second, it->second)) break;
    }
    return absl::OkStatus();
  }
  absl::Status SyncWal() override {
    if (dead_) return Dead();
    synced_ = log_.size();
    return absl::OkStatus();
  }
  // A sync that began when so many were applied has ended.
  void SyncUpTo(size_t applied) { synced_ = std::max(synced_, applied); }
  void KeepReserve() override {}
  uint64_t MemoryBytes() override { return 0; }

 private:
  static absl::Status Dead() { return absl::InternalError("the process is dead"); }
  void Take(const WriteSet& writes) {
    for (const WriteSet::Write& write : writes.writes()) {
      if (write.is_delete) {
        values_.erase({write.family, write.key});
      } else {
        values_[{write.family, write.key}] = write.value;
      }
    }
  }

  std::map<std::pair<Family, std::string>, std::string> values_;
  std::vector<WriteSet> log_;
  size_t synced_ = 0;
  bool dead_ = false;
  std::function<void(const WriteSet&)> on_apply_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_DISK_H_
