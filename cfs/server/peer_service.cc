#include "cfs/server/peer_service.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/random.h"
#include "cfs/base/status_macros.h"
#include "cfs/meta/request_scope.h"
#include "cfs/ring/hash.h"
#include "cfs/server/control.h"
#include "cfs/server/hand_over.h"
#include "nlohmann/json.hpp"

namespace cfs {
namespace {

Payload PayloadOf(std::string bytes) {
  auto owned = std::make_unique<std::string>(std::move(bytes));
  char* const data = owned->data();
  const size_t size = owned->size();
  return Payload(data, size, [owned = std::move(owned)] {});
}

// The data of a peer's write.
class PayloadSource final : public WriteSource {
 public:
  explicit PayloadSource(const Payload* payload) : payload_(payload) {}
  size_t size() const override { return payload_->size(); }
  absl::StatusOr<size_t> WriteTo(int fd, uint64_t offset) override {
    size_t written = 0;
    while (written < size()) {
      const ssize_t n = pwrite(fd, payload_->data() + written, size() - written,
                               static_cast<off_t>(offset + written));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && written == 0) return PosixError(errno);
      if (n <= 0) break;
      written += static_cast<size_t>(n);
    }
    return written;
  }
  absl::StatusOr<std::shared_ptr<char[]>> Take() override {
    std::shared_ptr<char[]> bytes(new char[size()]);
    std::memcpy(bytes.get(), payload_->data(), size());
    return bytes;
  }

 private:
  const Payload* const payload_;
};

bool IsSpecialFile(uint32_t mode) {
  return S_ISFIFO(mode) || S_ISSOCK(mode) || S_ISCHR(mode) || S_ISBLK(mode);
}

}  // namespace

uint64_t ClusterNumber(NodeId node, uint64_t incarnation, uint64_t number) {
  return Hash64(Packer().Add(node, incarnation, number).Take());
}

// A file that a peer has open; closed when nobody uses it any more.
struct PeerService::OpenHandle {
  OpenHandle(LocalFileSystem* fs, HandleId handle, InodeId ino, int flags)
      : fs(fs), handle(handle), ino(ino), writes((flags & O_ACCMODE) != O_RDONLY) {}
  OpenHandle(const OpenHandle&) = delete;
  OpenHandle& operator=(const OpenHandle&) = delete;
  ~OpenHandle() { fs->Release(handle); }

  LocalFileSystem* const fs;
  const HandleId handle;
  const InodeId ino;
  const bool writes;
};

// One process of another node.
class PeerService::Session {
 public:
  using HandlePtr = std::shared_ptr<OpenHandle>;

  Session(LocalFileSystem* fs, NodeId node, uint64_t incarnation)
      : fs_(fs), node_(node), incarnation_(incarnation) {}

  NodeId node() const { return node_; }
  uint64_t number() const { return number_; }
  uint64_t incarnation() const { return incarnation_; }
  RequestId IdOf(uint64_t sequence) const { return {node_, incarnation_, sequence}; }
  uint64_t NumberOf(uint64_t number) const { return ClusterNumber(node_, incarnation_, number); }

  // Begins a request, of which no other copy is executed until it ends, nor
  // afterwards: 0 or a PeerError; or `answer` is what it was answered with.
  uint32_t Begin(const PeerHeader& header, std::string* answer) {
    MutexLock lock(&mutex_);
    answered_ = std::max(answered_, header.answered);
    if (ended_) return kPeerUnknownClient;
    if (header.sequence < answered_) return kPeerStale;
    const auto given = answers_.find(header.sequence);
    if (given != answers_.end() && !Planted("executed-twice")) {
      *answer = given->second;
      return 0;
    }
    return executing_.insert(header.sequence).second ? 0 : uint32_t{kPeerBusy};
  }
  // `answer` is kept for as long as the client may ask again; empty: it may be
  // executed again.
  void End(uint64_t sequence, const std::string& answer) {
    MutexLock lock(&mutex_);
    executing_.erase(sequence);
    if (answer.empty()) return;
    answers_[sequence] = answer;
    answer_order_.push_back(sequence);
    while (!answer_order_.empty() &&
           (answer_order_.front() < answered_ || answer_order_.size() > kPeerRequestsMax)) {
      answers_.erase(answer_order_.front());
      answer_order_.pop_front();
    }
  }
  bool ended() {
    MutexLock lock(&mutex_);
    return ended_;
  }
  // Reply records of requests that have been answered.
  std::vector<RequestScope::Answered> TakeAnswered() {
    std::vector<RequestScope::Answered> answered;
    MutexLock lock(&mutex_);
    constexpr size_t kAtOnce = 64;
    std::erase_if(recorded_, [&answered, below = answered_](const RequestScope::Answered& record) {
      if (record.request.sequence >= below || answered.size() == kAtOnce) return false;
      answered.push_back(record);
      return true;
    });
    return answered;
  }
  void Recorded(Slot slot, uint64_t sequence) {
    MutexLock lock(&mutex_);
    recorded_.push_back({slot, IdOf(sequence)});
  }
  void PutBack(const std::vector<RequestScope::Answered>& answered) {
    MutexLock lock(&mutex_);
    recorded_.insert(recorded_.end(), answered.begin(), answered.end());
  }

