#include "cfs/server/cluster_file_system.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cfs/base/awaited.h"
#include "cfs/base/clock.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/steady_clock.h"
#include "cfs/base/thread_name.h"
#include "cfs/server/control.h"
#include "cfs/server/peer_service.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

// Decodes a result.
template <typename T>
absl::StatusOr<T> ResultOf(absl::StatusOr<PeerAnswer> answer) {
  if (!answer.ok()) return answer.status();
  T value;
  if (!Unpacker(answer->result).Take(&value)) return PosixError(EIO, "malformed answer");
  return value;
}

// What the backing file says takes precedence, as on a node that has both.
void MergeData(const struct stat& data, Attr* attr) {
  struct stat& st = attr->st;
  st.st_size = data.st_size;
  st.st_blocks = data.st_blocks;
  if (!(data.st_mtim < attr->btime)) st.st_mtim = data.st_mtim;
  if (!(data.st_atim < attr->btime)) st.st_atim = data.st_atim;
  if (st.st_ctim < data.st_ctim) st.st_ctim = data.st_ctim;
}

// Of a file that is opened again for somebody who has it open.
int FlagsOfAgain(int flags) { return flags & ~(O_CREAT | O_EXCL | O_TRUNC); }

// As the kernel stamps files.
timespec CoarseNow() { return RealClock().Now(); }

constexpr int kReopensMax = 3;
// Of a name whose inode is gone each time.
constexpr int kLookupsMax = 50;
// Where nodes were lost, it is taken for lost sooner.
constexpr int kLookupsOfLost = 4;
// A longer read is several requests.
constexpr size_t kReadPieceBytes = 512 << 10;

// A read from another node whose pieces are asked for at the same time: while one
// is on its way, the home reads the next, and this node checks the one before.
class PieceRead {
 public:
  PieceRead(size_t size, Done<ReadResult> done)
      : buffer_(new char[size]),
        left_((size + kReadPieceBytes - 1) / kReadPieceBytes),
        end_(size),
        done_(std::move(done)) {}

  char* buffer() { return buffer_.get(); }

  // What was asked of the piece of `bytes` from `at` on. The last one ends the
  // read: with an error, if any had one, else with what is there up to the first
  // gap. Thread-safe.
  void End(size_t at, size_t bytes, const absl::StatusOr<PeerAnswer>& answer) {
    absl::Status error;
    ReadResult result;
    result.bytes = buffer_.get();
    {
      MutexLock lock(&mutex_);
      if (!answer.ok()) {
        error_ = answer.status();
      } else if (answer->payload_bytes < bytes) {
        end_ = std::min(end_, at + answer->payload_bytes);
      }
      if (--left_ > 0) return;
      error = error_;
      result.size = end_;
    }
    if (!error.ok()) return done_(error);
    done_(result);
  }

 private:
  const std::unique_ptr<char[]> buffer_;
  Mutex mutex_;
  size_t left_ ABSL_GUARDED_BY(mutex_);
  size_t end_ ABSL_GUARDED_BY(mutex_);
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  Done<ReadResult> done_;  // Of whoever ends the last piece.
};

}  // namespace

struct ClusterFileSystem::File {
  InodeId ino;
  Place place;
  int flags;
  uint64_t key;
  HandleId local;  // Valid if the data is here.
  bool remote;
  std::atomic<bool> locked{false};  // Relaxed: whoever locks has not closed.
  // Written through: what a write drops has been dropped. Relaxed: twice is fine.
  std::atomic<bool> written{false};
  // Storage epoch of the home when the first write since the last sync was
  // answered, 0: none was. Relaxed: whoever syncs has seen the write return.
  std::atomic<uint64_t> unsynced{0};
};

// A file that is to be made, wherever there is room for it.
struct ClusterFileSystem::Creation {
  Caller caller;
  InodeId dir;
  std::string name;  // Empty: it gets none.
  uint32_t mode;
  int flags;
  Done<CreateResult> done;
  // Homes that have been tried, and why the last one could not take the data.
  absl::flat_hash_set<NodeId> tried = {};
  absl::Status refused = {};
};

ClusterFileSystem::ClusterFileSystem(LocalFileSystem* local, PeerClient* peers, NodeId self,
                                     uint64_t incarnation, MapFn map, ClusterNames* names,
                                     ClusterSpace* space)
    : local_(local),
      peers_(peers),
      names_(names),
      space_(space),
      self_(self),
      incarnation_(incarnation),
      map_(std::move(map)),
      places_(kRecordCacheEntries),
      lost_(kRecordCacheEntries) {
  peers_->SetForgotten([this](NodeId node) { Reassert(node); });
  peers_->SetHere([this](PeerOp op, Slot slot, uint64_t sequence, bool again) {
    return AnswerOfBefore(op, slot, sequence, again);
  });
}

ClusterFileSystem::~ClusterFileSystem() { Stop(); }

// ------------------------------------------------------------------- requests

template <typename T, typename... Args>
void ClusterFileSystem::AskOwner(InodeId ino, PeerOp op, size_t result_bytes_max, Done<T> done,
                                 const Args&... args) {
  PeerRequest request;
  request.op = op;
  request.slot = SlotOf(ino);
  request.arguments = Packer().Add(args...).Take();
  request.result_bytes_max = result_bytes_max;
  request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    done(ResultOf<T>(std::move(answer)));
  };
  peers_->Ask(std::move(request));
}

template <typename... Args>
void ClusterFileSystem::TellOwner(InodeId ino, PeerOp op, DoneStatus done, const Args&... args) {
  PeerRequest request;
  request.op = op;
  request.slot = SlotOf(ino);
  request.arguments = Packer().Add(args...).Take();
  request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    done(answer.status());
  };
  peers_->Ask(std::move(request));
}

std::optional<absl::StatusOr<PeerAnswer>> ClusterFileSystem::AnswerOfBefore(PeerOp op, Slot slot,
                                                                            uint64_t sequence,
                                                                            bool again) {
  if (!local_->Owns(slot)) return std::nullopt;
  if (!again || Planted("replies-of-before-ignored")) return NotOwned();
  const auto made = local_->ReplyOf(slot, {self_, incarnation_, sequence});
  if (absl::IsNotFound(made.status())) return NotOwned();
  if (!made.ok()) return made.status();
  PeerAnswer answer;
  if (op == PeerOp::kMakeNode || op == PeerOp::kMakeDirectory || op == PeerOp::kMakeSymlink ||
      op == PeerOp::kLink || op == PeerOp::kCreate || op == PeerOp::kCreateAway) {
    Attr attr;
    attr.st.st_ino = Raw(*made);
    attr.elsewhere = true;
    answer.result = Packer().Add(attr).Take();
  }
  return answer;
}

template <typename Result, typename Here, typename There>
void ClusterFileSystem::AtOwner(InodeId ino, Here here, There there,
                                absl::AnyInvocable<void(Result)> done,
                                std::chrono::steady_clock::time_point since) {
  absl::AnyInvocable<void(Result)> answered = [this, ino, here, there, since,
                                               done = std::move(done)](Result result) mutable {
    const absl::Status& status = StatusOf(result);
    if (!IsBusy(status) && !IsNotOwned(status)) return done(std::move(result));
    if (SteadyClock::now() - since > peers_->time_out()) {
      return done(absl::UnavailableError("a transaction has it and does not end"));
    }
    peers_->Later(since, [this, ino, here = std::move(here), there = std::move(there), since,
                          done = std::move(done)](bool stopped) mutable {
      if (stopped) return done(PosixError(EIO));
      AtOwner(ino, std::move(here), std::move(there), std::move(done), since);
    });
  };
  if (Mine(ino)) {
    here(std::move(answered));
  } else {
    there(std::move(answered));
  }
}

template <typename T, typename... Args>
void ClusterFileSystem::AskNode(NodeId node, PeerOp op, Done<T> done, const Args&... args) {
  PeerRequest request;
  request.op = op;
  request.node = node;
  request.arguments = Packer().Add(args...).Take();
  request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    done(ResultOf<T>(std::move(answer)));
  };
  peers_->Ask(std::move(request));
}

