// Bringing what a node has to its backend, for the verbs that wait for it.
#ifndef CFS_CLI_SYNC_BACKEND_H_
#define CFS_CLI_SYNC_BACKEND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/cli/mounts.h"

namespace cfs {

struct SyncFailure {
  std::string path;
  std::string error;
};

// How far a sync has come. When it is done and nothing has failed, all that was
// dirty at its begin is on the backend and durable there.
struct SyncResult {
  bool done = false;                // False: the time was over first.
  uint64_t left = 0;                // Things that are still dirty.
  uint64_t stay = 0;                // Files that stay here because that is wanted.
  uint64_t bytes = 0;               // Of file data, written by now.
  std::vector<SyncFailure> failed;  // The first of them.
  uint64_t failed_count = 0;        // All of them.
};

// Asks the node that serves `mount` to bring everything to its backend, and
// waits until it is done or `time_max` is over; the node then goes on. Shows how
// far it is on stderr, if that is a terminal.
// Errors: EOPNOTSUPP without a backend to write to; UNAVAILABLE when nobody
// serves the mount; DEADLINE_EXCEEDED when the node does not answer.
absl::StatusOr<SyncResult> SyncBackend(const MountEntry& mount, absl::Duration time_max);

// Says on stdout that everything is on the backend; else names on stderr what has
// failed, as `cfs verb`, and returns how much is missing: ABORTED when the sync
// is done, DEADLINE_EXCEEDED when it is not.
absl::Status ReportSync(absl::string_view verb, const SyncResult& result);

}  // namespace cfs

#endif  // CFS_CLI_SYNC_BACKEND_H_
