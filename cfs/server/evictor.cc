#include "cfs/server/evictor.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <nlohmann/json.hpp>
#include <queue>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/awaited.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/xattr.h"

namespace cfs {
namespace {

using Resident = LocalFileSystem::Resident;
using Room = LocalFileSystem::Room;

constexpr auto kLook = std::chrono::milliseconds(100);
constexpr auto kSecond = std::chrono::seconds(1);
// Looking for something that can go takes this share of the time at most.
constexpr int kIdleFactor = 10;
// And counting this one, for what the device says is wrong when others use it, too.
constexpr int kQuietFactor = 100;
// A flush that does nothing on the backend in that time hangs.
constexpr auto kNoProgress = std::chrono::seconds(60);
// Nothing becomes clean and closed in that time: nothing will.
constexpr auto kPatience = std::chrono::seconds(2);
// Who waits for room gets at least this share of what files may take.
constexpr uint64_t kRoomShare = 50;
// That more is free than before is worth another try.
constexpr uint64_t kFreerShare = 1000;
// Of looks for files that can go, when those that were found could not.
constexpr int kChoicesMax = 8;

// How much there is to gain by dropping the file.
double ScoreOf(const Resident& file, time_t now) {
  const double age = static_cast<double>(std::max<time_t>(now - file.used, 0)) + 1;
  return age * static_cast<double>(file.bytes);
}

}  // namespace

Evictor::Evictor(LocalFileSystem* fs, Flusher* flusher, uint64_t bytes_max)
    : fs_(fs), flusher_(flusher), bytes_max_(bytes_max) {}

Evictor::~Evictor() { Stop(); }

void Evictor::Start() {
  if (const auto fill = Look(); fill.ok()) Publish(*fill);
  thread_ = Thread([this] { Run(); });
}

void Evictor::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  std::vector<DoneStatus> waiting;
  {
    MutexLock lock(&mutex_);
    waiting.swap(waiting_);
  }
  for (DoneStatus& done : waiting) done(PosixError(EINTR));
}

void Evictor::MakeRoom(DoneStatus done) {
  {
    MutexLock lock(&mutex_);
    if (!stopping_ && thread_.joinable()) {
      waiting_.push_back(std::move(done));
      wake_.Signal();
      return;
    }
  }
  done(PosixError(EINTR));
}

absl::Status Evictor::MakeRoomNow() {
  Awaited<absl::Status> made;
  MakeRoom([&made](absl::Status status) { made.Set(std::move(status)); });
  return made.Get();
}

void Evictor::Run() {
  NameThread("cfs-evictor");
  for (;;) {
    std::vector<DoneStatus> waiting;
    {
      MutexLock lock(&mutex_);
      if (waiting_.empty() && !stopping_) wake_.WaitFor(&mutex_, kLook);
      if (stopping_) return;
      waiting.swap(waiting_);
    }
    if (!waiting.empty()) {
      const absl::Status served = Serve();
      if (const auto fill = Look(); fill.ok()) Publish(*fill);
      for (DoneStatus& done : waiting) done(served);
      continue;
    }
    const absl::StatusOr<Fill> fill = Look();
    if (!fill.ok()) continue;
    Publish(*fill);
    if (fill->free >= fill->total / kEvictShare || SteadyClock::now() < idle_until_) continue;
    const uint64_t wanted = fill->total / kEvictedShare - fill->free;
    const SteadyClock::time_point begin = SteadyClock::now();
    const absl::StatusOr<uint64_t> evicted = Evict(wanted);
    if (!evicted.ok()) {
      lines_.Log(LogLevel::kWarn,
                 absl::StrCat("cannot look for room error=", evicted.status().ToString()));
    }
    if (!evicted.ok() || *evicted < wanted) {
      const SteadyClock::time_point end = SteadyClock::now();
      idle_until_ = end + std::max<SteadyClock::duration>(kSecond, kIdleFactor * (end - begin));
    }
  }
}