template <typename... Args>
void ClusterFileSystem::AskHome(FilePtr file, PeerOp op, Done<PeerAnswer> done,
                                const Args&... args) {
  auto make = [op, home = file->place.home, arguments = Packer().Add(args...).Take()] {
    PeerRequest request;
    request.op = op;
    request.node = home;
    request.arguments = arguments;
    return request;
  };
  AskHomeAgain(std::move(file), std::move(make), kReopensMax, std::move(done));
}

void ClusterFileSystem::AskHomeAgain(FilePtr file, std::function<PeerRequest()> make, int attempts,
                                     Done<PeerAnswer> done) {
  PeerRequest request = make();
  request.done = [this, file = std::move(file), make = std::move(make), attempts,
                  done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    if (!absl::IsFailedPrecondition(answer.status()) || attempts == 0) {
      return done(std::move(answer));
    }
    // The home has started again, or took us for dead.
    const FilePtr reopened = file;
    OpenAtHome(reopened, FlagsOfAgain(reopened->flags), /*kill_privileges=*/false,
               /*restore=*/false,
               [this, file = std::move(file), make = std::move(make), attempts,
                done = std::move(done)](absl::Status opened) mutable {
                 if (!opened.ok()) return done(std::move(opened));
                 AskHomeAgain(std::move(file), std::move(make), attempts - 1, std::move(done));
               });
  };
  peers_->Ask(std::move(request));
}

void ClusterFileSystem::OpenAtHome(FilePtr file, int flags, bool kill_privileges, bool restore,
                                   DoneStatus done) {
  PeerRequest request;
  request.op = PeerOp::kOpen;
  request.node = file->place.home;
  request.arguments = Packer()
                          .Add(file->key, file->ino, file->place.backing, flags,
                               kill_privileges, restore)
                          .Take();
  request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    done(answer.status());
  };
  peers_->Ask(std::move(request));
}

// ----------------------------------------------------------------- attributes

Done<Attr> ClusterFileSystem::Completing(Done<Attr> done, bool of_name) {
  return [this, of_name, done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
    if (!attr.ok()) return done(attr.status());
    if (attr->elsewhere) return GetAttrOf(InodeId(attr->st.st_ino), of_name, std::move(done));
    Complete(*std::move(attr), of_name, std::move(done));
  };
}

void ClusterFileSystem::Complete(Attr attr, bool of_name, Done<Attr> done) {
  const InodeId ino{attr.st.st_ino};
  const Place place{attr.home, attr.backing};
  if (place.backing == kNoBacking) return done(std::move(attr));
  places_.Put(ino, place);
  if (!IsSplit(ino, place)) return done(std::move(attr));
  attr.stable = false;
  const ClusterMapPtr map = map_();
  const ClusterNode* const home = map->Find(place.home);
  // A name can be removed or changed without the data. Whoever wants to know the
  // size asks again.
  if (of_name && (home == nullptr || home->state == NodeState::kDown)) {
    return done(std::move(attr));
  }
  // The record is all that is left.
  if (IsGone(place.home)) return done(std::move(attr));
  auto merge = [attr = std::move(attr), of_name,
                done = std::move(done)](absl::StatusOr<struct stat> data) mutable {
    // Lost with power before it was ever synced, and not opened since: the
    // record says what it is.
    if (absl::IsNotFound(data.status())) return done(std::move(attr));
    if (of_name && absl::IsUnavailable(data.status())) return done(std::move(attr));
    if (!data.ok()) return done(data.status());
    MergeData(*data, &attr);
    done(std::move(attr));
  };
  if (place.home == self_) return merge(local_->StatForeign(place.backing));
  AskNode<struct stat>(place.home, PeerOp::kStatData, std::move(merge), place.backing);
}

void ClusterFileSystem::Locate(InodeId ino, Done<Place> done) {
  if (const auto known = places_.Get(ino)) return done(*known);
  Done<Attr> located = [this, ino, done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
    if (!attr.ok()) return done(attr.status());
    const Place place{attr->home, attr->backing};
    if (place.backing != kNoBacking) places_.Put(ino, place);
    done(place);
  };
  AtOwner(ino, [this, ino](Done<Attr> d) { local_->GetAttr(ino, std::move(d)); },
          [this, ino](Done<Attr> d) {
            AskOwner<Attr>(ino, PeerOp::kGetAttr, 0, std::move(d), ino);
          },
          std::move(located));
}

void ClusterFileSystem::GetAttr(InodeId ino, Done<Attr> done) {
  GetAttrOf(ino, /*of_name=*/false,
            [this, ino, done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
              const auto type = lost_.Get(ino);
              if (ErrnoOf(attr.status()) != ESTALE || !type) return done(std::move(attr));
              done(LostInode(ino, *type));
            });
}

Attr ClusterFileSystem::LostInode(InodeId ino, uint32_t type) {
  lost_.Put(ino, type);
  Attr attr;
  attr.st.st_ino = Raw(ino);
  attr.st.st_mode = type;
  attr.st.st_nlink = 1;
  attr.stable = false;
  return attr;
}

bool ClusterFileSystem::IsGone(NodeId node) {
  const ClusterMapPtr map = map_();
  const ClusterNode* const found = map->Find(node);
  return found == nullptr || cfs::IsGone(found->state);
}

void ClusterFileSystem::GetAttrOf(InodeId ino, bool of_name, Done<Attr> done) {
  AtOwner(ino, [this, ino](Done<Attr> d) { local_->GetAttr(ino, std::move(d)); },
          [this, ino](Done<Attr> d) {
            AskOwner<Attr>(ino, PeerOp::kGetAttr, 0, std::move(d), ino);
          },
          Completing(std::move(done), of_name));
}

void ClusterFileSystem::SetAttrAtOwner(InodeId ino, const SetAttrRequest& request,
                                       Done<Attr> done) {
  AtOwner(ino, [this, ino, request](Done<Attr> d) { local_->SetAttr(ino, request, std::move(d)); },
          [this, ino, request](Done<Attr> d) {
            AskOwner<Attr>(ino, PeerOp::kSetAttr, 0, std::move(d), ino, request);
          },
          std::move(done));
}

void ClusterFileSystem::SetAttrOfOwner(InodeId ino, const SetAttrRequest& request,
                                       Done<Attr> done) {
  SetAttrAtOwner(ino, request, Completing(std::move(done)));
}

void ClusterFileSystem::SetAttr(InodeId ino, const SetAttrRequest& request, Done<Attr> done) {
  if (!(request.fields & (kSetSize | kSetAtime | kSetMtime))) {
    return SetAttrOfOwner(ino, request, std::move(done));
  }
  Locate(ino, [this, ino, request, done = std::move(done)](absl::StatusOr<Place> place) mutable {
    if (!place.ok()) return done(place.status());
    if (!IsSplit(ino, *place)) return SetAttrOfOwner(ino, request, std::move(done));
    SetDataAttr(ino, *place, request, std::move(done));
  });
}

// First where the data is, then in the record.
void ClusterFileSystem::SetDataAttr(InodeId ino, const Place& place, SetAttrRequest request,
                                    Done<Attr> done) {
  if (request.fields & kSetSize) {
    SetAttrRequest rest = request;
    rest.fields &= ~uint32_t{kSetSize};
    DoneStatus truncated = [this, ino, place, rest,
                            done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(std::move(status));
      if (rest.fields & (kSetAtime | kSetMtime)) {
        return SetDataAttr(ino, place, rest, std::move(done));
      }
      SetAttrOfOwner(ino, rest, std::move(done));
    };
    if (place.home == self_) {
      return local_->TruncateForeign(ino, place.backing, request.size, std::move(truncated));
    }
    PeerRequest ask;
    ask.op = PeerOp::kTruncateData;
    ask.node = place.home;
    ask.arguments = Packer().Add(ino, place.backing, request.size).Take();
    ask.done = [truncated = std::move(truncated)](absl::StatusOr<PeerAnswer> answer) mutable {
      truncated(answer.status());
    };
    return peers_->Ask(std::move(ask));
  }
  // One clock for both.
  const timespec now = CoarseNow();
  if (request.fields & kSetAtimeNow) request.atime = now;
  if (request.fields & kSetMtimeNow) request.mtime = now;
  request.fields &= ~uint32_t{kSetAtimeNow | kSetMtimeNow};
  DoneStatus stamped = [this, ino, request, done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(std::move(status));
    SetAttrOfOwner(ino, request, std::move(done));
  };
  if (place.home == self_) return stamped(local_->SetTimesForeign(place.backing, request));
  PeerRequest ask;
  ask.op = PeerOp::kSetDataTimes;
  ask.node = place.home;
  ask.arguments = Packer().Add(place.backing, request).Take();
  ask.done = [stamped = std::move(stamped)](absl::StatusOr<PeerAnswer> answer) mutable {
    stamped(answer.status());
  };
  peers_->Ask(std::move(ask));
}