  HandlePtr Find(uint64_t key) {
    MutexLock lock(&mutex_);
    const auto it = handles_.find(key);
    return it == handles_.end() ? nullptr : it->second;
  }
  // False when the session is over: then the handle is the caller's to drop.
  bool Add(uint64_t key, HandlePtr handle) {
    MutexLock lock(&mutex_);
    if (ended_) return false;
    handles_[key].swap(handle);
    return true;
  }
  HandlePtr Remove(uint64_t key) {
    MutexLock lock(&mutex_);
    const auto it = handles_.find(key);
    if (it == handles_.end()) return nullptr;
    HandlePtr handle = std::move(it->second);
    handles_.erase(it);
    return handle;
  }

  // False when the session is over.
  bool NoteLock(InodeId ino, HandleId handle) {
    MutexLock lock(&mutex_);
    if (!ended_) locked_.insert({ino, handle});
    return !ended_;
  }
  bool NoteWait(LockRequestId id) {
    MutexLock lock(&mutex_);
    if (!ended_) waits_.insert(id);
    return !ended_;
  }
  void EndWait(LockRequestId id) {
    MutexLock lock(&mutex_);
    waits_.erase(id);
  }
  void DropLocks(InodeId ino, HandleId handle) {
    {
      MutexLock lock(&mutex_);
      locked_.erase({ino, handle});
    }
    fs_->lock_table()->DropHandle(ino, handle);
  }

  // Closes and unlocks everything.
  void Close() {
    absl::flat_hash_map<uint64_t, HandlePtr> handles;
    absl::flat_hash_set<std::pair<InodeId, HandleId>> locked;
    absl::flat_hash_set<LockRequestId> waits;
    {
      MutexLock lock(&mutex_);
      ended_ = true;
      handles.swap(handles_);
      locked.swap(locked_);
      waits.swap(waits_);
    }
    for (const LockRequestId id : waits) fs_->lock_table()->Cancel(id);
    for (const auto& [ino, handle] : locked) fs_->lock_table()->DropHandle(ino, handle);
  }

  bool HasLocked(InodeId ino, HandleId handle) {
    MutexLock lock(&mutex_);
    return locked_.contains({ino, handle});
  }

  nlohmann::json Status() {
    MutexLock lock(&mutex_);
    return {{"node", Raw(node_)},
            {"open_files", handles_.size()},
            {"files_locked", locked_.size()},
            {"replies_kept", recorded_.size()}};
  }

 private:
  LocalFileSystem* const fs_;
  const NodeId node_;
  const uint64_t incarnation_;
  const uint64_t number_ = RandomNumber();
  Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t answered_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_set<uint64_t> executing_ ABSL_GUARDED_BY(mutex_);
  std::deque<RequestScope::Answered> recorded_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::string> answers_ ABSL_GUARDED_BY(mutex_);
  std::deque<uint64_t> answer_order_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, HandlePtr> handles_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::pair<InodeId, HandleId>> locked_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<LockRequestId> waits_ ABSL_GUARDED_BY(mutex_);
};