void Evictor::Publish(const Fill& fill) {
  total_.store(fill.total, std::memory_order_relaxed);
  free_.store(fill.free, std::memory_order_relaxed);
  fs_->SetRoom(!fill.at_limit || fill.free > DaemonBytes(fill.total) ? Room::kPlenty
               : fill.free > 0                                       ? Room::kShort
                                                                     : Room::kNone);
}

absl::StatusOr<Evictor::Fill> Evictor::Look() {
  CFS_ASSIGN_OR_RETURN(const struct statvfs space, fs_->Space());
  const uint64_t unit = space.f_frsize;
  Fill fill{space.f_blocks * unit, space.f_bavail * unit, false};
  // Its inodes may be used up first.
  if (space.f_files > 0) {
    const double share = static_cast<double>(space.f_favail) / static_cast<double>(space.f_files);
    fill.free = std::min(fill.free, static_cast<uint64_t>(static_cast<double>(fill.total) * share));
  }
  if (bytes_max_ == 0) return fill;
  const uint64_t used = (space.f_blocks - space.f_bfree) * unit;
  const auto estimate = [&] {
    const int64_t change = static_cast<int64_t>(used - counted_used_);
    return static_cast<uint64_t>(
        std::max<int64_t>(0, static_cast<int64_t>(counted_bytes_) + change));
  };
  // Counting is dear where there are many files.
  const bool matters = estimate() > bytes_max_ - bytes_max_ / kEvictShare;
  const SteadyClock::time_point begin = SteadyClock::now();
  const bool changed = !counted_ || used != counted_used_;
  const auto due = counted_at_ + (matters ? kIdleFactor : kQuietFactor) * count_took_;
  // What was on its way then has no record before it has ended.
  if (!counted_ || (begin > due && (changed || (again_ && begin > counted_at_ + kSecond)))) {
    again_ = changed;
    uint64_t bytes = 0;
    CFS_RETURN_IF_ERROR(fs_->ListResident([&](const Resident& file) { bytes += file.bytes; }));
    const SteadyClock::time_point end = SteadyClock::now();
    counted_ = true;
    counted_bytes_ = bytes;
    counted_used_ = used;
    counted_at_ = end;
    count_took_ = end - begin;
  }
  const uint64_t taken = estimate();
  const uint64_t free = taken < bytes_max_ ? bytes_max_ - taken : 0;
  fill.total = std::min(fill.total, bytes_max_);
  fill.at_limit = free <= fill.free;
  fill.free = std::min(fill.free, free);
  return fill;
}

absl::StatusOr<std::vector<Resident>> Evictor::Choose(
    uint64_t bytes, bool open, const absl::flat_hash_set<InodeId>& staying) {
  timespec now_is;
  clock_gettime(CLOCK_REALTIME_COARSE, &now_is);
  const time_t now = now_is.tv_sec;
  const auto better = [now](const Resident& a, const Resident& b) {
    return ScoreOf(a, now) > ScoreOf(b, now);
  };
  // The worst on top: it goes when the others are enough.
  std::priority_queue<Resident, std::vector<Resident>, decltype(better)> chosen(better);
  uint64_t sum = 0;
  LocalFileSystem::KnownPolicies known;
  absl::Status failed;
  CFS_RETURN_IF_ERROR(fs_->ListResident([&](const Resident& file) {
    if (!file.clean || file.bytes == 0 || (file.open && !open) || !failed.ok()) return;
    if (sum >= bytes && !chosen.empty() && !better(file, chosen.top())) return;
    if (staying.contains(file.ino) || fs_->IsDirty(file.ino)) return;
    const auto pin = fs_->PolicyOf(file.has_xattrs ? file.ino : kNoInode, file.dir, kPinXattr,
                                   &known);
    if (!pin.ok()) failed = pin.status();
    if (!pin.ok() || *pin == "1") return;
    chosen.push(file);
    sum += file.bytes;
    while (sum - chosen.top().bytes >= bytes && chosen.size() > 1) {
      sum -= chosen.top().bytes;
      chosen.pop();
    }
  }));
  CFS_RETURN_IF_ERROR(failed);
  std::vector<Resident> best;
  best.reserve(chosen.size());
  for (; !chosen.empty(); chosen.pop()) best.push_back(chosen.top());
  std::ranges::reverse(best);
  return best;
}