void ClusterFileSystem::KillPrivileges(InodeId ino, uint32_t what, DoneStatus done) {
  SetAttrRequest request;
  request.fields = what;
  Done<Attr> killed = [done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
    done(attr.status());
  };
  SetAttrAtOwner(ino, request, std::move(killed));
}

// ---------------------------------------------------------------------- names

void ClusterFileSystem::Lookup(InodeId dir, absl::string_view name, Done<Attr> done) {
  LookupAgain(dir, std::string(name), kLookupsMax, std::move(done));
}

void ClusterFileSystem::LookupAgain(InodeId dir, std::string name, int attempts, Done<Attr> done) {
  Done<Attr> found = [this, dir, name, attempts,
                      done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
    if (!attr.ok()) return done(std::move(attr));
    if (!attr->elsewhere) return Complete(*std::move(attr), /*of_name=*/true, std::move(done));
    const InodeId ino{attr->st.st_ino};
    GetAttrOf(ino, /*of_name=*/true,
              [this, dir, name = std::move(name), attempts, ino, type = attr->st.st_mode,
               done = std::move(done)](absl::StatusOr<Attr> now) mutable {
                // Gone between the two questions, or there under another name.
                const bool gone =
                    now.ok() ? now->st.st_nlink == 0 : ErrnoOf(now.status()) == ESTALE;
                if (!gone) return done(std::move(now));
                // Its owner knows of no such inode, and the name stays.
                if (!now.ok() && map_()->losses() > 0 && attempts <= kLookupsMax - kLookupsOfLost) {
                  return done(LostInode(ino, type));
                }
                if (attempts == 0) return done(std::move(now));
                LookupAgain(dir, std::move(name), attempts - 1, std::move(done));
              });
  };
  AtOwner(dir, [this, dir, name](Done<Attr> d) { local_->Lookup(dir, name, std::move(d)); },
          [this, dir, name](Done<Attr> d) {
            AskOwner<Attr>(dir, PeerOp::kLookup, 0, std::move(d), dir, name);
          },
          std::move(found));
}

void ClusterFileSystem::Forget(InodeId ino) {
  if (Mine(ino)) local_->Forget(ino);
}

void ClusterFileSystem::ReadLink(InodeId ino, Done<std::string> done) {
  AtOwner(ino, [this, ino](Done<std::string> d) { local_->ReadLink(ino, std::move(d)); },
          [this, ino](Done<std::string> d) {
            AskOwner<std::string>(ino, PeerOp::kReadLink, kSymlinkBytesMax + 16, std::move(d), ino);
          },
          std::move(done));
}

void ClusterFileSystem::MakeNode(const Caller& caller, InodeId dir, absl::string_view name,
                                 uint32_t mode, uint64_t rdev, Done<Attr> done) {
  if (S_ISREG(mode) || (mode & S_IFMT) == 0) {
    return Create(caller, dir, name, mode, O_RDONLY | O_EXCL,
                  [this, done = std::move(done)](absl::StatusOr<CreateResult> created) mutable {
                    if (!created.ok()) return done(created.status());
                    local_->DropRegistration(created->open.registration);
                    Release(created->open.handle);
                    done(std::move(created->attr));
                  });
  }
  AtOwner(dir,
          [this, caller, dir, name = std::string(name), mode, rdev](Done<Attr> d) {
            local_->MakeNode(caller, dir, name, mode, rdev, std::move(d));
          },
          [this, caller, dir, name = std::string(name), mode, rdev](Done<Attr> d) {
            AskOwner<Attr>(dir, PeerOp::kMakeNode, 0, std::move(d), caller, dir, name, mode, rdev);
          },
          Completing(std::move(done)));
}

void ClusterFileSystem::MakeDirectory(const Caller& caller, InodeId dir, absl::string_view name,
                                      uint32_t mode, Done<Attr> done) {
  AtOwner(dir,
          [this, caller, dir, name = std::string(name), mode](Done<Attr> d) {
            names_->MakeDirectory(self_, caller, dir, name, mode, std::move(d));
          },
          [this, caller, dir, name = std::string(name), mode](Done<Attr> d) {
            AskOwner<Attr>(dir, PeerOp::kMakeDirectory, 0, std::move(d), caller, dir, name, mode);
          },
          Completing(std::move(done)));
}

void ClusterFileSystem::MakeSymlink(const Caller& caller, InodeId dir, absl::string_view name,
                                    absl::string_view target, Done<Attr> done) {
  AtOwner(dir,
          [this, caller, dir, name = std::string(name), target = std::string(target)](
              Done<Attr> d) { local_->MakeSymlink(caller, dir, name, target, std::move(d)); },
          [this, caller, dir, name = std::string(name), target = std::string(target)](
              Done<Attr> d) {
            AskOwner<Attr>(dir, PeerOp::kMakeSymlink, 0, std::move(d), caller, dir, name, target);
          },
          Completing(std::move(done)));
}

void ClusterFileSystem::Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done) {
  AtOwner(dir,
          [this, ino, dir, name = std::string(name)](Done<Attr> d) {
            names_->Link(ino, dir, name, std::move(d));
          },
          [this, ino, dir, name = std::string(name)](Done<Attr> d) {
            AskOwner<Attr>(dir, PeerOp::kLink, 0, std::move(d), ino, dir, name);
          },
          Completing(std::move(done)));
}

void ClusterFileSystem::Unlink(InodeId dir, absl::string_view name, DoneStatus done) {
  AtOwner(dir,
          [this, dir, name = std::string(name)](DoneStatus d) {
            names_->Unlink(dir, name, std::move(d));
          },
          [this, dir, name = std::string(name)](DoneStatus d) {
            TellOwner(dir, PeerOp::kUnlink, std::move(d), dir, name);
          },
          std::move(done));
}

void ClusterFileSystem::RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done) {
  AtOwner(dir,
          [this, dir, name = std::string(name)](DoneStatus d) {
            names_->RemoveDirectory(dir, name, std::move(d));
          },
          [this, dir, name = std::string(name)](DoneStatus d) {
            TellOwner(dir, PeerOp::kRemoveDirectory, std::move(d), dir, name);
          },
          std::move(done));
}

void ClusterFileSystem::Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
                               absl::string_view to_name, uint32_t flags, DoneStatus done) {
  AtOwner(from_dir,
          [this, from_dir, from_name = std::string(from_name), to_dir,
           to_name = std::string(to_name), flags](DoneStatus d) {
            names_->Rename(from_dir, from_name, to_dir, to_name, flags, std::move(d));
          },
          [this, from_dir, from_name = std::string(from_name), to_dir,
           to_name = std::string(to_name), flags](DoneStatus d) {
            TellOwner(from_dir, PeerOp::kRename, std::move(d), from_dir, from_name, to_dir,
                      to_name, flags);
          },
          std::move(done));
}

