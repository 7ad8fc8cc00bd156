#include "cfs/server/flusher.h"

#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/base/thread_name.h"
#include "cfs/meta/backend_format.h"
#include "cfs/tier/backend.h"

namespace cfs {
namespace {

constexpr auto kLook = std::chrono::milliseconds(200);
constexpr auto kBetweenPasses = std::chrono::milliseconds(500);
// What was changed longer ago is flushed.
constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kDelay = kSecond;
constexpr auto kFirstPause = std::chrono::seconds(1);
constexpr int kPauseDoublings = 5;
constexpr size_t kTroublesSaid = 100;
constexpr uint64_t kFuseMagic = 0x65735546;
constexpr size_t kDepthMax = 4096;
// Of a sync.
constexpr int kPassesMax = 10;

uint64_t Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void Lower(uint64_t since, uint64_t* oldest) {
  if (*oldest == 0 || since < *oldest) *oldest = since;
}

std::chrono::seconds PauseAfter(int tries) {
  if (tries == 0) return std::chrono::seconds(0);
  return kFirstPause * (1 << std::min(tries - 1, kPauseDoublings));
}

std::string KeyOf(const LocalFileSystem::DirtyPlace& place) {
  return DirtyNameKey(place.dir, place.name);
}

std::string Say(const absl::Status& status) {
  const std::string error = strerror(ErrnoOf(status));
  if (status.message().empty() || status.message() == error) return error;
  return absl::StrCat(error, " (", status.message(), ")");
}

// Since it was looked at.
bool HasChanged(const absl::Status& status) {
  return ErrnoOf(status) == EAGAIN || absl::IsNotFound(status);
}

std::string KeyOf(InodeId ino) { return QueueKey(QueueKind::kDirty, ino); }

}  // namespace

Flusher::Flusher(LocalFileSystem* fs, BackendDirectories* directories, LargeCopier* large,
                 OnSoft on_soft)
    : fs_(fs),
      directories_(directories),
      large_(large),
      on_soft_(std::move(on_soft)),
      pool_(kFlushThreads) {}

Flusher::~Flusher() { Stop(); }

absl::Status Flusher::Prepare() {
  CFS_RETURN_IF_ERROR(directories_->Own().status());
  struct statfs st {};
  if (fstatfs(directories_->top().get(), &st) != 0) return ErrnoStatus("backend");
  fsyncs_ = static_cast<uint64_t>(st.f_type) == kFuseMagic;
  return Repair();
}

void Flusher::Start() {
  thread_ = Thread([this] { Run(); });
}

void Flusher::FinishAtStop() {
  MutexLock lock(&mutex_);
  finishes_ = true;
}

void Flusher::Stop() {
  {
    MutexLock lock(&mutex_);
    if (thread_.joinable() && std::exchange(finishes_, false)) {
      const uint64_t last = ++asked_;
      asked_all_ = true;
      wake_.SignalAll();
      while (synced_ < last) synced_one_.Wait(&mutex_);
    }
    ending_.store(true, std::memory_order_relaxed);
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Flusher::Run() {
  NameThread("cfs-flusher");
  uint64_t seen = 0;
  bool left = true;  // From before.
  uint64_t due = 0;
  SteadyClock::time_point next = SteadyClock::now();
  for (;;) {
    uint64_t asked;
    bool now, all;
    {
      MutexLock lock(&mutex_);
      if (ending_.load(std::memory_order_relaxed)) return;
      if (asked_ == synced_) wake_.WaitFor(&mutex_, kLook);
      if (ending_.load(std::memory_order_relaxed)) return;
      asked = asked_;
      now = asked > synced_;
      all = std::exchange(asked_all_, false);
    }
    const uint64_t version = fs_->dirty_version();
    const bool idle = !left && version == seen && (due == 0 || Now() < due);
    if (!now && (idle || SteadyClock::now() < next)) continue;
    Pass pass;
    absl::Status status;
    for (int i = 0; i < kPassesMax; ++i) {
      pass = Pass();
      pass.now = now;
      pass.all = all;
      status = RunPass(&pass);
      if (!all || !status.ok() || !(pass.again || pass.restless)) break;
    }
    if (status.ok() && all && pass.again) {
      status = PosixError(EAGAIN, "some files change all the time");
    }
    if (!status.ok()) {
      failure_lines_.Log(LogLevel::kWarn, absl::StrCat("flush failed error=", status.ToString()));
    }
    seen = version;
    left = !status.ok() || pass.left;
    due = pass.due;
    next = SteadyClock::now() + kBetweenPasses;
    auto errors = ErrorsOf(pass);
    MutexLock lock(&mutex_);
    errors_.swap(errors);
    troubles_ = std::move(pass.troubles);
    pass_failure_ = status;
    if (now) synced_ = asked;
    synced_one_.SignalAll();
  }
}

FlushPolicy Flusher::Policies::Of(InodeId ino, const absl::StatusOr<InodeRecord>& record,
                                  InodeId dir) {
  const bool own = record.ok() && record->xattr_list_bytes > 0;
  const auto value = fs_->PolicyOf(own ? ino : kNoInode, dir, kFlushXattr, &known_);
  return ParseFlushPolicy(value.ok() ? *value : "").value_or(FlushPolicy{});
}

std::optional<uint64_t> Flusher::Policies::DelayOf(const DirtyPlace& place) {
  const absl::StatusOr<InodeId> ino = fs_->NameNow(place.dir, place.name);
  // What was removed follows what is around it.
  if (!ino.ok() || *ino == kNoInode) return kDelay;
  const absl::StatusOr<InodeRecord> record = fs_->RecordNow(*ino);
  const FlushPolicy policy = Of(*ino, record, place.dir);
  // Names of what is there already do: somebody else may need its place.
  if (policy.never && record.ok() && record->IsRegular() && record->backend_identity.empty()) {
    if (unborn_.insert(*ino).second) ++files_;
    ++marks_;
    return std::nullopt;
  }
  return policy.seconds ? *policy.seconds * kSecond : kDelay;
}

std::optional<uint64_t> Flusher::Policies::DelayOf(InodeId ino) {
  const absl::StatusOr<InodeRecord> record = fs_->RecordNow(ino);
  if (!record.ok() || record->nlink == 0) return kDelay;
  const auto identity = DecodeBackendIdentity(record->backend_identity);
  const FlushPolicy policy = Of(ino, record, identity.ok() ? identity->dir : kNoInode);
  const bool unborn = unborn_.contains(ino);
  if (unborn || (policy.never && record->IsRegular() && identity.ok())) {
    ++marks_;
    if (!unborn) ++files_;
    return std::nullopt;
  }
  return policy.seconds ? *policy.seconds * kSecond : kDelay;
}

bool Flusher::IsYoung(Pass* pass, uint64_t due) {
  if (pass->now || due <= pass->time) return false;
  if (pass->due == 0 || due < pass->due) pass->due = due;
  ++pass->young;
  return true;
}

bool Flusher::IsHeldBack(const Pass& pass, const std::string& key) const {
  if (pass.all) return false;
  const auto it = pass.troubles.find(key);
  return it != pass.troubles.end() && SteadyClock::now() < it->second.next;
}

void Flusher::Fail(Pass* pass, const std::string& key, std::string path,
                   const absl::Status& status) {
  Trouble& trouble = pass->troubles[key];
  if (trouble.tries == 0) {
    failure_lines_.Log(LogLevel::kWarn, absl::StrCat("cannot be flushed, retrying path=", path,
                                                     " error=", status.ToString()));
  }
  trouble.path = std::move(path);
  trouble.old = false;
  trouble.status = status;
  ++trouble.tries;
  trouble.next = SteadyClock::now() + PauseAfter(trouble.tries);
}

absl::Status Flusher::RunPass(Pass* pass) {
  pass->time = Now();
  CFS_ASSIGN_OR_RETURN(LocalFileSystem::Dirty dirty, fs_->ListDirty());
  {
    // Of what is dirty still.
    MutexLock lock(&mutex_);
    absl::flat_hash_set<std::string> keys;
    for (const auto& place : dirty.names) keys.insert(KeyOf(place));
    for (const auto& inode : dirty.inodes) keys.insert(KeyOf(inode.ino));
    for (const auto& [key, trouble] : troubles_) {
      if (keys.contains(key)) pass->troubles[key] = trouble;
    }
  }
  const auto tried = [pass](const std::string& key) {
    if (const auto it = pass->troubles.find(key); it != pass->troubles.end()) it->second.old = true;
  };
  Policies policies(fs_);
  for (DirtyPlace& place : dirty.names) {
    const auto delay = policies.DelayOf(place);
    if (!delay || IsYoung(pass, place.mark.since + *delay)) continue;
    if (IsHeldBack(*pass, KeyOf(place))) continue;
    tried(KeyOf(place));
    pass->places.push_back(std::move(place));
  }
  for (const auto& inode : dirty.inodes) {
    const auto delay = policies.DelayOf(inode.ino);
    if (!delay || IsYoung(pass, inode.version + *delay)) continue;
    if (IsHeldBack(*pass, KeyOf(inode.ino))) continue;
    tried(KeyOf(inode.ino));
    pass->inodes.push_back(inode);
    pass->ending.insert(inode.ino);
  }
  staying_marks_.store(policies.marks(), std::memory_order_relaxed);
  staying_files_.store(policies.files(), std::memory_order_relaxed);
  if (!pass->places.empty() || !pass->inodes.empty()) {
    CountLeft(*pass);
    PlaceAll(pass);
    WriteAll(pass);
    CFS_RETURN_IF_ERROR(EndAll(pass));
    // Also of what was brought there, and stays dirty because it has a writer.
    absl::erase_if(pass->troubles, [](const auto& each) { return each.second.old; });
  }
  absl::erase_if(brought_, [&](const auto& each) { return !fs_->IsDirty(each.first); });
  CFS_ASSIGN_OR_RETURN(dirty, fs_->ListDirty());
  // What is half done is known again when its name is looked at.
  for (const auto& place : dirty.names) std::erase(dirty.pending, place.mark.base);
  if (pass->all || SteadyClock::now() >= cleaning_.next) {
    cleaning_.status = CleanOwn(dirty.pending);
    cleaning_.tries = cleaning_.status.ok() ? 0 : cleaning_.tries + 1;
    cleaning_.next = SteadyClock::now() + PauseAfter(cleaning_.tries);
  }
  pass->left = dirty.names.size() + dirty.inodes.size() > policies.marks() + pass->young;
  return cleaning_.status;
}

void Flusher::CountLeft(const Pass& pass) {
  activity_.fetch_add(1, std::memory_order_relaxed);
  const size_t done = pass.placed.size() + pass.written.size();
  const size_t all = pass.places.size() + pass.inodes.size();
  left_.store(all > done ? all - done : 0, std::memory_order_relaxed);
}

absl::Status Flusher::IntendAll(Pass* pass, std::deque<DirtyPlace*>* round) {
  // What is removed there, or put into another place, is so here for good.
  bool noted = !round->empty();
  std::erase_if(*round, [&](DirtyPlace* place) {
    const absl::Status intended = Intend(place, &noted);
    // Of a directory that is not there yet, or not any more.
    if (intended.ok() || ErrnoOf(intended) == ENXIO || absl::IsNotFound(intended)) return false;
    Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), intended);
    return true;
  });
  return noted ? fs_->SyncMetaNow() : absl::OkStatus();
}

void Flusher::PlaceAll(Pass* pass) {
  full_.clear();
  // What takes an object away from a place comes before what removes what is left there.
  std::deque<DirtyPlace*> round, removals;
  for (DirtyPlace& place : pass->places) {
    const auto ino = fs_->NameNow(place.dir, place.name);
    (ino.ok() && *ino == kNoInode ? removals : round).push_back(&place);
  }
  round.insert(round.end(), removals.begin(), removals.end());
  for (bool moved = true; moved && !round.empty();) {
    moved = false;
    std::deque<DirtyPlace*> later;
    std::vector<Copy> births;
    absl::flat_hash_set<InodeId> born;
    const size_t known = pass->places.size();
    const absl::Status intended = IntendAll(pass, &round);
    if (!intended.ok()) {
      for (DirtyPlace* const place : round) {
        Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), intended);
      }
      return;
    }
    for (DirtyPlace* const place : round) {
      if (ending_.load(std::memory_order_relaxed)) return;
      const absl::StatusOr<Outcome> outcome = Place(pass, place);
      if (!outcome.ok()) {
        Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), outcome.status());
      } else if (*outcome == Outcome::kDone) {
        moved = true;
        CountLeft(*pass);
      } else if (*outcome == Outcome::kLater || *outcome == Outcome::kAgain) {
        moved |= *outcome == Outcome::kAgain;
        later.push_back(place);
      } else if (*outcome == Outcome::kBirth) {
        const auto ino = fs_->NameNow(place->dir, place->name);
        // Of its names, the first one makes the object.
        if (!ino.ok() || !born.insert(*ino).second) {
          later.push_back(place);
          continue;
        }
        Copy birth;
        birth.place = place;
        birth.ino = *ino;
        birth.dir = place->dir;
        birth.name = place->name;
        births.push_back(std::move(birth));
      }
    }
    CopyAll(pass, &births);
    for (Copy& birth : births) {
      moved |= birth.status.ok() && birth.outcome == Outcome::kDone;
      if (!birth.status.ok()) {
        Fail(pass, KeyOf(*birth.place), PathOf(birth.dir, birth.name), birth.status);
      } else if (birth.outcome == Outcome::kLater) {
        later.push_back(birth.place);
      }
    }
    // Conflicts have made new ones.
    for (size_t i = known; i < pass->places.size(); ++i) {
      later.push_back(&pass->places[i]);
      moved = true;
    }
    round.swap(later);
    if (!moved) moved = TakeBackFull(pass, &round);
  }
  for (const DirtyPlace* place : round) {
    if (const auto it = pass->lost.find(place); it != pass->lost.end()) {
      Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), it->second);
      continue;
    }
    // Something that it needs was just changed, and waits for the next pass.
    if (!pass->all) continue;
    Fail(pass, KeyOf(*place), PathOf(place->dir, place->name),
         PosixError(EAGAIN, "something else has to be flushed first"));
  }
}

