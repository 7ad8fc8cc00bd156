// What is said here of objects of the backend.
#ifndef CFS_SERVER_BACKEND_IMPORT_H_
#define CFS_SERVER_BACKEND_IMPORT_H_

#include <sys/stat.h>

#include <cstdint>
#include <ctime>
#include <string>

#include "cfs/base/types.h"
#include "cfs/meta/backend_format.h"
#include "cfs/meta/record_format.h"
#include "cfs/server/local_file_system.h"
#include "cfs/tier/backend.h"

namespace cfs {

timespec TimeOf(const statx_timestamp& time);
BackendStamp StampOf(const struct statx& st);
// What the object has of its own, but its identity.
void FillRecord(const struct statx& st, InodeRecord* record);
// Which of InodeFlags say that there are ACLs.
uint32_t AclFlags(const Xattrs& xattrs);
// What has the name in the directory there.
LocalFileSystem::Imported ToImported(InodeId dir, std::string name, BackendObject object);

}  // namespace cfs

#endif  // CFS_SERVER_BACKEND_IMPORT_H_