void ClusterFileSystem::List(InodeId dir, uint64_t offset, size_t bytes_max, size_t entry_bytes,
                             bool attributes, Done<std::vector<ListedEntry>> done) {
  Done<std::vector<ListedEntry>> listed =
      [this, done = std::move(done)](absl::StatusOr<std::vector<ListedEntry>> entries) mutable {
        if (!entries.ok()) return done(std::move(entries));
        for (ListedEntry& entry : *entries) {
          const Place place{entry.attr.home, entry.attr.backing};
          if (!entry.has_attr || !IsSplit(entry.entry.ino, place)) continue;
          // What another node would have to be asked for is left to a lookup.
          entry.has_attr = false;
          if (place.home != self_) continue;
          const auto data = local_->StatForeign(place.backing);
          if (!data.ok()) continue;
          MergeData(*data, &entry.attr);
          entry.has_attr = true;
        }
        done(std::move(entries));
      };
  AtOwner(dir,
          [this, dir, offset, bytes_max, entry_bytes,
           attributes](Done<std::vector<ListedEntry>> d) {
            local_->List(dir, offset, bytes_max, entry_bytes, attributes, std::move(d));
          },
          [this, dir, offset, bytes_max, entry_bytes,
           attributes](Done<std::vector<ListedEntry>> d) {
            // An entry is at most half as long again as in the kernel's format.
            AskOwner<std::vector<ListedEntry>>(dir, PeerOp::kList, 2 * bytes_max + 4096,
                                               std::move(d), dir, offset, uint64_t{bytes_max},
                                               uint64_t{entry_bytes}, attributes);
          },
          std::move(listed));
}

void ClusterFileSystem::GetXattr(InodeId ino, absl::string_view name, Done<std::string> done) {
  AtOwner(ino,
          [this, ino, name = std::string(name)](Done<std::string> d) {
            local_->GetXattr(ino, name, std::move(d));
          },
          [this, ino, name = std::string(name)](Done<std::string> d) {
            AskOwner<std::string>(ino, PeerOp::kGetXattr, kXattrValueBytesMax + 16, std::move(d),
                                  ino, name);
          },
          std::move(done));
}

void ClusterFileSystem::ListXattrs(InodeId ino, Done<std::vector<std::string>> done) {
  AtOwner(ino,
          [this, ino](Done<std::vector<std::string>> d) { local_->ListXattrs(ino, std::move(d)); },
          [this, ino](Done<std::vector<std::string>> d) {
            // The shortest name takes 3 bytes of the list and 4 more of a length here.
            AskOwner<std::vector<std::string>>(ino, PeerOp::kListXattrs, 3 * kXattrListBytesMax,
                                               std::move(d), ino);
          },
          std::move(done));
}

void ClusterFileSystem::SetXattr(InodeId ino, absl::string_view name, absl::string_view value,
                                 int flags, bool clear_setgid, DoneStatus done) {
  AtOwner(ino,
          [this, ino, name = std::string(name), value = std::string(value), flags,
           clear_setgid](DoneStatus d) {
            local_->SetXattr(ino, name, value, flags, clear_setgid, std::move(d));
          },
          [this, ino, name = std::string(name), value = std::string(value), flags,
           clear_setgid](DoneStatus d) {
            TellOwner(ino, PeerOp::kSetXattr, std::move(d), ino, name, value, flags, clear_setgid);
          },
          std::move(done));
}

void ClusterFileSystem::RemoveXattr(InodeId ino, absl::string_view name, DoneStatus done) {
  AtOwner(ino,
          [this, ino, name = std::string(name)](DoneStatus d) {
            local_->RemoveXattr(ino, name, std::move(d));
          },
          [this, ino, name = std::string(name)](DoneStatus d) {
            TellOwner(ino, PeerOp::kRemoveXattr, std::move(d), ino, name);
          },
          std::move(done));
}

// ---------------------------------------------------------------------- opens

OpenResult ClusterFileSystem::Wrap(const OpenResult& opened, const Place& place, int flags) {
  auto file = std::make_shared<File>();
  file->ino = opened.ino;
  file->place = place;
  file->flags = flags;
  file->key = next_key_.fetch_add(1, std::memory_order_relaxed);
  file->local = opened.handle;
  file->remote = false;
  OpenResult result = opened;
  result.handle = HandleId(reinterpret_cast<uint64_t>(new FilePtr(std::move(file))));
  return result;
}

void ClusterFileSystem::Open(InodeId ino, int flags, bool kill_privileges,
                             Done<OpenResult> done) {
  // Its data may be there; but nothing that the inode said of it.
  if (lost_.Get(ino)) return done(PosixError(EIO));
  Locate(ino, [this, ino, flags, kill_privileges,
               done = std::move(done)](absl::StatusOr<Place> place) mutable {
    if (!place.ok()) return done(place.status());
    if (place->backing == kNoBacking) return done(PosixError(EINVAL));
    OpenAt(ino, *place, flags, kill_privileges, std::move(done));
  });
}

void ClusterFileSystem::OpenAt(InodeId ino, const Place& place, int flags, bool kill_privileges,
                               Done<OpenResult> done,
                               std::chrono::steady_clock::time_point since) {
  const bool split = IsSplit(ino, place);
  if ((flags & O_TRUNC) && kill_privileges) {
    return KillPrivileges(ino, kKillPrivileges, [this, ino, place, flags,
                                done = std::move(done)](absl::Status killed) mutable {
      if (!killed.ok()) return done(std::move(killed));
      OpenAt(ino, place, flags, /*kill_privileges=*/false, std::move(done));
    });
  }
  if (place.home == self_) {
    Done<OpenResult> opened = [this, ino, place, flags, kill_privileges, since,
                               done = std::move(done)](absl::StatusOr<OpenResult> open) mutable {
      const bool late = SteadyClock::now() - since > peers_->time_out();
      if ((IsNotOwned(open.status()) || IsBusy(open.status())) && late) {
        return done(absl::UnavailableError("a transaction has it and does not end"));
      }
      if (IsNotOwned(open.status()) || IsBusy(open.status())) {
        // The inode is on its way from or to this node, or a transaction has it.
        return peers_->Later(since, [this, ino, place, flags, kill_privileges, since,
                              done = std::move(done)](bool stopped) mutable {
          if (stopped) return done(PosixError(EIO));
          OpenAt(ino, place, flags, kill_privileges, std::move(done), since);
        });
      }
      if (!open.ok()) return done(open.status());
      done(Wrap(*open, place, flags));
    };
    if (!split) return local_->Open(ino, flags, kill_privileges, std::move(opened));
    return local_->OpenForeign(
        ino, place.backing, flags, /*restore=*/false,
        [this, ino, place, flags,
         opened = std::move(opened)](absl::StatusOr<OpenResult> open) mutable {
          if (open.ok() || ErrnoOf(open.status()) != ESTALE) return opened(std::move(open));
          // Lost with power before it was ever synced, if it has a name.
          GetAttr(ino, [this, ino, place, flags,
                        opened = std::move(opened)](absl::StatusOr<Attr> attr) mutable {
            if (!attr.ok()) return opened(attr.status());
            if (attr->st.st_nlink == 0) return opened(PosixError(ESTALE));
            local_->OpenForeign(ino, place.backing, flags, /*restore=*/true, std::move(opened));
          });
        });
  }
  OpenRemote(MakeRemote(ino, place, flags, next_key_.fetch_add(1, std::memory_order_relaxed)),
             flags, kill_privileges, /*restore=*/false, std::move(done));
}

ClusterFileSystem::FilePtr ClusterFileSystem::MakeRemote(InodeId ino, const Place& place, int flags,
                                                         uint64_t key) {
  auto file = std::make_shared<File>();
  file->ino = ino;
  file->place = place;
  file->flags = flags;
  file->key = key;
  file->remote = true;
  return file;
}

void ClusterFileSystem::OpenRemote(FilePtr file, int flags, bool kill_privileges, bool restore,
                                   Done<OpenResult> done) {
  OpenAtHome(file, flags, kill_privileges, restore,
             [this, file, flags, kill_privileges, restore,
              done = std::move(done)](absl::Status status) mutable {
               if (IsSplit(file->ino, file->place) && !restore && ErrnoOf(status) == ESTALE) {
                 // Removed; or lost with power before it was ever synced, if there
                 // is an inode that names it.
                 return GetAttr(file->ino, [this, file, flags, kill_privileges, done = std::move(
                                                done)](absl::StatusOr<Attr> attr) mutable {
                   if (!attr.ok()) return done(attr.status());
                   if (attr->st.st_nlink == 0) return done(PosixError(ESTALE));
                   OpenRemote(file, flags, kill_privileges, /*restore=*/true, std::move(done));
                 });
               }
               if (absl::IsUnavailable(status)) ReleaseAtHome(*file);  // It may be open there.
               if (!status.ok()) return done(std::move(status));
               done(OpenedRemote(file));
             });
}

