// The only file that includes RocksDB.
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/perf_level.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/mutex.h"
#include "cfs/base/unique_fd.h"
#include "cfs/meta/store.h"

namespace cfs {
namespace {

rocksdb::Slice ToSlice(absl::string_view view) { return {view.data(), view.size()}; }
absl::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

absl::Status ToStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNotFound()) return NotFound();
  if (status.IsNoSpace()) return PosixError(ENOSPC, status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(status.ToString());
  return PosixError(EIO, status.ToString());
}

// Tells a memtable to look for the place of a key near that of the last key of
// its kind: operations in one directory touch neighbours, or the same record.
class KindHint final : public rocksdb::SliceTransform {
 public:
  const char* Name() const override { return "cfs.KindHint"; }
  bool InDomain(const rocksdb::Slice& key) const override { return key.size() > kKindAt; }
  rocksdb::Slice Transform(const rocksdb::Slice& key) const override {
    return {key.data() + kKindAt, 1};
  }

 private:
  static constexpr size_t kKindAt = 2;  // Behind the slot.
};

class RocksdbStore final : public Store {
 public:
  RocksdbStore(std::unique_ptr<rocksdb::DB> db,
               std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount> families,
               std::shared_ptr<rocksdb::Cache> cache, std::string reserve_path)
      : db_(std::move(db)),
        families_(families),
        cache_(std::move(cache)),
        reserve_path_(std::move(reserve_path)) {
    KeepReserve();
  }

  ~RocksdbStore() override {
    for (rocksdb::ColumnFamilyHandle* family : families_) {
      const rocksdb::Status status = db_->DestroyColumnFamilyHandle(family);
      if (!status.ok()) LogWarn("rocksdb handle not released, ignored error=", status.ToString());
    }
    const rocksdb::Status status = db_->Close();
    if (!status.ok()) LogWarn("rocksdb close failed, ignored error=", status.ToString());
  }

  absl::Status Get(Family family, absl::string_view key, std::string* value) override {
    rocksdb::PinnableSlice found;
    const rocksdb::Status status =
        db_->Get(rocksdb::ReadOptions(), Handle(family), ToSlice(key), &found);
    if (!status.ok()) return ToStatus(status);
    value->assign(found.data(), found.size());
    return absl::OkStatus();
  }

  std::vector<absl::StatusOr<std::string>> MultiGet(
      Family family, const std::vector<std::string>& keys) override {
    const size_t count = keys.size();
    std::vector<rocksdb::Slice> slices;
    slices.reserve(count);
    for (const std::string& key : keys) slices.push_back(ToSlice(key));
    std::vector<rocksdb::PinnableSlice> values(count);
    std::vector<rocksdb::Status> statuses(count);
    db_->MultiGet(rocksdb::ReadOptions(), Handle(family), count, slices.data(), values.data(),
                  statuses.data());
    std::vector<absl::StatusOr<std::string>> results;
    results.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (statuses[i].ok()) {
        results.emplace_back(values[i].ToString());
      } else {
        results.emplace_back(ToStatus(statuses[i]));
      }
    }
    return results;
  }

  absl::Status Apply(const WriteSet& writes) override {
    // Nobody reads RocksDB's own counters; keeping them costs 1 us a write.
    rocksdb::SetPerfLevel(rocksdb::PerfLevel::kDisable);
    size_t bytes = 32;
    for (const WriteSet::Write& write : writes.writes()) {
      bytes += write.key.size() + write.value.size() + 16;
    }
    rocksdb::WriteBatch batch(bytes);
    for (const WriteSet::Write& write : writes.writes()) {
      const rocksdb::Status status =
          write.is_delete ? batch.Delete(Handle(write.family), write.key)
                          : batch.Put(Handle(write.family), write.key, write.value);
      if (!status.ok()) return ToStatus(status);
    }
    rocksdb::Status status = db_->Write(rocksdb::WriteOptions(), &batch);
    // A full device stops RocksDB until it is told that there is room again.
    if (ABSL_PREDICT_FALSE(status.IsNoSpace()) && GiveUpReserve()) {
      status = db_->Write(rocksdb::WriteOptions(), &batch);
    }
    return ToStatus(status);
  }