// Directories that were removed here, and that others have put something into: what is
// there stays.
bool Flusher::TakeBackFull(Pass* pass, std::deque<DirtyPlace*>* round) {
  bool taken = false;
  for (auto it = round->begin(); it != round->end();) {
    DirtyPlace* const place = *it;
    const absl::StatusOr<bool> back =
        full_.contains(place) ? TakeBack(pass, place) : absl::StatusOr<bool>(false);
    if (back.ok() && !*back) {
      ++it;
      continue;
    }
    if (!back.ok()) Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), back.status());
    taken = true;
    it = round->erase(it);
  }
  return taken;
}

void Flusher::WriteAll(Pass* pass) {
  std::vector<Copy> copies;
  std::vector<InodeId> directories;
  for (const auto& inode : pass->inodes) {
    if (ending_.load(std::memory_order_relaxed)) break;
    const absl::StatusOr<Outcome> outcome = Write(pass, inode, &copies);
    if (!outcome.ok()) FailInode(pass, inode.ino, outcome.status());
    // It has no object: its name was not there to be seen yet, or has failed.
    if (outcome.ok() && *outcome == Outcome::kLater && pass->troubles.empty()) pass->again = true;
    CountLeft(*pass);
  }
  CopyAll(pass, &copies);
  for (Copy& copy : copies) {
    if (!copy.status.ok()) FailInode(pass, copy.ino, copy.status);
  }
  // Last, for whatever happens in them changes their times.
  for (const InodeId dir : pass->touched) {
    const bool ending = ending_.load(std::memory_order_relaxed);
    absl::Status status = ending ? PosixError(EINTR) : WriteDirectory(dir);
    if (status.ok()) continue;
    std::erase_if(pass->written, [dir](const auto& inode) { return inode.ino == dir; });
    // What has touched it need not be done again.
    status.Update(fs_->NoteDirty(dir));
    if (!ending) Fail(pass, KeyOf(dir), PathOf(dir), status);
  }
}