// One request on its way through the service, until it is answered.
class PeerService::Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(PeerService* service, LocalFileSystem* fs, ClusterNames* names, Transactor* transactor,
           HandOver* hand_over, PeerOp op, Request request, Responder responder)
      : service_(service),
        fs_(fs),
        names_(names),
        transactor_(transactor),
        hand_over_(hand_over),
        op_(op),
        request_(std::move(request)),
        responder_(std::move(responder)),
        in_(request_.header) {}
  ~Exchange() {
    // The handle before the count: Stop returns when all are closed.
    handle_.reset();
    session_.reset();
    MutexLock lock(&service_->mutex_);
    if (--service_->under_way_ == 0) service_->idle_.SignalAll();
  }

  const PeerHeader& header() const { return header_; }
  NodeId peer() const { return request_.peer; }
  bool TakeHeader() {
    if (!in_.Take(&header_)) return false;
    if (header_.in_payload) {
      in_ = Unpacker({request_.payload.data(), request_.payload.size()});
    }
    return true;
  }
  void SetSession(SessionPtr session) { session_ = std::move(session); }

  void Run();

  // Takes the request's place among those of its session; false, and answered,
  // when it is not to be executed.
  bool Begin() {
    std::string answer;
    const uint32_t refused = session_->Begin(header_, &answer);
    if (refused != 0) return Reply(refused), false;
    if (answer.empty()) return begun_ = true;
    responder_.Reply(std::move(answer));
    return false;
  }
  void Reply(uint32_t error, std::string result = "") {
    PeerAnswerHeader answer = AnswerHeader(error);
    std::string header = Packer().Add(answer).Take();
    if (error == 0 && header.size() + result.size() > kCallHeaderBytesMax) {
      EndBegun("");
      answer.in_payload = true;
      header = Packer().Add(answer).Take();
      return responder_.Reply(std::move(header), PayloadOf(std::move(result)));
    }
    header += result;
    // What asks the client to ask again is no answer.
    EndBegun(error < kPeerNotServing ? header : "");
    responder_.Reply(std::move(header));
  }
  void Reply(const absl::Status& status) {
    if (IsNotOwned(status)) return Reply(uint32_t{kPeerNotOwner});
    if (IsBusy(status)) return Reply(uint32_t{kPeerLocked});
    Reply(static_cast<uint32_t>(ErrnoOf(status)));
  }
  template <typename T>
  void Reply(const absl::StatusOr<T>& value) {
    if (!value.ok()) return Reply(value.status());
    Reply(0, Packer().Add(*value).Take());
  }
  void ReplyData(Payload data) {
    EndBegun("");
    responder_.Reply(Packer().Add(AnswerHeader(0)).Take(), std::move(data));
  }

 private:
  ExchangePtr Self() { return shared_from_this(); }
  template <typename T>
  Done<T> Answer() {
    return [self = Self()](absl::StatusOr<T> value) { self->Reply(value); };
  }
  DoneStatus AnswerStatus() {
    return [self = Self()](absl::Status status) { self->Reply(status); };
  }
  void Malformed() { Reply(uint32_t{EPROTO}); }

  // Runs a change that is about `ino` once. If it was made before, it is
  // answered again.
  template <typename Change>
  void Once(InodeId ino, Change change) {
    const Slot slot = SlotOf(ino);
    if (header_.again && !Planted("executed-twice") && !Planted("replies-not-looked-up")) {
      const absl::StatusOr<InodeId> made = fs_->ReplyOf(slot, session_->IdOf(header_.sequence));
      if (made.ok()) {
        if (*made == kNoInode) return Reply(0);
        if (!fs_->Owns(SlotOf(*made))) {
          Attr attr;
          attr.st.st_ino = Raw(*made);
          attr.elsewhere = true;
          return Reply(absl::StatusOr<Attr>(attr));
        }
        return fs_->GetAttr(*made, Answer<Attr>());
      }
      if (!absl::IsNotFound(made.status())) return Reply(made.status());
    }
    std::vector<RequestScope::Answered> answered = session_->TakeAnswered();
    const SessionPtr session = session_;
    const uint64_t sequence = header_.sequence;
    RequestScope scope(
        {slot, session_->IdOf(sequence), [session, slot, sequence] { session->Recorded(slot, sequence); }},
        answered);
    change(&scope);
    if (!scope.recorded()) session->PutBack(answered);
  }
  void EndBegun(const std::string& answer) {
    if (std::exchange(begun_, false)) session_->End(header_.sequence, answer);
  }
  PeerAnswerHeader AnswerHeader(uint32_t error) const {
    return {error, false, session_ == nullptr ? 0 : session_->number(), fs_->storage_epoch()};
  }

  // False, and answered, when this node does not own the inode.
  bool Owns(InodeId ino) {
    if (fs_->Owns(SlotOf(ino))) return true;
    Reply(uint32_t{kPeerNotOwner});
    return false;
  }
  // After a change of locks: where they have gone meanwhile, it is to be made again.
  void ReplyIfOwned(InodeId ino, const absl::Status& status) {
    Reply(fs_->Owns(SlotOf(ino)) ? status : NotOwned());
  }
  // False, and answered, when the peer has no such handle.
  bool Uses(uint64_t key) {
    handle_ = session_->Find(key);
    if (handle_ == nullptr) Reply(uint32_t{kPeerUnknownHandle});
    return handle_ != nullptr;
  }

  void RunNames();
  void RunAttributes();
  void RunLocks();
  void RunTransaction();
  void RunHome();
  // Answers with the attributes of a new file, which the peer has open as `key`.
  Done<CreateResult> Created(uint64_t key, int flags);
  void OpenFile();
  void ReadData();
  void ReplyRead(std::unique_ptr<char[]> bytes, const absl::StatusOr<size_t>& have);
  void WriteData();
  void SetLock();

  PeerService* const service_;
  LocalFileSystem* const fs_;
  ClusterNames* const names_;
  Transactor* const transactor_;
  HandOver* const hand_over_;
  const PeerOp op_;
  const Request request_;
  Responder responder_;
  Unpacker in_;
  PeerHeader header_;
  SessionPtr session_;
  Session::HandlePtr handle_;
  bool begun_ = false;
};

