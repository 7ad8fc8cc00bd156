// With store_rocksdb_files, the only files that include RocksDB.
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/perf_level.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/mutex.h"
#include "cfs/base/unique_fd.h"
#include "cfs/meta/reserve.h"
#include "cfs/meta/store.h"
#include "cfs/meta/store_rocksdb_files.h"

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

// What RocksDB has to say goes to our log. Its own log file would be on the
// store, where a write that finds no space aborts the process at the next line.
class LogOfRocksdb final : public rocksdb::Logger {
 public:
  LogOfRocksdb() : Logger(rocksdb::WARN_LEVEL) {}
  using Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    Logv(rocksdb::WARN_LEVEL, format, arguments);
  }
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < rocksdb::WARN_LEVEL || level == rocksdb::HEADER_LEVEL) return;
    char line[500];
    vsnprintf(line, sizeof(line), format, arguments);
    LogWarn("rocksdb says=\"", absl::StripTrailingAsciiWhitespace(line), "\"");
  }
};

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
  // No `reserve`: it is open for reading.
  RocksdbStore(std::unique_ptr<Reserve> reserve, std::unique_ptr<rocksdb::Env> env,
               std::unique_ptr<rocksdb::DB> db,
               std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount> families,
               std::shared_ptr<rocksdb::Cache> cache, const std::string& directory)
      : reserve_(std::move(reserve)),
        env_(std::move(env)),
        db_(std::move(db)),
        families_(families),
        cache_(std::move(cache)),
        directory_(opendir(directory.c_str()), closedir) {}

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
    if (reserve_ == nullptr) return PosixError(EROFS, "the metadata is open for reading");
    if (reserve_->Exhausted()) return PosixError(ENOSPC, "no space for metadata");
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
    return ToStatus(db_->Write(rocksdb::WriteOptions(), &batch));
  }

  void KeepReserve() override {
    if (reserve_ != nullptr) reserve_->Keep();
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

  // Not DB::SyncWAL: that one aborts the process, or fails for ever, when it
  // meets a log to which a write has failed. Each write has reached the page
  // cache before it returns, so any descriptor will do. Logs that are gone were
  // flushed to tables, which RocksDB syncs itself.
  absl::Status SyncWal() override {
    MutexLock lock(&sync_mutex_);
    if (sync_error_.ok()) sync_error_ = SyncLogs();
    return sync_error_;
  }

  uint64_t MemoryBytes() override {
    uint64_t bytes = cache_->GetUsage();
    uint64_t memtables = 0;
    if (db_->GetAggregatedIntProperty(rocksdb::DB::Properties::kSizeAllMemTables, &memtables)) {
      bytes += memtables;
    }
    return bytes;
  }

 private:
  absl::Status SyncLogs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(sync_mutex_) {
    if (directory_ == nullptr) return PosixError(EIO, "the metadata's directory cannot be listed");
    std::vector<std::pair<std::string, UniqueFd>> logs;
    bool added = false;
    rewinddir(directory_.get());
    errno = 0;
    while (const dirent* entry = readdir(directory_.get())) {
      const std::string name = entry->d_name;
      if (!absl::EndsWith(name, ".log")) continue;
      // Kept open: an error of writing back is told to each descriptor once.
      const auto known = std::find_if(logs_.begin(), logs_.end(),
                                      [&](const auto& log) { return log.first == name; });
      if (known != logs_.end()) {
        logs.push_back(std::move(*known));
        continue;
      }
      UniqueFd fd(openat(dirfd(directory_.get()), name.c_str(), O_RDONLY | O_CLOEXEC));
      if (fd.valid()) {
        logs.emplace_back(name, std::move(fd));
        added = true;
      } else if (errno != ENOENT) {
        return ErrnoStatus("open the metadata's log");
      }
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus("list the metadata's logs");
    logs_ = std::move(logs);
    for (const auto& [name, fd] : logs_) {
      if (fdatasync(fd.get()) != 0) return ErrnoStatus("sync the metadata's log");
    }
    if (added && fsync(dirfd(directory_.get())) != 0) {
      return ErrnoStatus("sync the metadata's directory");
    }
    return absl::OkStatus();
  }

  rocksdb::ColumnFamilyHandle* Handle(Family family) {
    return families_[static_cast<size_t>(family)];
  }

  const std::unique_ptr<Reserve> reserve_;
  const std::unique_ptr<rocksdb::Env> env_;
  const std::unique_ptr<rocksdb::DB> db_;
  const std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount> families_;
  const std::shared_ptr<rocksdb::Cache> cache_;
  Mutex sync_mutex_;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory_ ABSL_PT_GUARDED_BY(sync_mutex_);
  // The logs as of the last sync, by name.
  std::vector<std::pair<std::string, UniqueFd>> logs_ ABSL_GUARDED_BY(sync_mutex_);
  // The first one; what was lost then is not there later.
  absl::Status sync_error_ ABSL_GUARDED_BY(sync_mutex_);
};

// How a store is opened, whatever for.
struct Setup {
  explicit Setup(size_t memtable_bytes) {
    options.max_open_files = kRocksOpenFiles;
    options.info_log = std::make_shared<LogOfRocksdb>();
    // A torn tail is what a power failure leaves; anything before it must read.
    options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
    options.allow_concurrent_memtable_write = false;  // For KindHint.

    // Few parts, and index and filters in small blocks: a whole filter (1 MiB for
    // a table of 64 MiB) would not fit into a part, and each Get would read it.
    cache = rocksdb::NewLRUCache(kBlockCacheBytes, /*num_shard_bits=*/4,
                                 /*strict_capacity_limit=*/false,
                                 /*high_pri_pool_ratio=*/0.5);
    rocksdb::BlockBasedTableOptions table;
    table.block_cache = cache;
    table.cache_index_and_filter_blocks = true;
    table.cache_index_and_filter_blocks_with_high_priority = true;
    table.index_type = rocksdb::BlockBasedTableOptions::kTwoLevelIndexSearch;
    table.partition_filters = true;
    table.pin_top_level_index_and_filter = true;
    table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
    table.format_version = 5;

    rocksdb::ColumnFamilyOptions records;
    records.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    records.write_buffer_size = memtable_bytes;
    records.max_write_buffer_number = 3;
    records.compression = rocksdb::kLZ4Compression;
    records.memtable_insert_with_hint_prefix_extractor = std::make_shared<KindHint>();
    records.memtable_whole_key_filtering = true;
    records.memtable_prefix_bloom_size_ratio = 0.05;
    rocksdb::ColumnFamilyOptions small = records;
    small.write_buffer_size = std::max<size_t>(memtable_bytes / 8, 256 << 10);
    descriptors = {
        {rocksdb::kDefaultColumnFamilyName, records}, {"queue", small}, {"local", small}};
  }

  // What was opened, with its handles.
  std::unique_ptr<Store> Take(rocksdb::DB* db, std::unique_ptr<Reserve> reserve,
                              std::unique_ptr<rocksdb::Env> env, const std::string& directory) {
    return std::make_unique<RocksdbStore>(
        std::move(reserve), std::move(env), std::unique_ptr<rocksdb::DB>(db),
        std::array<rocksdb::ColumnFamilyHandle*, kFamilyCount>{handles[0], handles[1], handles[2]},
        cache, directory);
  }

  rocksdb::DBOptions options;
  std::shared_ptr<rocksdb::Cache> cache;
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenRocksdbStore(const std::string& directory) {
  // RocksDB would complain of it.
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus("make the metadata's directory");
  }
  auto reserve = std::make_unique<Reserve>(directory + ".reserve");
  // What is in memory must fit into the reserve when it is written out.
  const size_t memtable_bytes =
      std::clamp<size_t>(reserve->full_bytes() / 8, 1 << 20, kMemtableBytes);
  auto env = rocksdb::NewCompositeEnv(FilesWithReserve(reserve.get()));
  Setup setup(memtable_bytes);
  rocksdb::DBOptions& options = setup.options;
  options.env = env.get();
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.max_total_wal_size = 4 * memtable_bytes;
  options.max_background_jobs = 2;
  options.max_manifest_file_size = 16 << 20;
  options.bytes_per_sync = 1 << 20;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status =
      rocksdb::DB::Open(options, directory, setup.descriptors, &setup.handles, &db);
  if (!status.ok()) return ToStatus(status);
  return setup.Take(db, std::move(reserve), std::move(env), directory);
}

absl::StatusOr<std::unique_ptr<Store>> OpenRocksdbStoreForReading(const std::string& directory) {
  if (access((directory + "/CURRENT").c_str(), F_OK) != 0) {
    return errno == ENOENT ? NotFound() : ErrnoStatus(directory);
  }
  Setup setup(kMemtableBytes);
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(
      setup.options, directory, setup.descriptors, &setup.handles, &db);
  if (!status.ok()) return ToStatus(status);
  return setup.Take(db, nullptr, nullptr, directory);
}

}  // namespace cfs
