// What a node has seen of a peer that it calls.
#ifndef CFS_NET_PEER_STATS_H_
#define CFS_NET_PEER_STATS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "cfs/base/mutex.h"
#include "cfs/base/types.h"
#include "cfs/net/handshake.h"

namespace cfs {

// Of the node's own calls to one address.
struct PeerStats {
  enum class State {
    kConnecting,
    kUp,
    kIdle,  // Closed, for nobody needed it.
    kLost,  // Or never reached. The next call tries again.
  };

  std::string address;
  // Who answered there last; kUnknownNode also for one without a number.
  NodeId node = kUnknownNode;
  State state = State::kConnecting;
  // As UCX names them, "posix/memory,tcp/eth0": what small messages take, then
  // what else it uses for large ones. Of the last connection that was up.
  std::string transports;
  uint64_t calls = 0;
  // Ended well; and otherwise. What is left is under way.
  uint64_t answered = 0, failed = 0;
  // Headers and payloads of calls and answers.
  uint64_t bytes_sent = 0, bytes_received = 0;
  // From Start to the answer, of the last 1,000 to 2,000 calls that were
  // answered: at most a quarter above the truth. Zero while there are none.
  absl::Duration latency_p50, latency_p99, latency_max;
  // Connections after the first.
  uint64_t reconnects = 0;
};

// Counts in buckets of a quarter of a power of two, the last 1,000 to 2,000.
// Thread-compatible.
class RecentLatencies {
 public:
  void Add(absl::Duration latency);
  // At least this share of them were not longer.
  // REQUIRES: `share` is in (0, 1].
  absl::Duration Percentile(double share) const;

 private:
  static constexpr uint32_t kWindow = 1000;
  static constexpr int kParts = 4;
  // Up to 2^31 us; what is longer counts as that.
  static constexpr int kBuckets = 30 * kParts;

  struct Window {
    uint32_t count = 0;
    std::array<uint16_t, kBuckets> buckets = {};
  };

  Window now_, before_;
};

// Counts for one PeerStats. Thread-safe. Cost: an uncontended lock a call.
class PeerCounters {
 public:
  explicit PeerCounters(std::string address) { stats_.address = std::move(address); }

  void Connecting();
  void Up(NodeId node, std::string transports);
  void Closed(PeerStats::State state);
  void Called();
  void Answered(absl::Duration latency, size_t bytes_sent, size_t bytes_received);
  // `bytes_sent` may be all, some, or nothing of what was to be sent.
  void Failed(size_t bytes_sent);

  PeerStats Get() const;

 private:
  mutable Mutex mutex_;
  PeerStats stats_ ABSL_GUARDED_BY(mutex_);
  uint64_t connections_ ABSL_GUARDED_BY(mutex_) = 0;
  RecentLatencies latencies_ ABSL_GUARDED_BY(mutex_);
};

// Those that one network thread calls. Thread-safe.
class PeerTable {
 public:
  // The same for the same address, while somebody holds it. One that nobody
  // holds may be forgotten when there are kConnectionsMax.
  std::shared_ptr<PeerCounters> For(const std::string& address);
  void AddStats(std::vector<PeerStats>* stats) const;

 private:
  mutable Mutex mutex_;
  absl::flat_hash_map<std::string, std::shared_ptr<PeerCounters>> peers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cfs

#endif  // CFS_NET_PEER_STATS_H_