void PeerService::Exchange::Run() {
  if (op_ < PeerOp::kGetXattr || op_ == PeerOp::kCreateAway) return RunNames();
  if (op_ < PeerOp::kGetLock) return RunAttributes();
  if (op_ < PeerOp::kReserveInodes) return RunLocks();
  if (op_ < PeerOp::kOpen) return RunTransaction();
  RunHome();
}

void PeerService::Exchange::RunNames() {
  Caller caller;
  InodeId ino, dir;
  std::string name, text;
  uint32_t mode, flags;
  uint64_t number;
  switch (op_) {
    case PeerOp::kLookup:
      if (!in_.Take(&dir, &name)) return Malformed();
      if (Owns(dir)) fs_->Lookup(dir, name, Answer<Attr>());
      return;
    case PeerOp::kGetAttr:
      if (!in_.Take(&ino)) return Malformed();
      if (Owns(ino)) fs_->GetAttr(ino, Answer<Attr>());
      return;
    case PeerOp::kSetAttr: {
      SetAttrRequest request;
      if (!in_.Take(&ino, &request)) return Malformed();
      if (!Owns(ino)) return;
      return fs_->SetAttr(ino, request, [self = Self(), ino, request](absl::StatusOr<Attr> attr) {
        if (request.fields & kSetSize) self->fs_->ChangedByPeer(ino);
        self->Reply(attr);
      });
    }
    case PeerOp::kReadLink:
      if (!in_.Take(&ino)) return Malformed();
      if (Owns(ino)) fs_->ReadLink(ino, Answer<std::string>());
      return;
    case PeerOp::kMakeNode:
      if (!in_.Take(&caller, &dir, &name, &mode, &number)) return Malformed();
      if (!IsSpecialFile(mode)) return Reply(uint32_t{EINVAL});
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        fs_->MakeNode(caller, dir, name, mode, number, Answer<Attr>());
      });
    case PeerOp::kMakeDirectory:
      if (!in_.Take(&caller, &dir, &name, &mode)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        names_->MakeDirectory(peer(), caller, dir, name, mode, Answer<Attr>());
      });
    case PeerOp::kMakeSymlink:
      if (!in_.Take(&caller, &dir, &name, &text)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        fs_->MakeSymlink(caller, dir, name, text, Answer<Attr>());
      });
    case PeerOp::kCreate: {
      int open_flags;
      if (!in_.Take(&caller, &dir, &name, &mode, &number, &open_flags)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        Done<CreateResult> done = Created(number, open_flags);
        if (name.empty()) {
          fs_->CreateUnnamed(caller, dir, mode, open_flags, std::move(done));
        } else {
          fs_->Create(caller, dir, name, mode, open_flags | O_EXCL, std::move(done));
        }
      });
    }
    case PeerOp::kCreateAway: {
      NodeId home;
      FreshData data;
      if (!in_.Take(&caller, &dir, &name, &mode, &home, &data)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        Reply(fs_->CreateAway(caller, dir, name, mode, home, data));
      });
    }
    case PeerOp::kLink:
      if (!in_.Take(&ino, &dir, &name)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope* scope) {
        scope->SetInode(ino);
        names_->Link(ino, dir, name, Answer<Attr>());
      });
    case PeerOp::kUnlink:
      if (!in_.Take(&dir, &name)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) { names_->Unlink(dir, name, AnswerStatus()); });
    case PeerOp::kRemoveDirectory:
      if (!in_.Take(&dir, &name)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) { names_->RemoveDirectory(dir, name, AnswerStatus()); });
    case PeerOp::kRename: {
      InodeId to_dir;
      if (!in_.Take(&dir, &name, &to_dir, &text, &flags)) return Malformed();
      if (!Owns(dir)) return;
      return Once(dir, [&](RequestScope*) {
        names_->Rename(dir, name, to_dir, text, flags, AnswerStatus());
      });
    }
    case PeerOp::kList: {
      uint64_t entry_bytes;
      bool attributes;
      uint64_t bytes_max;
      if (!in_.Take(&dir, &number, &bytes_max, &entry_bytes, &attributes)) return Malformed();
      if (bytes_max > kRequestBytesMax || entry_bytes < 24) return Reply(uint32_t{EINVAL});
      if (!Owns(dir)) return;
      return fs_->List(dir, number, bytes_max, entry_bytes, attributes,
                       Answer<std::vector<ListedEntry>>());
    }
    default:
      Reply(uint32_t{EOPNOTSUPP});
  }
}

