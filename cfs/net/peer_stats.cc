#include "cfs/net/peer_stats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "cfs/base/limits.h"

namespace cfs {
namespace {

// Below 4 us a bucket is one microsecond; from there on, four are an octave.
size_t BucketOf(uint64_t microseconds) {
  if (microseconds < 4) return microseconds;
  const int log = std::bit_width(microseconds) - 1;
  return 4 * (log - 1) + ((microseconds >> (log - 2)) & 3);
}

// The first that is in no bucket up to this one.
uint64_t EndOf(size_t bucket) {
  if (bucket < 4) return bucket + 1;
  return (5 + bucket % 4) << (bucket / 4 - 1);
}

}  // namespace

void RecentLatencies::Add(absl::Duration latency) {
  if (now_.count == kWindow) {
    before_ = now_;
    now_ = {};
  }
  const auto microseconds = std::max<int64_t>(absl::ToInt64Microseconds(latency), 0);
  ++now_.count;
  ++now_.buckets[std::min<size_t>(BucketOf(microseconds), kBuckets - 1)];
}

absl::Duration RecentLatencies::Percentile(double share) const {
  const auto wanted = static_cast<uint32_t>(std::ceil(share * (now_.count + before_.count)));
  uint32_t seen = 0;
  for (size_t i = 0; i < kBuckets && wanted > 0; ++i) {
    seen += now_.buckets[i] + before_.buckets[i];
    if (seen >= wanted) return absl::Microseconds(EndOf(i));
  }
  return absl::ZeroDuration();
}

void PeerCounters::Connecting() {
  MutexLock lock(&mutex_);
  stats_.state = PeerStats::State::kConnecting;
}

void PeerCounters::Up(NodeId node, std::string transports) {
  MutexLock lock(&mutex_);
  stats_.state = PeerStats::State::kUp;
  stats_.node = node;
  stats_.transports = std::move(transports);
  stats_.reconnects = connections_++;
}

void PeerCounters::Closed(PeerStats::State state) {
  MutexLock lock(&mutex_);
  stats_.state = state;
}

void PeerCounters::Called() {
  MutexLock lock(&mutex_);
  ++stats_.calls;
}

void PeerCounters::Answered(absl::Duration latency, size_t bytes_sent, size_t bytes_received) {
  MutexLock lock(&mutex_);
  ++stats_.answered;
  stats_.bytes_sent += bytes_sent;
  stats_.bytes_received += bytes_received;
  latencies_.Add(latency);
}

void PeerCounters::Failed(size_t bytes_sent) {
  MutexLock lock(&mutex_);
  ++stats_.failed;
  stats_.bytes_sent += bytes_sent;
}

PeerStats PeerCounters::Get() const {
  MutexLock lock(&mutex_);
  PeerStats stats = stats_;
  stats.latency_p50 = latencies_.Percentile(.5);
  stats.latency_p99 = latencies_.Percentile(.99);
  stats.latency_max = latencies_.Percentile(1);
  return stats;
}

std::shared_ptr<PeerCounters> PeerTable::For(const std::string& address) {
  MutexLock lock(&mutex_);
  const auto it = peers_.find(address);
  if (it != peers_.end()) return it->second;
  if (peers_.size() >= kConnectionsMax) {
    absl::erase_if(peers_, [](const auto& peer) { return peer.second.use_count() == 1; });
  }
  return peers_[address] = std::make_shared<PeerCounters>(address);
}

void PeerTable::AddStats(std::vector<PeerStats>* stats) const {
  MutexLock lock(&mutex_);
  for (const auto& [address, counters] : peers_) stats->push_back(counters->Get());
}

}  // namespace cfs