  void KeepReserve() override {
    MutexLock lock(&reserve_mutex_);
    struct statvfs space;
    if (statvfs(reserve_path_.substr(0, reserve_path_.rfind('/')).c_str(), &space) != 0) return;
    const uint64_t unit = space.f_frsize;
    const uint64_t bytes = std::min(kReserveBytesMax, space.f_blocks * unit / kReserveShare);
    struct stat st;
    const bool there = stat(reserve_path_.c_str(), &st) == 0;
    if (there && static_cast<uint64_t>(st.st_blocks) * 512 >= bytes) return;
    if (space.f_bavail * unit < 4 * bytes) return;
    const UniqueFd fd(open(reserve_path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    // Without a reserve the store works too, until it is full.
    if (!fd.valid() || fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
      unlink(reserve_path_.c_str());
    }
  }

  absl::Status Scan(Family family, absl::string_view start, absl::string_view prefix,
                    const std::function<bool(absl::string_view, absl::string_view)>& visit) override {
    rocksdb::ReadOptions options;
    options.total_order_seek = true;
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options, Handle(family)));
    for (it->Seek(ToSlice(start)); it->Valid(); it->Next()) {
      if (!it->key().starts_with(ToSlice(prefix))) break;
      if (!visit(ToView(it->key()), ToView(it->value()))) break;
    }
    return ToStatus(it->status());
  }

  absl::Status SyncWal() override { return ToStatus(db_->SyncWAL()); }

  uint64_t MemoryBytes() override {
    uint64_t bytes = cache_->GetUsage();
    uint64_t memtables = 0;
    if (db_->GetAggregatedIntProperty(rocksdb::DB::Properties::kSizeAllMemTables, &memtables)) {
      bytes += memtables;
    }
    return bytes;
  }

 private:
  // True if there was one, or there is room by now, and RocksDB goes on.
  bool GiveUpReserve() {
    MutexLock lock(&reserve_mutex_);
    if (unlink(reserve_path_.c_str()) == 0) LogWarn("store is full, the metadata's reserve is in use");
    return db_->Resume().ok();
  }

  rocksdb::ColumnFamilyHandle* Handle(Family family) {
    return families_[static_cast<size_t>(family)];
  }

  const std::unique_ptr<rocksdb::DB> db_;
  const std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount> families_;
  const std::shared_ptr<rocksdb::Cache> cache_;
  const std::string reserve_path_;
  Mutex reserve_mutex_;  // One thread at a time makes or gives up the reserve.
};

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenRocksdbStore(const std::string& directory) {
  rocksdb::DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.max_open_files = kRocksOpenFiles;
  options.max_total_wal_size = 4 * kMemtableBytes;
  options.max_background_jobs = 2;
  options.allow_concurrent_memtable_write = false;  // For KindHint.
  options.keep_log_file_num = 2;
  options.max_manifest_file_size = 16 << 20;
  options.info_log_level = rocksdb::WARN_LEVEL;
  // A torn tail is what a power failure leaves; anything before it must read.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  options.bytes_per_sync = 1 << 20;

  const auto cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;

  rocksdb::ColumnFamilyOptions records;
  records.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  records.write_buffer_size = kMemtableBytes;
  records.max_write_buffer_number = 3;
  records.compression = rocksdb::kLZ4Compression;
  records.memtable_insert_with_hint_prefix_extractor = std::make_shared<KindHint>();
  records.memtable_whole_key_filtering = true;
  records.memtable_prefix_bloom_size_ratio = 0.05;
  rocksdb::ColumnFamilyOptions small = records;
  small.write_buffer_size = kMemtableBytes / 8;

  const std::vector<rocksdb::ColumnFamilyDescriptor> descriptors = {
      {rocksdb::kDefaultColumnFamilyName, records}, {"queue", small}, {"local", small}};
  rocksdb::DB* db = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  const rocksdb::Status status =
      rocksdb::DB::Open(options, directory, descriptors, &handles, &db);
  if (!status.ok()) return ToStatus(status);
  return std::make_unique<RocksdbStore>(
      std::unique_ptr<rocksdb::DB>(db),
      std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount>{handles[0], handles[1], handles[2]},
      cache, directory + ".reserve");
}

}  // namespace cfs