absl::StatusOr<uint64_t> Evictor::Evict(uint64_t bytes) {
  uint64_t evicted = 0, count = 0;
  absl::flat_hash_set<InodeId> staying;
  bool open = false;
  for (int i = 0; i < kChoicesMax && evicted < bytes; ++i) {
    CFS_ASSIGN_OR_RETURN(const std::vector<Resident> files, Choose(bytes - evicted, open, staying));
    for (const Resident& file : files) {
      {
        MutexLock lock(&mutex_);
        if (stopping_) break;
      }
      const absl::StatusOr<bool> gone = fs_->Evict(file.ino);
      if (gone.ok() && *gone) {
        evicted += file.bytes;
        ++count;
        continue;
      }
      // It is open, or was changed meanwhile: others will do.
      staying.insert(file.ino);
      if (!gone.ok() && ErrnoOf(gone.status()) != EBUSY && !absl::IsNotFound(gone.status())) {
        lines_.Log(LogLevel::kWarn, absl::StrCat("cannot be evicted ino=", Raw(file.ino),
                                                 " error=", gone.status().ToString()));
      }
    }
    if (files.empty() && std::exchange(open, true)) break;
  }
  if (count == 0) return 0;
  evicted_files_.fetch_add(count, std::memory_order_relaxed);
  evicted_bytes_.fetch_add(evicted, std::memory_order_relaxed);
  fs_->FreeDoomed();
  return evicted;
}

bool Evictor::Pause() {
  MutexLock lock(&mutex_);
  if (!stopping_) wake_.WaitFor(&mutex_, kLook);
  return !stopping_;
}

bool Evictor::IsFreer(uint64_t free) {
  fs_->FreeDoomed();
  const absl::StatusOr<Fill> fill = Look();
  return fill.ok() && fill->free > free + fill->total / kFreerShare;
}

void Evictor::AwaitFlush(uint64_t free) {
  if (flusher_ == nullptr) return;
  const uint64_t number = flusher_->BeginFlush();
  uint64_t seen = flusher_->activity();
  SteadyClock::time_point since = SteadyClock::now();
  while (!flusher_->HasSynced(number) && Pause() && !IsFreer(free)) {
    if (const uint64_t now = flusher_->activity(); now != seen) {
      seen = now;
      since = SteadyClock::now();
    }
    if (SteadyClock::now() - since > kNoProgress) return;
  }
}

absl::Status Evictor::Serve() {
  CFS_ASSIGN_OR_RETURN(const Fill fill, Look());
  const uint64_t target = fill.total / kEvictedShare;
  const uint64_t wanted =
      std::max(target > fill.free ? target - fill.free : 0, fill.total / kRoomShare);
  const auto cleaned = [this] { return flusher_ == nullptr ? 0 : flusher_->cleaned(); };
  SteadyClock::time_point end = SteadyClock::now() + kPatience;
  for (;;) {
    const uint64_t before = cleaned();
    CFS_ASSIGN_OR_RETURN(const uint64_t evicted, Evict(wanted));
    if (evicted > 0 || IsFreer(fill.free)) return absl::OkStatus();
    // What was just closed, or brought there, can go a moment later.
    if (SteadyClock::now() > end) break;
    AwaitFlush(fill.free);
    if (cleaned() != before) end = SteadyClock::now() + kPatience;
    if (!Pause()) return PosixError(EINTR);
  }
  lines_.Log(LogLevel::kWarn, "the store is full, and nothing in it can go");
  return PosixError(ENOSPC);
}

nlohmann::json Evictor::Status() {
  return {{"store_bytes", total_.load(std::memory_order_relaxed)},
          {"store_bytes_free", free_.load(std::memory_order_relaxed)},
          {"evicted_files", evicted_files_.load(std::memory_order_relaxed)},
          {"evicted_bytes", evicted_bytes_.load(std::memory_order_relaxed)}};
}

}  // namespace cfs