void PeerService::Exchange::RunAttributes() {
  InodeId ino;
  std::string name, value;
  if (op_ == PeerOp::kStatFs) return fs_->StatFs(Answer<struct statvfs>());
  if (!in_.Take(&ino)) return Malformed();
  if (!Owns(ino)) return;
  switch (op_) {
    case PeerOp::kGetXattr:
      if (!in_.Take(&name)) return Malformed();
      return fs_->GetXattr(ino, name, Answer<std::string>());
    case PeerOp::kListXattrs:
      return fs_->ListXattrs(ino, Answer<std::vector<std::string>>());
    case PeerOp::kSetXattr: {
      int flags;
      bool clear_setgid;
      if (!in_.Take(&name, &value, &flags, &clear_setgid)) return Malformed();
      return Once(ino, [&](RequestScope*) {
        fs_->SetXattr(ino, name, value, flags, clear_setgid, AnswerStatus());
      });
    }
    case PeerOp::kRemoveXattr:
      if (!in_.Take(&name)) return Malformed();
      return Once(ino, [&](RequestScope*) { fs_->RemoveXattr(ino, name, AnswerStatus()); });
    case PeerOp::kSyncMeta:
      return fs_->SyncInode(ino, AnswerStatus());
    case PeerOp::kDescribe:
      return Reply(absl::StatusOr<std::string>(ToText(fs_->Describe(ino))));
    default:
      Reply(uint32_t{EOPNOTSUPP});
  }
}

void PeerService::Exchange::RunLocks() {
  InodeId ino;
  uint64_t number;
  FileLock lock;
  if (op_ == PeerOp::kCancelLock) {
    if (!in_.Take(&number)) return Malformed();
    fs_->lock_table()->Cancel(LockRequestId(session_->NumberOf(number)));
    return Reply(0);
  }
  if (op_ == PeerOp::kReasserted) {
    service_->Reasserted(session_->node());
    return Reply(0);
  }
  if (op_ == PeerOp::kSetLock) return SetLock();
  if (!in_.Take(&ino, &number)) return Malformed();
  if (!Owns(ino)) return;
  // Who holds what is not known yet.
  if (fs_->InGrace()) return Reply(uint32_t{kPeerNotServing});
  const uint64_t mine = session_->NumberOf(number);
  switch (op_) {
    case PeerOp::kGetLock:
      if (!in_.Take(&lock)) return Malformed();
      return Reply(absl::StatusOr<FileLock>(fs_->lock_table()->Test(ino, mine, lock)));
    case PeerOp::kDropLocks:
      session_->DropLocks(ino, HandleId(mine));
      return ReplyIfOwned(ino, absl::OkStatus());
    case PeerOp::kDropOwner:
      fs_->lock_table()->DropOwner(ino, mine);
      return ReplyIfOwned(ino, absl::OkStatus());
    default:
      Reply(uint32_t{EOPNOTSUPP});
  }
}

void PeerService::Exchange::SetLock() {
  InodeId ino;
  uint64_t key, owner, number;
  FileLock lock;
  bool flock, wait, reassert;
  if (!in_.Take(&ino, &key, &owner, &lock, &flock, &wait, &number, &reassert)) {
    return Malformed();
  }
  if (lock.start > lock.end ||
      (lock.type != F_RDLCK && lock.type != F_WRLCK && lock.type != F_UNLCK)) {
    return Reply(uint32_t{EINVAL});
  }
  if (!Owns(ino)) return;
  if (!reassert && fs_->InGrace()) return Reply(uint32_t{kPeerNotServing});
  const HandleId handle{session_->NumberOf(key)};
  const LockRequestId id{session_->NumberOf(number)};
  if (!session_->NoteLock(ino, handle) || (wait && !session_->NoteWait(id))) {
    return Reply(uint32_t{kPeerUnknownClient});
  }
  fs_->lock_table()->Set(
      flock ? LockTable::Space::kWholeFile : LockTable::Space::kRecord, ino, handle,
      session_->NumberOf(owner), lock, wait, id,
      [self = Self(), ino, wait, id](absl::Status status) {
        if (wait) self->session_->EndWait(id);
        self->ReplyIfOwned(ino, status);
      });
  // Whoever ended the session meanwhile did not see it.
  if (session_->ended()) {
    fs_->lock_table()->Cancel(id);
    fs_->lock_table()->DropHandle(ino, handle);
  }
}

void PeerService::Exchange::RunTransaction() {
  if (op_ == PeerOp::kReserveInodes) {
    Slot slot;
    if (!in_.Take(&slot)) return Malformed();
    return Reply(fs_->ReserveInode(slot));
  }
  if (op_ >= PeerOp::kTakeBegin) {
    return fs_->RunIo([self = Self()] {
      const auto answer =
          self->hand_over_->Handle(self->request_.peer, self->op_, self->in_.rest());
      if (!answer.ok()) return self->Reply(answer.status());
      self->Reply(0, *answer);
    });
  }
  transactor_->Handle(op_, in_.rest(), [self = Self()](absl::StatusOr<std::string> answer) {
    if (!answer.ok()) return self->Reply(answer.status());
    self->Reply(0, *std::move(answer));
  });
}