OpenResult ClusterFileSystem::OpenedRemote(const FilePtr& file) {
  {
    MutexLock lock(&mutex_);
    remote_.insert(file);
  }
  OpenResult result;
  result.ino = file->ino;
  result.remote = true;
  result.handle = HandleId(reinterpret_cast<uint64_t>(new FilePtr(file)));
  return result;
}

void ClusterFileSystem::Create(const Caller& caller, InodeId dir, absl::string_view name,
                               uint32_t mode, int flags, Done<CreateResult> done) {
  Done<CreateResult> created = [this, dir, name = std::string(name), flags, done = std::move(done)](
                                   absl::StatusOr<CreateResult> result) mutable {
    if (!absl::IsAlreadyExists(result.status()) || (flags & O_EXCL)) {
      return done(std::move(result));
    }
    // The name came to be after the kernel looked it up.
    Lookup(dir, name, [this, flags, done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
      if (!attr.ok()) return done(attr.status());
      Open(InodeId(attr->st.st_ino), flags & ~O_CREAT, /*kill_privileges=*/false,
           [attr = *attr, done = std::move(done)](absl::StatusOr<OpenResult> open) mutable {
             if (!open.ok()) return done(open.status());
             done(CreateResult{attr, *open});
           });
    });
  };
  CreateSomewhere(std::make_shared<Creation>(
      Creation{caller, dir, std::string(name), mode, flags, std::move(created)}));
}

void ClusterFileSystem::CreateUnnamed(const Caller& caller, InodeId dir, uint32_t mode, int flags,
                                      Done<CreateResult> done) {
  CreateSomewhere(
      std::make_shared<Creation>(Creation{caller, dir, "", mode, flags, std::move(done)}));
}

bool ClusterFileSystem::StoresFiles() {
  const ClusterMapPtr map = map_();
  const ClusterNode* const me = map->Find(self_);
  return me == nullptr || me->weight > 0;
}

void ClusterFileSystem::CreateSomewhere(CreationPtr creation) {
  if (StoresFiles() && !creation->tried.contains(self_) && local_->HasRoomForFiles()) {
    return CreateAt(std::move(creation), self_);
  }
  space_->WhenKnown([this, creation = std::move(creation)] {
    const absl::flat_hash_set<NodeId>& tried = creation->tried;
    std::optional<NodeId> home = space_->Choose(tried, /*anywhere=*/false);
    if (!home && StoresFiles() && !tried.contains(self_)) home = self_;
    if (!home) home = space_->Choose(tried, /*anywhere=*/true);
    // Whether or not it can be reached now: nothing goes without it.
    const NodeId owner = map_()->OwnerOf(SlotOf(creation->dir));
    if (!home && owner != self_ && !tried.contains(owner)) home = owner;
    if (!home) {
      return creation->done(creation->refused.ok() ? PosixError(ENOSPC) : creation->refused);
    }
    CreateAt(creation, *home);
  });
}

void ClusterFileSystem::CreateAt(CreationPtr creation, NodeId home) {
  creation->refused = absl::OkStatus();
  Done<CreateResult> created = [this, creation,
                                home](absl::StatusOr<CreateResult> result) mutable {
    if (creation->refused.ok()) return creation->done(std::move(result));
    creation->tried.insert(home);
    CreateSomewhere(std::move(creation));
  };
  AtOwner(creation->dir,
          [this, creation, home](Done<CreateResult> d) {
            if (home == self_) return CreateHere(creation, std::move(d));
            CreateSplit(creation, home, std::move(d));
          },
          [this, creation, home](Done<CreateResult> d) {
            if (home == self_) return CreateForeign(creation, std::move(d));
            if (home == map_()->OwnerOf(SlotOf(creation->dir))) {
              return CreateAtOwner(creation, std::move(d));
            }
            CreateSplit(creation, home, std::move(d));
          },
          std::move(created));
}

// Data and inode here.
void ClusterFileSystem::CreateHere(const CreationPtr& creation, Done<CreateResult> done) {
  Done<CreateResult> created = [this, creation, done = std::move(done)](
                                   absl::StatusOr<CreateResult> result) mutable {
    if (ErrnoOf(result.status()) == ENOSPC) creation->refused = result.status();
    if (result.ok()) {
      result->open = Wrap(result->open, {self_, result->open.backing}, creation->flags);
    }
    done(std::move(result));
  };
  const Creation& c = *creation;
  if (c.name.empty()) {
    return local_->CreateUnnamed(c.caller, c.dir, c.mode, c.flags, std::move(created));
  }
  // The name may be that of a file with its data elsewhere.
  local_->Create(c.caller, c.dir, c.name, c.mode, c.flags | O_EXCL, std::move(created));
}

// The data here, the inode at the directory's owner.
void ClusterFileSystem::CreateForeign(const CreationPtr& creation, Done<CreateResult> done) {
  const absl::StatusOr<FreshFile> reserved = local_->ReserveForeign();
  if (!reserved.ok()) {
    if (ErrnoOf(reserved.status()) == ENOSPC) creation->refused = reserved.status();
    return done(reserved.status());
  }
  const Creation& c = *creation;
  AskOwner<Attr>(
      c.dir, PeerOp::kCreateAway, 0,
      [this, creation, fresh = *reserved,
       done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
        if (!attr.ok()) {
          if (absl::IsUnavailable(attr.status())) {
            local_->LeaveForeign(fresh);
          } else {
            local_->DiscardForeign(fresh);
          }
          return done(attr.status());
        }
        const InodeId ino{attr->st.st_ino};
        const Place place{self_, fresh.backing};
        places_.Put(ino, place);
        const int flags = creation->flags;
        FinishCreate({*attr, Wrap(local_->AdoptForeign(fresh, ino, flags), place, flags)},
                     flags & O_DSYNC, std::move(done));
      },
      c.caller, c.dir, c.name, c.mode, self_, FreshData{reserved->backing, CoarseNow()});
}

// The data at another node, the inode at the directory's owner, which may be this one.
void ClusterFileSystem::CreateSplit(const CreationPtr& creation, NodeId home,
                                    Done<CreateResult> done) {
  Done<FreshData> made = [this, creation, home,
                          done = std::move(done)](absl::StatusOr<FreshData> data) mutable {
    if (!data.ok()) {
      // Full, or it does not answer: nothing has been made that anybody knows of.
      creation->refused = data.status();
      return done(data.status());
    }
    Done<Attr> created = [this, creation, place = Place{home, data->backing},
                          done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
      if (attr.ok()) {
        return OpenCreated(creation, *std::move(attr), place,
                           next_key_.fetch_add(1, std::memory_order_relaxed), std::move(done));
      }
      // What may have come to be keeps its data.
      if (!absl::IsUnavailable(attr.status())) {
        Done<bool> removed = [](absl::StatusOr<bool>) {};
        AskNode<bool>(place.home, PeerOp::kRemoveData, std::move(removed), kNoInode,
                      place.backing);
      }
      // The directory has come to the home: as one of its own.
      done(ErrnoOf(attr.status()) == EREMOTE ? Busy() : attr.status());
    };
    const Creation& c = *creation;
    if (Mine(c.dir)) {
      return created(local_->CreateAway(c.caller, c.dir, c.name, c.mode, home, *data));
    }
    AskOwner<Attr>(c.dir, PeerOp::kCreateAway, 0, std::move(created), c.caller, c.dir, c.name,
                   c.mode, home, *data);
  };
  AskNode<FreshData>(home, PeerOp::kMakeData, std::move(made));
}