void Flusher::FailInode(Pass* pass, InodeId ino, const absl::Status& status) {
  const int error = ErrnoOf(status);
  std::string path = PathOf(ino);
  if (error != kNotOurs) return Fail(pass, KeyOf(ino), std::move(path), status);
  const absl::Status disowned = Disown(ino);
  if (!disowned.ok()) return Fail(pass, KeyOf(ino), std::move(path), disowned);
  pass->again = true;
}

// Where the backend does not know how to sync all of it. The first error of each directory.
void Flusher::SyncTouched(Pass* pass) {
  absl::flat_hash_map<InodeId, absl::Status> failed;
  for (const InodeId dir : pass->touched) {
    const absl::Status synced = directories_->With(dir, [](int fd) -> absl::Status {
      return fsync(fd) == 0 ? absl::OkStatus() : PosixError(errno);
    });
    if (synced.ok()) continue;
    const auto record = fs_->RecordNow(dir);
    // What was in it has gone with it.
    const bool gone = absl::IsNotFound(record.status()) || (record.ok() && record->nlink == 0);
    if (!gone) failed[dir] = synced;
  }
  if (failed.empty()) return;
  std::erase_if(pass->placed, [&](const DirtyPlace* place) {
    const auto it = failed.find(place->dir);
    if (it != failed.end()) Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), it->second);
    return it != failed.end();
  });
  std::erase_if(pass->written, [&](const auto& inode) {
    auto it = failed.find(inode.ino);
    if (it == failed.end()) {
      const auto record = fs_->RecordNow(inode.ino);
      const auto identity = DecodeBackendIdentity(record.ok() ? record->backend_identity : "");
      if (identity.ok()) it = failed.find(identity->dir);
    }
    if (it != failed.end()) Fail(pass, KeyOf(inode.ino), PathOf(inode.ino), it->second);
    return it != failed.end();
  });
}

