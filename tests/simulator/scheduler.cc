#include "tests/simulator/scheduler.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cfs/base/check.h"

namespace cfs {
namespace {

constexpr std::chrono::nanoseconds kPointTime(50);
constexpr std::chrono::nanoseconds kSwitchTime(1000);
constexpr size_t kStackBytes = 512 << 10;
// More than any seed needs: threads that only yield to each other.
constexpr uint64_t kSwitchesMax = 20'000'000;

uint64_t Mix(uint64_t hash, uint64_t value) {
  return (hash ^ value) * 0x9E3779B97F4A7C15u + (hash >> 29);
}

}  // namespace

Scheduler::Scheduler(const Options& options)
    : verbose_(options.verbose), random_(options.seed), options_(options) {
  current_ = Make(kWorld, nullptr);
  simulation = this;
}

Scheduler::SimulatedThread* Scheduler::Make(ProcessId process, std::function<void()> body) {
  threads_.push_back(std::make_unique<SimulatedThread>());
  SimulatedThread* const thread = threads_.back().get();
  thread->id = threads_.size();
  thread->process = process;
  thread->body = std::move(body);
  return thread;
}

void Scheduler::GiveBaton(SimulatedThread* to) {
  to->baton.store(1, std::memory_order_release);
  syscall(SYS_futex, &to->baton, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

void Scheduler::AwaitBaton(SimulatedThread* self) {
  while (self->baton.load(std::memory_order_acquire) == 0) {
    syscall(SYS_futex, &self->baton, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
  }
  self->baton.store(0, std::memory_order_relaxed);
}

void* Scheduler::Enter(void* thread) {
  auto* const self = static_cast<SimulatedThread*>(thread);
  auto* const scheduler = static_cast<Scheduler*>(simulation);
  // Who has made it goes on when it is here.
  GiveBaton(scheduler->current_);
  AwaitBaton(self);
  scheduler->Arrived();
  self->body();
  self->body = nullptr;
  self->ended = true;
  scheduler->Wake(self, /*all=*/true);
  scheduler->ended_ = self->pthread;
  SimulatedThread* const next = scheduler->Next();
  scheduler->current_ = next;
  GiveBaton(next);
  return nullptr;
}

void Scheduler::Arrived() {
  if (!ended_) return;
  // All that it has is free before anybody else asks for memory.
  pthread_join(*ended_, nullptr);
  ended_.reset();
}

uint64_t Scheduler::StartThread(std::function<void()> body) {
  SimulatedThread* const thread = Make(current_->process, std::move(body));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  CFS_CHECK(pthread_create(&thread->pthread, &attributes, Enter, thread) == 0);
  pthread_attr_destroy(&attributes);
  AwaitBaton(current_);
  runnable_.push_back(thread);
  return thread->id;
}

void Scheduler::Spawn(ProcessId process, std::function<void()> body) {
  const ProcessId before = std::exchange(current_->process, process);
  StartThread(std::move(body));
  current_->process = before;
}

void Scheduler::JoinThread(uint64_t id) {
  SimulatedThread* const thread = threads_[id - 1].get();
  while (!thread->ended) Sleep(thread, Instant::max());
}

Scheduler::SimulatedThread* Scheduler::Next() {
  now_ += kSwitchTime;
  if (++switches_ > kSwitchesMax) Fail("the threads do not come to rest");
  for (;;) {
    while (!timers_.empty() && timers_.begin()->first <= now_) {
      WakeThread(threads_[timers_.begin()->second - 1].get(), /*woken=*/false);
    }
    if (!runnable_.empty()) break;
    if (timers_.empty()) Fail("no thread can run any more");
    now_ = timers_.begin()->first;
  }
  const size_t at = random_.Below(runnable_.size());
  SimulatedThread* const next = runnable_[at];
  runnable_[at] = runnable_.back();
  runnable_.pop_back();
  hash_ = Mix(Mix(hash_, next->id), static_cast<uint64_t>(now_.time_since_epoch().count()));
  return next;
}

void Scheduler::SwitchAway() {
  SimulatedThread* const self = current_;
  SimulatedThread* const next = Next();
  if (next == self) return;
  current_ = next;
  GiveBaton(next);
  AwaitBaton(self);
  Arrived();
}

void Scheduler::Yield() {
  now_ += kPointTime;
  if (--points_left_ > 0) return;
  points_left_ = 1 + random_.Below(2 * options_.stride);
  if (options_.slow > 0 && current_->process != kWorld && random_.PerMille(options_.slow)) {
    const auto most = static_cast<uint64_t>(options_.slow_max.count());
    return SleepFor(std::chrono::nanoseconds(random_.Below(most)));
  }
  runnable_.push_back(current_);
  SwitchAway();
}

bool Scheduler::Sleep(const void* place, Instant end) {
  SimulatedThread* const self = current_;
  self->place = place;
  self->end = end;
  self->sleeps = true;
  self->woken = false;
  if (place != nullptr) sleepers_[place].push_back(self);
  if (end != Instant::max()) timers_.emplace(end, self->id);
  SwitchAway();
  return self->woken;
}

void Scheduler::Unlist(SimulatedThread* thread) {
  if (!thread->sleeps) return;
  thread->sleeps = false;
  if (thread->end != Instant::max()) timers_.erase({thread->end, thread->id});
  if (thread->place == nullptr) return;
  const auto at = sleepers_.find(thread->place);
  std::erase(at->second, thread);
  if (at->second.empty()) sleepers_.erase(at);
}

void Scheduler::WakeThread(SimulatedThread* thread, bool woken) {
  Unlist(thread);
  thread->woken = woken;
  runnable_.push_back(thread);
}

void Scheduler::Wake(const void* place, bool all) {
  for (;;) {
    const auto at = sleepers_.find(place);
    if (at == sleepers_.end()) return;
    WakeThread(at->second[random_.Below(at->second.size())], /*woken=*/true);
    if (!all) return;
  }
}

void Scheduler::Kill(ProcessId process) {
  CFS_CHECK(process != kWorld);
  for (const auto& thread : threads_) {
    if (thread->process != process || thread->ended || thread->dead) continue;
    thread->dead = true;
    Unlist(thread.get());
    std::erase(runnable_, thread.get());
  }
  if (current_->dead) SwitchAway();
}

void Scheduler::At(const char* fault_point) {
  if (current_->process == kWorld) return;
  if (at_) at_(current_->process, fault_point);
  Yield();
}

void Scheduler::TraceLine(const std::string& line) {
  printf("%10.6f %u/%lu %s\n", seconds(), current_->process, current_->id, line.c_str());
}

void Scheduler::Fail(const std::string& what) {
  Trace("FAILURE: ", what);
  if (on_fail_) on_fail_(what);
  fflush(stdout);
  _exit(1);
}

}  // namespace cfs