// Data and inode at the directory's owner.
void ClusterFileSystem::CreateAtOwner(const CreationPtr& creation, Done<CreateResult> done) {
  const Creation& c = *creation;
  const uint64_t key = next_key_.fetch_add(1, std::memory_order_relaxed);
  AskOwner<Attr>(
      c.dir, PeerOp::kCreate, 0,
      [this, creation, key, done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
        if (!attr.ok()) {
          if (ErrnoOf(attr.status()) == ENOSPC) creation->refused = attr.status();
          // It may be open there.
          if (absl::IsUnavailable(attr.status())) {
            const Place owner{map_()->OwnerOf(SlotOf(creation->dir)), kNoBacking};
            ReleaseAtHome(*MakeRemote(kNoInode, owner, 0, key));
          }
          return done(attr.status());
        }
        if (!attr->elsewhere) {
          const InodeId ino{attr->st.st_ino};
          const Place place{attr->home, attr->backing};
          places_.Put(ino, place);
          const FilePtr file = MakeRemote(ino, place, FlagsOfAgain(creation->flags), key);
          return done(CreateResult{*std::move(attr), OpenedRemote(file)});
        }
        GetAttr(InodeId(attr->st.st_ino), [this, creation, key, done = std::move(done)](
                                              absl::StatusOr<Attr> now) mutable {
          if (!now.ok()) return done(now.status());
          const Place place{now->home, now->backing};
          OpenCreated(creation, *std::move(now), place, key, std::move(done));
        });
      },
      c.caller, c.dir, c.name, c.mode, key, c.flags);
}

void ClusterFileSystem::OpenCreated(const CreationPtr& creation, Attr attr, const Place& place,
                                    uint64_t key, Done<CreateResult> done) {
  const InodeId ino{attr.st.st_ino};
  places_.Put(ino, place);
  const int flags = FlagsOfAgain(creation->flags);
  OpenRemote(MakeRemote(ino, place, flags, key), flags, /*kill_privileges=*/false,
             /*restore=*/false,
             [this, attr = std::move(attr), sync = (flags & O_DSYNC) != 0,
              done = std::move(done)](absl::StatusOr<OpenResult> open) mutable {
               if (!open.ok()) return done(open.status());
               FinishCreate({std::move(attr), *open}, sync, std::move(done));
             });
}

void ClusterFileSystem::FinishCreate(CreateResult result, bool sync, Done<CreateResult> done) {
  if (result.attr.elsewhere) {
    // The answer to a request that was made before the slot went to another node.
    const InodeId ino{result.attr.st.st_ino};
    return GetAttr(ino, [this, result = std::move(result), sync,
                         done = std::move(done)](absl::StatusOr<Attr> attr) mutable {
      if (attr.ok()) result.attr = *std::move(attr);
      if (attr.ok()) return FinishCreate(std::move(result), sync, std::move(done));
      local_->DropRegistration(result.open.registration);
      Release(result.open.handle);
      done(attr.status());
    });
  }
  if (!sync) return done(std::move(result));
  const HandleId handle = result.open.handle;
  // Both ends know of each other after a power failure of either.
  Sync(handle, /*data_only=*/false,
       [this, result = std::move(result), done = std::move(done)](absl::Status synced) mutable {
         if (synced.ok()) return done(std::move(result));
         local_->DropRegistration(result.open.registration);
         Release(result.open.handle);
         done(std::move(synced));
       });
}

bool ClusterFileSystem::IsRemote(HandleId handle) { return FileOf(handle)->remote; }

void ClusterFileSystem::Release(HandleId handle) {
  const std::unique_ptr<FilePtr> owned(reinterpret_cast<FilePtr*>(handle));
  const FilePtr file = *owned;
  if (file->locked.load(std::memory_order_relaxed)) {
    given_.DropHandle(file->ino, HandleId{file->key});
    DropLocksAtOwner(file->ino, file->key);
  }
  if (!file->remote) return local_->Release(file->local);
  {
    MutexLock lock(&mutex_);
    remote_.erase(file);
  }
  ReleaseAtHome(*file);
}

void ClusterFileSystem::ReleaseAtHome(const File& file) {
  PeerRequest request;
  request.op = PeerOp::kRelease;
  request.node = file.place.home;
  request.arguments = Packer().Add(file.key).Take();
  request.persistent = true;
  request.done = [](absl::StatusOr<PeerAnswer>) {};
  peers_->Ask(std::move(request));
}

void ClusterFileSystem::DropLocksAtOwner(InodeId ino, uint64_t key) {
  if (Mine(ino)) {
    local_->lock_table()->DropHandle(ino, HandleId{ClusterNumber(self_, incarnation_, key)});
    // Otherwise they have gone meanwhile.
    if (Mine(ino)) return;
  }
  PeerRequest request;
  request.op = PeerOp::kDropLocks;
  request.slot = SlotOf(ino);
  request.arguments = Packer().Add(ino, key).Take();
  request.persistent = true;
  request.done = [this, ino, key](absl::StatusOr<PeerAnswer> answer) {
    if (IsNotOwned(answer.status())) DropLocksAtOwner(ino, key);
  };
  peers_->Ask(std::move(request));
}

void ClusterFileSystem::OnMap(const ClusterMap* before, const ClusterMap& now) {
  if (before == nullptr) return;
  for (const ClusterNode& node : now.nodes()) {
    const ClusterNode* const was = before->Find(node.id);
    if (node.id == self_ || was == nullptr || was->incarnation == node.incarnation) continue;
    Reassert(node.id);
  }
}

void ClusterFileSystem::Reassert(NodeId node) {
  // Tells the node when the last copy of this is gone.
  const std::shared_ptr<void> all(nullptr, [this, node](void*) {
    PeerRequest request;
    request.op = PeerOp::kReasserted;
    request.node = node;
    request.done = [](absl::StatusOr<PeerAnswer>) {};
    peers_->Ask(std::move(request));
  });
  std::vector<FilePtr> open;
  {
    MutexLock lock(&mutex_);
    for (const FilePtr& file : remote_) {
      if (file->place.home == node) open.push_back(file);
    }
  }
  for (const FilePtr& file : open) {
    OpenAtHome(file, FlagsOfAgain(file->flags), /*kill_privileges=*/false, /*restore=*/false,
               [this, file, all](absl::Status status) {
                 if (status.ok()) {
                   bool closed;
                   {
                     MutexLock lock(&mutex_);
                     closed = !remote_.contains(file);
                   }
                   if (closed) ReleaseAtHome(*file);
                   return;
                 }
                 LogWarn("open file is lost with its node node=", Raw(file->place.home),
                         " error=", status.ToString());
               });
  }
  const ClusterMapPtr map = map_();
  for (const LockTable::HeldLock& held : given_.HeldLocks(
           [&](InodeId ino) { return map->OwnerOf(SlotOf(ino)) == node; })) {
    AskForLock(held, /*wait=*/false, /*number=*/0, /*reassert=*/true, [this, held, all](
                                                                          absl::Status status) {
      if (status.ok()) {
        // It may have been given up meanwhile, with the claim on its way.
        for (const LockTable::HeldLock& still :
             given_.HeldLocks([&](InodeId ino) { return ino == held.ino; })) {
          if (still.handle == held.handle && still.owner == held.owner) return;
        }
        return DropLocksAtOwner(held.ino, static_cast<uint64_t>(held.handle));
      }
      if (IsNotOwned(status)) return;  // It has come to this node, with its slot.
      FileLock none = held.lock;
      none.type = F_UNLCK;
      given_.Set(held.space, held.ino, held.handle, held.owner, none, false, LockRequestId{0},
                 [](absl::Status) {});
      LogWarn("a lock is lost, for its owner was out of reach ino=", Raw(held.ino),
              " error=", status.ToString());
    });
  }
}

// ----------------------------------------------------------------------- data