absl::Status Flusher::EndAll(Pass* pass) {
  if (pass->placed.empty() && pass->written.empty()) return absl::OkStatus();
  const bool few = !pass->wide && pass->touched.size() <= kSyncedOneByOne;
  FaultPoint("flush-before-sync");
  if (fsyncs_ || few) SyncTouched(pass);
  const absl::Status synced = few ? absl::OkStatus() : SyncBackend(directories_->top().get());
  if (!synced.ok()) {
    for (const DirtyPlace* const place : pass->placed) {
      Fail(pass, KeyOf(*place), PathOf(place->dir, place->name), synced);
    }
    for (const auto& inode : pass->written) {
      Fail(pass, KeyOf(inode.ino), PathOf(inode.ino), synced);
    }
    return absl::OkStatus();
  }
  FaultPoint("flush-synced");
  // After an error of the store, too, the rest is to be said.
  absl::Status failed;
  for (const DirtyPlace* const place : pass->placed) {
    const absl::Status ended = fs_->EndName(place->dir, place->name);
    if (!HasChanged(ended)) failed.Update(ended);
  }
  std::vector<InodeId> soft;
  for (const auto& inode : pass->written) failed.Update(EndWritten(pass, inode, &soft));
  if (soft.empty()) return failed;
  FaultPoint("flush-soft");
  // Should the marks come back after power loss, they would say that what is left here is newer.
  failed.Update(fs_->SyncMetaNow());
  on_soft_(soft);
  return failed;
}