Done<CreateResult> PeerService::Exchange::Created(uint64_t key, int flags) {
  return [self = Self(), key, flags](absl::StatusOr<CreateResult> created) {
    if (!created.ok()) return self->Reply(created.status());
    const OpenResult& open = created->open;
    self->fs_->DropRegistration(open.registration);
    auto handle = std::make_shared<OpenHandle>(self->fs_, open.handle, open.ino, flags);
    if (!self->session_->Add(key, std::move(handle))) {
      return self->Reply(uint32_t{kPeerUnknownClient});
    }
    self->Reply(absl::StatusOr<Attr>(created->attr));
  };
}

void PeerService::Exchange::OpenFile() {
  uint64_t key;
  InodeId ino;
  BackingId backing;
  int flags;
  bool kill_privileges, restore;
  if (!in_.Take(&key, &ino, &backing, &flags, &kill_privileges, &restore)) {
    return Malformed();
  }
  if (session_->Find(key) != nullptr) return Reply(0);
  Done<OpenResult> done = [self = Self(), key, flags](absl::StatusOr<OpenResult> open) {
    if (!open.ok()) return self->Reply(open.status());
    if (flags & O_TRUNC) self->fs_->ChangedByPeer(open->ino);
    auto handle = std::make_shared<OpenHandle>(self->fs_, open->handle, open->ino, flags);
    self->Reply(self->session_->Add(key, std::move(handle)) ? 0 : uint32_t{kPeerUnknownClient});
  };
  if (fs_->Owns(SlotOf(ino))) return fs_->Open(ino, flags, kill_privileges, std::move(done));
  fs_->OpenForeign(ino, backing, flags, restore, std::move(done));
}

void PeerService::Exchange::ReadData() {
  uint64_t key, offset, size;
  if (!in_.Take(&key, &offset, &size)) return Malformed();
  if (size > kCallPayloadBytesMax || offset > INT64_MAX) return Reply(uint32_t{EINVAL});
  if (!Uses(key)) return;
  std::unique_ptr<char[]> bytes(new char[size]);
  const absl::StatusOr<size_t> have =
      fs_->ReadInto(handle_->handle, offset, bytes.get(), size, /*wait=*/false);
  if (have.ok()) return ReplyRead(std::move(bytes), have);
  fs_->RunIo([self = Self(), offset, size, bytes = std::move(bytes)]() mutable {
    const absl::StatusOr<size_t> now =
        self->fs_->ReadInto(self->handle_->handle, offset, bytes.get(), size, /*wait=*/true);
    self->ReplyRead(std::move(bytes), now);
  });
}

void PeerService::Exchange::ReplyRead(std::unique_ptr<char[]> bytes,
                                      const absl::StatusOr<size_t>& have) {
  if (!have.ok()) return Reply(have.status());
  char* const data = bytes.get();
  ReplyData(Payload(data, *have, [bytes = std::move(bytes)] {}));
}

void PeerService::Exchange::WriteData() {
  uint64_t key, offset;
  bool append;
  if (!in_.Take(&key, &offset, &append)) return Malformed();
  if (offset > INT64_MAX || header_.in_payload) return Reply(uint32_t{EINVAL});
  // A session of before may have done it, and once more would be wrong.
  if (append && header_.again && header_.session != session_->number()) {
    return Reply(uint32_t{kPeerForgotten});
  }
  if (!Uses(key)) return;
  if (!handle_->writes) return Reply(uint32_t{EBADF});
  const Payload& payload = request_.payload;
  if (!append && fs_->WriteNow(handle_->handle, offset, {payload.data(), payload.size()})) {
    fs_->ChangedByPeer(handle_->ino);
    return Reply(absl::StatusOr<size_t>(payload.size()));
  }
  fs_->RunIo([self = Self(), offset, append] {
    // Its client may have been told since that nobody knows of it.
    if (self->session_->ended()) return self->Reply(uint32_t{kPeerUnknownClient});
    PayloadSource source(&self->request_.payload);
    self->fs_->Write(self->handle_->handle, offset, {.append = append}, &source,
                     [self](absl::StatusOr<size_t> written) {
                       self->fs_->ChangedByPeer(self->handle_->ino);
                       self->Reply(written);
                     });
  });
}