void ClusterFileSystem::Read(HandleId handle, uint64_t offset, size_t size,
                             Done<ReadResult> done) {
  const FilePtr file = FileOf(handle);
  if (!file->remote) return local_->Read(file->local, offset, size, std::move(done));
  if (size == 0) return done(ReadResult{});
  const auto reading = std::make_shared<PieceRead>(size, std::move(done));
  for (size_t at = 0; at < size; at += kReadPieceBytes) {
    const size_t bytes = std::min(kReadPieceBytes, size - at);
    auto make = [file, offset, at, bytes, reading] {
      PeerRequest request;
      request.op = PeerOp::kRead;
      request.node = file->place.home;
      request.arguments = Packer().Add(file->key, offset + at, uint64_t{bytes}).Take();
      request.answer = reading->buffer() + at;
      request.answer_bytes = bytes;
      return request;
    };
    AskHomeAgain(file, std::move(make), kReopensMax,
                 [reading, at, bytes](absl::StatusOr<PeerAnswer> answer) {
                   reading->End(at, bytes, answer);
                 });
  }
}

void ClusterFileSystem::Write(HandleId handle, uint64_t offset, WriteMode mode,
                              WriteSource* source, Done<size_t> done) {
  const FilePtr file = FileOf(handle);
  if (!file->remote) {
    if (mode.kill_privileges) {
      mode.kill_privileges = false;
      done = [this, file, done = std::move(done)](absl::StatusOr<size_t> written) mutable {
        if (!written.ok()) return done(std::move(written));
        KillPrivileges(file->ino, kKillPrivileges, [written, done = std::move(done)](absl::Status killed) mutable {
          if (!killed.ok()) return done(std::move(killed));
          done(std::move(written));
        });
      };
    }
    return local_->Write(file->local, offset, mode, source, std::move(done));
  }
  const size_t size = source->size();
  absl::StatusOr<std::shared_ptr<char[]>> taken = source->Take();
  if (!taken.ok()) return done(taken.status());
  auto make = [file, offset, append = mode.append, size, bytes = *std::move(taken)] {
    PeerRequest request;
    request.op = PeerOp::kWrite;
    request.node = file->place.home;
    request.arguments = Packer().Add(file->key, offset, append).Take();
    request.payload = bytes;
    request.payload_bytes = size;
    return request;
  };
  Done<PeerAnswer> written = [this, file,
                              done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    const absl::StatusOr<uint64_t> bytes = ResultOf<uint64_t>(std::move(answer));
    if (!bytes.ok()) return done(bytes.status());
    uint64_t none = 0;
    file->unsynced.compare_exchange_strong(none, peers_->StorageOf(file->place.home),
                                           std::memory_order_relaxed);
    done(static_cast<size_t>(*bytes));
  };
  // Nobody's write leaves capabilities, and the kernel does not ask for that: once
  // is enough for an open file.
  const bool first = !file->written.exchange(true, std::memory_order_relaxed);
  if (!mode.kill_privileges && !first) {
    return AskHomeAgain(file, std::move(make), kReopensMax, std::move(written));
  }
  KillPrivileges(file->ino, mode.kill_privileges ? kKillPrivileges : kKillCapability, [this, file, make = std::move(make),
                             written = std::move(written)](absl::Status killed) mutable {
    if (!killed.ok()) return written(std::move(killed));
    AskHomeAgain(file, std::move(make), kReopensMax, std::move(written));
  });
}

void ClusterFileSystem::Allocate(HandleId handle, int mode, uint64_t offset, uint64_t length,
                                 bool kill_privileges, DoneStatus done) {
  const FilePtr file = FileOf(handle);
  if (kill_privileges) {
    done = [this, file, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(std::move(status));
      KillPrivileges(file->ino, kKillPrivileges, std::move(done));
    };
  }
  if (!file->remote) {
    return local_->Allocate(file->local, mode, offset, length, false, std::move(done));
  }
  AskHome(file, PeerOp::kAllocate,
          [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
            done(answer.status());
          },
          file->key, mode, offset, length);
}

void ClusterFileSystem::CopyRange(HandleId from_handle, uint64_t from_offset, HandleId to_handle,
                                  uint64_t to_offset, uint64_t length, Done<uint64_t> done) {
  const FilePtr from = FileOf(from_handle);
  const FilePtr to = FileOf(to_handle);
  if (!from->remote && !to->remote) {
    return local_->CopyRange(from->local, from_offset, to->local, to_offset, length,
                             std::move(done));
  }
  // The kernel copies then, through us.
  if (!from->remote || !to->remote || from->place.home != to->place.home) {
    return done(PosixError(EXDEV));
  }
  DoneStatus known = [this, from, from_offset, to, to_offset, length,
                      done = std::move(done)](absl::Status opened) mutable {
    if (!opened.ok()) return done(std::move(opened));
    AskHome(to, PeerOp::kCopyRange,
            [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
              done(ResultOf<uint64_t>(std::move(answer)));
            },
            from->key, from_offset, to->key, to_offset, length);
  };
  // The home may have forgotten either; AskHome sees to one of them.
  OpenAtHome(from, FlagsOfAgain(from->flags), false, false, std::move(known));
}

void ClusterFileSystem::Seek(HandleId handle, uint64_t offset, int whence, Done<uint64_t> done) {
  const FilePtr file = FileOf(handle);
  if (!file->remote) return local_->Seek(file->local, offset, whence, std::move(done));
  AskHome(file, PeerOp::kSeek,
          [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
            done(ResultOf<uint64_t>(std::move(answer)));
          },
          file->key, offset, whence);
}

void ClusterFileSystem::StatFs(Done<struct statvfs> done) {
  space_->WhenKnown([this, done = std::move(done)]() mutable { done(space_->Sum()); });
}

absl::StatusOr<UniqueFd> ClusterFileSystem::OpenBacking(BackingId backing) {
  return local_->OpenBacking(backing);
}

// ----------------------------------------------------------------- durability

void ClusterFileSystem::Sync(HandleId handle, bool data_only, DoneStatus done) {
  const FilePtr file = FileOf(handle);
  if (IsSplit(file->ino, file->place)) {
    done = [this, file, done = std::move(done)](absl::Status synced) mutable {
      if (!synced.ok()) return done(std::move(synced));
      SyncDirectory(file->ino, std::move(done));
    };
  }
  if (!file->remote) return local_->Sync(file->local, data_only, std::move(done));
  AskHome(file, PeerOp::kSync,
          [this, file, done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
            if (!answer.ok()) return done(answer.status());
            // What was written before the home lost power is not there to be synced.
            const uint64_t since = file->unsynced.exchange(0, std::memory_order_relaxed);
            if (since != 0 && since != peers_->StorageOf(file->place.home)) {
              LogError("writes are lost with the power of their home node=",
                       Raw(file->place.home), " ino=", Raw(file->ino));
              return done(PosixError(EIO));
            }
            done(absl::OkStatus());
          },
          file->key, data_only);
}

void ClusterFileSystem::SyncDirectory(InodeId dir, DoneStatus done) {
  AtOwner(dir, [this, dir](DoneStatus d) { local_->SyncInode(dir, std::move(d)); },
          [this, dir](DoneStatus d) { TellOwner(dir, PeerOp::kSyncMeta, std::move(d), dir); },
          std::move(done));
}

// ---------------------------------------------------------------------- locks

void ClusterFileSystem::Flush(HandleId handle, uint64_t owner, DoneStatus done) {
  const InodeId ino = FileOf(handle)->ino;
  {
    MutexLock lock(&mutex_);
    if (lock_owners_.erase({ino, owner}) == 0) return done(absl::OkStatus());
  }
  given_.DropOwner(ino, owner);
  AtOwner(ino,
          [this, ino, owner](DoneStatus d) {
            local_->lock_table()->DropOwner(ino, ClusterNumber(self_, incarnation_, owner));
            d(Mine(ino) ? absl::OkStatus() : NotOwned());
          },
          [this, ino, owner](DoneStatus d) {
            TellOwner(ino, PeerOp::kDropOwner, std::move(d), ino, owner);
          },
          std::move(done));
}

void ClusterFileSystem::GetLock(HandleId handle, uint64_t owner, FileLock lock,
                                Done<FileLock> done) {
  const InodeId ino = FileOf(handle)->ino;
  AtOwner(ino,
          [this, ino, owner, lock](Done<FileLock> d) {
            d(local_->lock_table()->Test(ino, ClusterNumber(self_, incarnation_, owner), lock));
          },
          [this, ino, owner, lock](Done<FileLock> d) {
            AskOwner<FileLock>(ino, PeerOp::kGetLock, 0, std::move(d), ino, owner, lock);
          },
          std::move(done));
}