absl::Status Flusher::EndWritten(Pass* pass, const LocalFileSystem::DirtyInode& inode,
                                 std::vector<InodeId>* soft) {
  const auto it = pass->soft.find(inode.ino);
  absl::Status ended;
  if (it == pass->soft.end()) {
    ended = fs_->EndInode(inode.ino, inode.version);
  } else {
    ended = fs_->EndInodeSoftly(inode.ino, inode.version, it->second);
    if (ended.ok()) soft->push_back(inode.ino);
    // It stays dirty: after power loss, it comes to the backend as it is here.
    const absl::Status hard = ended.ok() ? ended : fs_->SyncData(inode.ino);
    if (!hard.ok()) {
      FailInode(pass, inode.ino, hard);
      return absl::OkStatus();
    }
  }
  if (ErrnoOf(ended) == EBUSY) return absl::OkStatus();
  if (!HasChanged(ended)) CFS_RETURN_IF_ERROR(ended);
  if (ended.ok()) cleaned_.fetch_add(1, std::memory_order_relaxed);
  if (!ended.ok()) pass->restless = true;
  return absl::OkStatus();
}

// Nothing is on its way: what is still there is nobody's, or has no other place.
absl::Status Flusher::CleanOwn(const std::vector<InodeId>& pending) {
  for (const InodeId ino : pending) {
    if (!fs_->IsDirty(ino)) CFS_RETURN_IF_ERROR(fs_->ForgetPending(ino));
  }
  CFS_ASSIGN_OR_RETURN(const BackendDirectories::Directory own, directories_->Own());
  std::vector<std::string> names;
  CFS_RETURN_IF_ERROR(ListBackendDirectory(own->get(), [&names](const char* name) {
    names.emplace_back(name);
    return true;
  }));
  for (const std::string& name : names) {
    absl::string_view number = name;
    const bool temporary = absl::ConsumeSuffix(&number, ".new");
    uint64_t raw;
    if (!absl::SimpleAtoi(number, &raw)) continue;
    const InodeId ino{raw};
    if (!temporary) {
      const auto record = fs_->RecordNow(ino);
      if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
      if (record.ok() && record->nlink > 0) {
        const auto identity = DecodeBackendIdentity(record->backend_identity);
        if (!identity.ok() || record->IsDirectory()) continue;
        const absl::StatusOr<struct statx> there = StatBackend(own->get(), name);
        if (ErrnoOf(there.status()) == ENOENT) continue;
        CFS_RETURN_IF_ERROR(there.status());
        // It was put here, which failed to be noted, and another one made since.
        const bool replaced = there->stx_ino != identity->stamp.number &&
                              !(record->IsRegular() && record->layout == Layout::kBackend);
        if (!replaced) {
          if (identity->dir != kNoInode) continue;
          // One that has another name there by now needs none here.
          CFS_ASSIGN_OR_RETURN(const bool found, FindLink(ino, *identity));
          if (!found) continue;
        }
      }
    }
    // What is in a directory goes first, by its marks.
    if (unlinkat(own->get(), name.c_str(), 0) != 0 && errno == EISDIR &&
        unlinkat(own->get(), name.c_str(), AT_REMOVEDIR) == 0 && !temporary) {
      directories_->Forget(ino);
      CFS_RETURN_IF_ERROR(fs_->ForgetRemoved(ino));
    }
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------- status

std::string Flusher::PathOf(InodeId dir, const std::string& name) {
  std::string path = name;
  InodeId at = dir;
  for (size_t i = 0; at != kRootInode && i < kDepthMax; ++i) {
    const auto record = fs_->RecordNow(at);
    const auto identity = DecodeBackendIdentity(record.ok() ? record->backend_identity : "");
    if (!identity.ok() || identity->dir == kNoInode) {
      return absl::StrCat("(directory with inode ", Raw(at), ")/", path);
    }
    path = absl::StrCat(identity->name, "/", path);
    at = identity->dir;
  }
  return path;
}

std::string Flusher::PathOf(InodeId ino) {
  const auto record = fs_->RecordNow(ino);
  const auto identity = DecodeBackendIdentity(record.ok() ? record->backend_identity : "");
  if (identity.ok() && identity->dir != kNoInode) return PathOf(identity->dir, identity->name);
  return absl::StrCat("(file with inode ", Raw(ino), ")");
}

uint64_t Flusher::BeginSync() {
  MutexLock lock(&mutex_);
  asked_all_ = true;
  wake_.SignalAll();
  return ++asked_;
}

uint64_t Flusher::BeginFlush() {
  MutexLock lock(&mutex_);
  wake_.SignalAll();
  return ++asked_;
}

absl::flat_hash_map<InodeId, std::string> Flusher::ErrorsOf(const Pass& pass) {
  absl::flat_hash_map<InodeId, std::string> errors;
  for (const auto& [key, trouble] : pass.troubles) {
    InodeId ino;
    absl::string_view name;
    QueueKind kind;
    if (ParseDirtyNameKey(key, &ino, &name)) {
      ino = fs_->NameNow(ino, name).value_or(kNoInode);
    } else if (!ParseQueueKey(key, &kind, &ino)) {
      continue;
    }
    if (ino != kNoInode) errors[ino] = Say(trouble.status);
  }
  return errors;
}

std::string Flusher::ErrorOf(InodeId ino) {
  MutexLock lock(&mutex_);
  const auto it = errors_.find(ino);
  return it == errors_.end() ? "" : it->second;
}

nlohmann::json Flusher::Failed() {
  nlohmann::json failed = nlohmann::json::array();
  for (const auto& [key, trouble] : troubles_) {
    if (failed.size() == kTroublesSaid) break;
    failed.push_back({{"path", trouble.path}, {"error", Say(trouble.status)}});
  }
  if (!pass_failure_.ok()) failed.push_back({{"path", "."}, {"error", Say(pass_failure_)}});
  return failed;
}

nlohmann::json Flusher::SyncStatus(uint64_t number) {
  MutexLock lock(&mutex_);
  const size_t count = troubles_.size() + (pass_failure_.ok() ? 0 : 1);
  return {{"ok", true},
          {"done", synced_ >= number},
          {"left", left_.load(std::memory_order_relaxed)},
          {"bytes", flushed_bytes_.load(std::memory_order_relaxed)},
          {"stay", staying_files_.load(std::memory_order_relaxed)},
          {"failed", Failed()},
          {"failed_count", count}};
}

nlohmann::json Flusher::Status() {
  uint64_t oldest = 0;
  const absl::StatusOr<LocalFileSystem::Dirty> dirty = fs_->ListDirty();
  if (dirty.ok()) {
    for (const auto& place : dirty->names) Lower(place.mark.since, &oldest);
    for (const auto& inode : dirty->inodes) Lower(inode.version, &oldest);
  }
  const uint64_t now = Now();
  MutexLock lock(&mutex_);
  absl::Status last = pass_failure_;
  std::string path;
  for (const auto& [key, trouble] : troubles_) {
    // What only waits for another one says little.
    if (!last.ok() && ErrnoOf(trouble.status) == EAGAIN) continue;
    last = trouble.status;
    path = trouble.path;
  }
  return {{"dirty_names", dirty.ok() ? dirty->names.size() : 0},
          {"dirty_inodes", dirty.ok() ? dirty->inodes.size() : 0},
          {"never_flushed", staying_files_.load(std::memory_order_relaxed)},
          {"dirty_seconds", oldest > 0 && now > oldest ? (now - oldest) / 1'000'000'000 : 0},
          {"flushed_files", flushed_files_.load(std::memory_order_relaxed)},
          {"flushed_bytes", flushed_bytes_.load(std::memory_order_relaxed)},
          {"conflicts", conflicts_.load(std::memory_order_relaxed)},
          {"failed", Failed()},
          {"flush_failures", troubles_.size() + (pass_failure_.ok() ? 0 : 1)},
          {"last_flush_failure",
           last.ok() ? "" : absl::StrCat(path, path.empty() ? "" : ": ", Say(last))}};
}

}  // namespace cfs