void PeerService::Exchange::RunHome() {
  uint64_t key, number, length;
  InodeId ino;
  BackingId backing;
  switch (op_) {
    case PeerOp::kOpen:
      return OpenFile();
    case PeerOp::kRelease:
      if (!in_.Take(&key)) return Malformed();
      handle_ = session_->Remove(key);
      // Closed before the answer: whoever has it may look.
      handle_.reset();
      return Reply(0);
    case PeerOp::kRead:
      return ReadData();
    case PeerOp::kWrite:
      return WriteData();
    case PeerOp::kAllocate: {
      int mode;
      if (!in_.Take(&key, &mode, &number, &length)) return Malformed();
      if (!Uses(key)) return;
      if (!handle_->writes) return Reply(uint32_t{EBADF});
      return fs_->Allocate(handle_->handle, mode, number, length, /*kill_privileges=*/false,
                           [self = Self()](absl::Status status) {
                             self->fs_->ChangedByPeer(self->handle_->ino);
                             self->Reply(status);
                           });
    }
    case PeerOp::kCopyRange: {
      uint64_t to_key, to_offset;
      if (!in_.Take(&key, &number, &to_key, &to_offset, &length)) return Malformed();
      const Session::HandlePtr from = session_->Find(key);
      if (from == nullptr) return Reply(uint32_t{kPeerUnknownHandle});
      if (!Uses(to_key)) return;
      if (!handle_->writes) return Reply(uint32_t{EBADF});
      return fs_->CopyRange(from->handle, number, handle_->handle, to_offset, length,
                            [self = Self(), from](absl::StatusOr<uint64_t> copied) {
                              self->fs_->ChangedByPeer(self->handle_->ino);
                              self->Reply(copied);
                            });
    }
    case PeerOp::kSeek: {
      int whence;
      if (!in_.Take(&key, &number, &whence)) return Malformed();
      if (Uses(key)) fs_->Seek(handle_->handle, number, whence, Answer<uint64_t>());
      return;
    }
    case PeerOp::kSync: {
      bool data_only;
      if (!in_.Take(&key, &data_only)) return Malformed();
      if (Uses(key)) fs_->Sync(handle_->handle, data_only, AnswerStatus());
      return;
    }
    case PeerOp::kStatData:
      if (!in_.Take(&backing)) return Malformed();
      return Reply(fs_->StatForeign(backing));
    case PeerOp::kTruncateData:
      if (!in_.Take(&ino, &backing, &length)) return Malformed();
      if (length > INT64_MAX) return Reply(uint32_t{EINVAL});
      return fs_->TruncateForeign(ino, backing, length, AnswerStatus());
    case PeerOp::kSetDataTimes: {
      SetAttrRequest request;
      if (!in_.Take(&backing, &request)) return Malformed();
      return Reply(fs_->SetTimesForeign(backing, request));
    }
    case PeerOp::kRemoveData:
      if (!in_.Take(&ino, &backing)) return Malformed();
      return Reply(fs_->RemoveForeign(ino, backing));
    case PeerOp::kMakeData:
      return Reply(fs_->MakeForeign());
    default:
      Reply(uint32_t{EOPNOTSUPP});
  }
}

PeerService::~PeerService() { Stop(); }

absl::flat_hash_map<uint16_t, Method> PeerService::Methods() {
  absl::flat_hash_map<uint16_t, Method> methods;
  for (auto op = PeerOp::kLookup; op != PeerOp::kEnd;
       op = static_cast<PeerOp>(static_cast<uint16_t>(op) + 1)) {
    methods[static_cast<uint16_t>(op)].handle = [this, op](Request request, Responder responder) {
      Handle(op, std::move(request), std::move(responder));
    };
  }
  return methods;
}

void PeerService::Handle(PeerOp op, Request request, Responder responder) {
  ExchangePtr exchange;
  {
    MutexLock lock(&mutex_);
    if (fs_ == nullptr) {
      return responder.Reply(Packer().Add(PeerAnswerHeader{.error = kPeerNotServing}).Take());
    }
    ++under_way_;
    exchange = std::make_shared<Exchange>(this, fs_, names_, transactor_, hand_over_, op,
                                          std::move(request), std::move(responder));
  }
  if (!exchange->TakeHeader()) return exchange->Reply(uint32_t{EPROTO});
  SessionPtr session;
  {
    MutexLock lock(&mutex_);
    session = SessionOf(exchange->peer(), exchange->header().incarnation);
  }
  if (session == nullptr) return exchange->Reply(uint32_t{kPeerUnknownClient});
  exchange->SetSession(std::move(session));
  if (op != PeerOp::kRead && !exchange->Begin()) return;
  exchange->Run();
}

PeerService::SessionPtr PeerService::SessionOf(NodeId node, uint64_t incarnation) {
  const auto it = sessions_.find(node);
  if (it != sessions_.end() && it->second->incarnation() == incarnation) return it->second;
  const ClusterMapPtr map = map_();
  const ClusterNode* const peer = map->Find(node);
  if (peer == nullptr || peer->incarnation != incarnation || IsGone(peer->state) ||
      peer->state == NodeState::kDown) {
    return nullptr;
  }
  // One of before is ended by OnMap.
  if (it != sessions_.end() || fs_ == nullptr) return nullptr;
  return sessions_[node] = std::make_shared<Session>(fs_, node, incarnation);
}