void ClusterFileSystem::SetLock(HandleId handle, uint64_t owner, FileLock lock, bool flock,
                                bool wait, LockRequestId id, DoneStatus done) {
  const FilePtr file = FileOf(handle);
  const InodeId ino = file->ino;
  if (lock.type != F_UNLCK) {
    file->locked.store(true, std::memory_order_relaxed);
    MutexLock hold(&mutex_);
    if (!flock) lock_owners_.insert({ino, owner});
  }
  if (wait) {
    {
      MutexLock hold(&mutex_);
      lock_waits_[id] = ino;
    }
    done = [this, id, done = std::move(done)](absl::Status status) mutable {
      {
        MutexLock hold(&mutex_);
        lock_waits_.erase(id);
      }
      done(std::move(status));
    };
  }
  const LockTable::HeldLock wanted{flock ? LockTable::Space::kWholeFile : LockTable::Space::kRecord,
                                   ino, HandleId{file->key}, owner, lock};
  DoneStatus answered = [this, wanted, done = std::move(done)](absl::Status status) mutable {
    if (status.ok()) {
      given_.Set(wanted.space, wanted.ino, wanted.handle, wanted.owner, wanted.lock, false,
                 LockRequestId{0}, [](absl::Status) {});
    }
    done(std::move(status));
  };
  TakeLock(file, wanted, wait, id, std::move(answered));
}

// At the owner, whoever that is by then.
void ClusterFileSystem::TakeLock(FilePtr file, const LockTable::HeldLock& wanted, bool wait,
                                 LockRequestId id, DoneStatus done) {
  if (!Mine(wanted.ino)) {
    return AskForLock(wanted, wait, static_cast<uint64_t>(id), /*reassert=*/false,
                      [this, file, wanted, wait, id,
                       done = std::move(done)](absl::Status status) mutable {
                        if (!IsNotOwned(status)) return done(std::move(status));
                        TakeLock(file, wanted, wait, id, std::move(done));
                      });
  }
  SetLockHere(file, wanted.owner, wanted.lock, wanted.space == LockTable::Space::kWholeFile, wait,
              id, [this, file, wanted, wait, id, done = std::move(done)](absl::Status status) mutable {
                if (Mine(wanted.ino)) return done(std::move(status));
                peers_->Later(PeerClient::kLongAgo, [this, file, wanted, wait, id,
                                                     done = std::move(done)](bool stopped) mutable {
                  if (stopped) return done(PosixError(EINTR));
                  TakeLock(file, wanted, wait, id, std::move(done));
                });
              });
}

void ClusterFileSystem::SetLockHere(FilePtr file, uint64_t owner, const FileLock& lock, bool flock,
                                    bool wait, LockRequestId id, DoneStatus done) {
  if (local_->InGrace()) {
    // Others may hold it.
    return peers_->Later(PeerClient::kLongAgo,
                         [this, file = std::move(file), owner, lock, flock, wait, id,
                          done = std::move(done)](bool stopped) mutable {
      bool cancelled = stopped;
      if (wait) {
        MutexLock hold(&mutex_);
        cancelled |= !lock_waits_.contains(id);
      }
      if (cancelled) return done(PosixError(EINTR));
      SetLockHere(std::move(file), owner, lock, flock, wait, id, std::move(done));
    });
  }
  const auto mine = [&](uint64_t n) { return ClusterNumber(self_, incarnation_, n); };
  local_->lock_table()->Set(flock ? LockTable::Space::kWholeFile : LockTable::Space::kRecord,
                            file->ino, HandleId{mine(file->key)}, mine(owner), lock, wait,
                            LockRequestId{mine(static_cast<uint64_t>(id))}, std::move(done));
}

void ClusterFileSystem::AskForLock(const LockTable::HeldLock& wanted, bool wait, uint64_t number,
                                   bool reassert, DoneStatus done) {
  PeerRequest request;
  request.op = PeerOp::kSetLock;
  request.slot = SlotOf(wanted.ino);
  request.arguments = Packer()
                          .Add(wanted.ino, wanted.handle, wanted.owner, wanted.lock,
                               wanted.space == LockTable::Space::kWholeFile, wait, number, reassert)
                          .Take();
  request.waits = wait;
  request.done = [done = std::move(done)](absl::StatusOr<PeerAnswer> answer) mutable {
    done(answer.status());
  };
  peers_->Ask(std::move(request));
}

void ClusterFileSystem::CancelLock(LockRequestId id) {
  InodeId ino;
  {
    MutexLock lock(&mutex_);
    const auto it = lock_waits_.find(id);
    if (it == lock_waits_.end()) return;
    ino = it->second;
    if (local_->InGrace() && Mine(ino)) lock_waits_.erase(it);
  }
  const uint64_t number = static_cast<uint64_t>(id);
  if (!Mine(ino)) {
    // It may come before the request that it cancels: until that has ended.
    return TellOwner(ino, PeerOp::kCancelLock,
                     [this, id](absl::Status) {
                       peers_->Later(PeerClient::kLongAgo, [this, id](bool stopped) {
                         if (!stopped) CancelLock(id);
                       });
                     },
                     number);
  }
  local_->lock_table()->Cancel(LockRequestId{ClusterNumber(self_, incarnation_, number)});
}

// ---------------------------------------------------------------- removed files

void ClusterFileSystem::Start() {
  reaper_ = Thread([this] { RunReaper(); });
}

void ClusterFileSystem::Stop() {
  if (!reaper_.joinable()) return;
  {
    MutexLock lock(&reaper_mutex_);
    stopping_ = true;
    reaper_wake_.Signal();
  }
  reaper_.join();
}

void ClusterFileSystem::RunReaper() {
  NameThread("cfs-reaper");
  constexpr auto kInterval = std::chrono::seconds(1);
  for (;;) {
    {
      MutexLock lock(&reaper_mutex_);
      if (!stopping_) reaper_wake_.WaitFor(&reaper_mutex_, kInterval);
      if (stopping_) return;
    }
    std::vector<LocalFileSystem::Orphan> orphans = local_->TakeOrphans();
    if (orphans.empty()) continue;
    // Nobody may free data of a name that power loss could bring back.
    local_->SyncMeta([this, orphans = std::move(orphans)](absl::Status synced) {
      for (const LocalFileSystem::Orphan& orphan : orphans) {
        if (synced.ok()) {
          Reap(orphan);
        } else {
          local_->NoteOrphan(orphan);
        }
      }
    });
  }
}

void ClusterFileSystem::Reap(const LocalFileSystem::Orphan& orphan) {
  if (!local_->BeginReaping(orphan)) return;  // It has got a name.
  auto erase = [this, orphan](absl::StatusOr<bool> gone) {
    local_->EndReaping(orphan, gone.ok() && *gone);
  };
  if (orphan.home == self_ || IsGone(orphan.home)) return erase(true);
  AskNode<bool>(orphan.home, PeerOp::kRemoveData, std::move(erase), orphan.ino, orphan.backing);
}

// ----------------------------------------------------------------- description

nlohmann::json ClusterFileSystem::Describe(InodeId ino) {
  nlohmann::json owner = Raw(map_()->OwnerOf(SlotOf(ino)));
  nlohmann::json reply;
  if (Mine(ino)) {
    reply = local_->Describe(ino);
  } else {
    Awaited<absl::StatusOr<std::string>> answer;
    AskOwner<std::string>(
        ino, PeerOp::kDescribe, 64 << 10,
        [&answer](absl::StatusOr<std::string> text) { answer.Set(std::move(text)); }, ino);
    const absl::StatusOr<std::string> text = answer.Get();
    if (!text.ok()) return ControlError(text.status());
    reply = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!reply.is_object()) return ControlError(PosixError(EIO, "malformed answer"));
  }
  reply["owner"] = owner;
  return reply;
}

}  // namespace cfs
