// RocksDB's files, written with a reserve at hand.
#ifndef CFS_META_STORE_ROCKSDB_FILES_H_
#define CFS_META_STORE_ROCKSDB_FILES_H_

#include <rocksdb/file_system.h>

#include <memory>
#include <string>

#include "cfs/meta/reserve.h"

namespace cfs {

// A write that finds no space takes it from the reserve and goes on: RocksDB
// does not survive an error of its log (it aborts, hangs in Resume, or answers
// errors until it is opened again), and may answer them for long after one of a
// table. Anything else is the default file system's. `reserve` outlives it.
std::shared_ptr<rocksdb::FileSystem> FilesWithReserve(Reserve* reserve);

}  // namespace cfs

#endif  // CFS_META_STORE_ROCKSDB_FILES_H_