absl::Status PeerService::Serve(LocalFileSystem* fs, ClusterNames* names, Transactor* transactor,
                                HandOver* hand_over, NodeId self, MapFn map) {
  // Answers that were kept for processes that go on asking.
  absl::flat_hash_map<NodeId, SessionPtr> sessions;
  const ClusterMapPtr now = map();
  CFS_RETURN_IF_ERROR(fs->DropReplies([&](Slot slot, const RequestId& request) {
    const ClusterNode* const peer = now->Find(request.client);
    if (peer == nullptr || peer->incarnation != request.incarnation) return true;
    SessionPtr& session = sessions[request.client];
    if (session == nullptr) {
      session = std::make_shared<Session>(fs, request.client, request.incarnation);
    }
    session->Recorded(slot, request.sequence);
    return false;
  }));
  MutexLock lock(&mutex_);
  for (const ClusterNode& node : now->nodes()) {
    if (node.id != self && !IsGone(node.state)) silent_.insert(node.id);
  }
  fs->BeginGrace();
  if (silent_.empty()) fs->EndGrace();
  map_ = std::move(map);
  sessions_ = std::move(sessions);
  names_ = names;
  transactor_ = transactor;
  hand_over_ = hand_over;
  fs_ = fs;
  return absl::OkStatus();
}

void PeerService::Reasserted(NodeId node) {
  MutexLock lock(&mutex_);
  if (silent_.erase(node) == 0 || !silent_.empty() || fs_ == nullptr) return;
  LogInfo("all nodes have said what they have open and locked");
  fs_->EndGrace();
}

void PeerService::Stop() {
  absl::flat_hash_map<NodeId, SessionPtr> sessions;
  {
    MutexLock lock(&mutex_);
    fs_ = nullptr;
    sessions.swap(sessions_);
  }
  for (const auto& [node, session] : sessions) session->Close();
  sessions.clear();
  MutexLock lock(&mutex_);
  while (under_way_ > 0) idle_.Wait(&mutex_);
}

std::vector<MovedLock> PeerService::LocksOf(const std::vector<Slot>& slots, NodeId self,
                                            uint64_t incarnation) {
  SlotSet wanted;
  for (const Slot slot : slots) wanted.set(Raw(slot));
  std::vector<MovedLock> locks;
  MutexLock lock(&mutex_);
  if (fs_ == nullptr) return locks;
  for (const LockTable::HeldLock& held :
       fs_->lock_table()->HeldLocks([&](InodeId ino) { return wanted[Raw(SlotOf(ino))]; })) {
    MovedLock& moved = locks.emplace_back(MovedLock{self, incarnation, held});
    for (const auto& [node, session] : sessions_) {
      if (!session->HasLocked(held.ino, held.handle)) continue;
      moved.node = node;
      moved.incarnation = session->incarnation();
    }
  }
  return locks;
}

void PeerService::AdoptLocks(const std::vector<MovedLock>& locks, NodeId self) {
  for (const MovedLock& moved : locks) {
    const LockTable::HeldLock& held = moved.held;
    LocalFileSystem* fs;
    {
      MutexLock lock(&mutex_);
      fs = fs_;
      if (fs == nullptr) return;
      if (moved.node != self) {
        const SessionPtr session = SessionOf(moved.node, moved.incarnation);
        if (session == nullptr || !session->NoteLock(held.ino, held.handle)) continue;
      }
    }
    fs->lock_table()->Set(held.space, held.ino, held.handle, held.owner, held.lock, /*wait=*/false,
                          LockRequestId{0}, [](absl::Status status) {
                            if (!status.ok()) LogError("a lock was lost on its way");
                          });
  }
}

void PeerService::AdoptReplies(const std::vector<Slot>& slots) {
  SlotSet wanted;
  for (const Slot slot : slots) wanted.set(Raw(slot));
  MutexLock lock(&mutex_);
  if (fs_ == nullptr) return;
  fs_->DropReplies([&](Slot slot, const RequestId& request) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      if (!wanted[Raw(slot)]) return false;
      const SessionPtr session = SessionOf(request.client, request.incarnation);
      if (session != nullptr) session->Recorded(slot, request.sequence);
      return session == nullptr;
    })
      .IgnoreError();
}

void PeerService::OnMap(const ClusterMap& now) {
  std::vector<SessionPtr> over;
  for (const ClusterNode& node : now.nodes()) {
    if (IsGone(node.state)) Reasserted(node.id);
  }
  {
    MutexLock lock(&mutex_);
    absl::erase_if(sessions_, [&](const auto& entry) {
      const ClusterNode* const peer = now.Find(entry.first);
      if (peer != nullptr && peer->incarnation == entry.second->incarnation() &&
          !IsGone(peer->state) && peer->state != NodeState::kDown) {
        return false;
      }
      over.push_back(entry.second);
      return true;
    });
  }
  for (const SessionPtr& session : over) {
    LogInfo("node is gone, what it had open is closed node=", Raw(session->node()));
    session->Close();
  }
}

nlohmann::json PeerService::Status() {
  std::vector<SessionPtr> sessions;
  {
    MutexLock lock(&mutex_);
    for (const auto& [node, session] : sessions_) sessions.push_back(session);
  }
  nlohmann::json clients = nlohmann::json::array();
  for (const SessionPtr& session : sessions) clients.push_back(session->Status());
  return {{"clients", clients}};
}

}  // namespace cfs
