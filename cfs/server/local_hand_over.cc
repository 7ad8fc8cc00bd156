// What LocalFileSystem does when slots go to another node, and come from one.
#include <sys/stat.h>

#include <utility>

#include "cfs/base/error.h"
#include "cfs/base/fault_point.h"
#include "cfs/base/log.h"
#include "cfs/base/planted.h"
#include "cfs/base/status_macros.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_format.h"

namespace cfs {
namespace {

constexpr size_t kPieceBytes = 128 << 10;
constexpr size_t kEraseKeys = 4096;

std::string SlotPrefix(Slot slot) {
  std::string prefix;
  AppendBig(&prefix, Raw(slot));
  return prefix;
}

// Open marks are about backing files of this node.
bool Moves(Family family, absl::string_view key) {
  QueueKind kind;
  InodeId ino;
  Slot slot;
  RequestId request;
  if (Planted("replies-stay") && ParseReplyKey(key, &slot, &request)) return false;
  return family == Family::kRecords || !ParseQueueKey(key, &kind, &ino) || kind != QueueKind::kOpen;
}

}  // namespace

absl::Status LocalFileSystem::ScanSlots(
    Family family, const SlotList& slots,
    absl::FunctionRef<bool(absl::string_view, absl::string_view)> visit) {
  for (const Slot slot : slots) {
    const std::string prefix = SlotPrefix(slot);
    CFS_RETURN_IF_ERROR(store_->Scan(family, prefix, prefix, visit));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::pair<InodeId, BackingId>>> LocalFileSystem::FilesOf(
    const SlotList& slots) {
  std::vector<std::pair<InodeId, BackingId>> files;
  CFS_RETURN_IF_ERROR(
      ScanSlots(Family::kRecords, slots, [&](absl::string_view key, absl::string_view value) {
        if (!IsInodeKey(key)) return true;
        const auto record = DecodeInode(value);
        if (record.ok() && record->IsRegular() && record->home == node_) {
          files.emplace_back(InodeOfKey(key), record->backing);
        }
        return true;
      }));
  return files;
}

absl::Status LocalFileSystem::CommitOwned(const SlotList& slots, bool owned,
                                          Shard::Update* update) {
  MutexLock lock(&owned_mutex_);
  SlotSet next = stored_owned_;
  for (const Slot slot : slots) next.set(Raw(slot), owned);
  update->PutRaw(Family::kLocal, kOwnedSlotsKey, Encode(next));
  CFS_RETURN_IF_ERROR(update->Commit());
  stored_owned_ = next;
  return absl::OkStatus();
}

// ------------------------------------------------------------------ the giver

absl::Status LocalFileSystem::CopySlots(
    const SlotList& slots, absl::FunctionRef<absl::Status(const WriteSet&)> send) {
  shard_->Track(slots);
  shard_->Barrier();
  WriteSet piece;
  size_t bytes = 0;
  absl::Status sent;
  for (const Family family : {Family::kRecords, Family::kQueue}) {
    CFS_RETURN_IF_ERROR(
        ScanSlots(family, slots, [&](absl::string_view key, absl::string_view value) {
          if (!Moves(family, key)) return true;
          piece.Put(family, std::string(key), std::string(value));
          bytes += key.size() + value.size();
          if (bytes < kPieceBytes) return true;
          sent = send(std::exchange(piece, {}));
          bytes = 0;
          return sent.ok();
        }));
    CFS_RETURN_IF_ERROR(sent);
  }
  return piece.empty() ? absl::OkStatus() : send(piece);
}

void LocalFileSystem::Freeze(SlotList* slots, absl::FunctionRef<bool(Slot)> stays) {
  for (const Slot slot : *slots) {
    leaving_.Set(slot, true);
    if (!Planted("giver-serves-on")) shard_->SetOwned(slot, false);
  }
  shard_->Barrier();
  std::erase_if(*slots, [&](Slot slot) {
    if (!stays(slot)) return false;
    shard_->SetOwned(slot, true);
    leaving_.Set(slot, false);
    return true;
  });
}

absl::Status LocalFileSystem::CopyTail(absl::FunctionRef<absl::Status(const WriteSet&)> send) {
  WriteSet piece;
  size_t bytes = 0;
  for (const auto& [family, key] : shard_->TakeTracked()) {
    if (!Moves(family, key) || Planted("tail-not-copied")) continue;
    std::string value;
    const absl::Status found = store_->Get(family, key, &value);
    if (absl::IsNotFound(found)) {
      piece.Delete(family, key);
    } else {
      CFS_RETURN_IF_ERROR(found);
      piece.Put(family, key, std::move(value));
    }
    bytes += key.size() + value.size();
    if (bytes < kPieceBytes) continue;
    CFS_RETURN_IF_ERROR(send(std::exchange(piece, {})));
    bytes = 0;
  }
  return piece.empty() ? absl::OkStatus() : send(piece);
}

absl::Status LocalFileSystem::BeginGiving(uint64_t number, NodeId taker, const SlotList& slots) {
  CFS_ASSIGN_OR_RETURN(const auto files, FilesOf(slots));
  Shard::Update update(shard_.get());
  if (!Planted("giving-not-written")) {
    update.PutRaw(Family::kLocal, GivingKey(number), Packer().Add(taker, slots).Take());
  }
  for (const auto& [ino, backing] : files) update.PutForeign(backing, ino);
  CFS_RETURN_IF_ERROR(update.Commit());
  return Planted("giving-not-synced") ? absl::OkStatus() : store_->SyncWal();
}

absl::Status LocalFileSystem::EndGiving(uint64_t number, const SlotList& slots, bool given) {
  CFS_ASSIGN_OR_RETURN(const auto files, FilesOf(slots));
  Shard::Update update(shard_.get());
  update.DeleteRaw(Family::kLocal, GivingKey(number));
  if (given) {
    CFS_RETURN_IF_ERROR(CommitOwned(slots, /*owned=*/false, &update));
  } else {
    for (const auto& [ino, backing] : files) update.DeleteForeign(backing);
    CFS_RETURN_IF_ERROR(update.Commit());
  }
  CFS_RETURN_IF_ERROR(store_->SyncWal());
  if (!given) {
    for (const Slot slot : slots) {
      shard_->SetOwned(slot, true);
      leaving_.Set(slot, false);
    }
    return absl::OkStatus();
  }
  for (const auto& [ino, backing] : files) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    OpenInode* const open = open_.Find(ino);
    if (open == nullptr) continue;
    open->foreign = true;
    open->marked = false;
    if (!open->open() && !open->queued) open_.Erase(ino);
  }
  SlotSet gone;
  for (const Slot slot : slots) gone.set(Raw(slot));
  const auto is_gone = [&gone](InodeId ino) { return gone[Raw(SlotOf(ino))]; };
  {
    MutexLock lock(&ghost_mutex_);
    absl::erase_if(ghosts_, [&](const auto& entry) { return is_gone(entry.first); });
    ghost_count_.store(ghosts_.size(), std::memory_order_relaxed);
  }
  locks_.Drop(is_gone, NotOwned());
  shard_->ClearCaches();
  CFS_RETURN_IF_ERROR(WipeSlots(slots));
  for (const Slot slot : slots) leaving_.Set(slot, false);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LocalFileSystem::Giving>> LocalFileSystem::Givings() {
  std::vector<Giving> givings;
  absl::Status malformed;
  CFS_RETURN_IF_ERROR(store_->Scan(
      Family::kLocal, kGivingPrefix, kGivingPrefix,
      [&](absl::string_view key, absl::string_view value) {
        Giving giving;
        if (!ParseGivingKey(key, &giving.number) ||
            !Unpacker(value).Take(&giving.taker, &giving.slots)) {
          malformed = absl::DataLossError("hand-over: malformed record");
          return false;
        }
        givings.push_back(std::move(giving));
        return true;
      }));
  CFS_RETURN_IF_ERROR(malformed);
  return givings;
}

// ------------------------------------------------------------------ the taker

absl::Status LocalFileSystem::WipeSlots(const SlotList& slots) {
  for (const Family family : {Family::kRecords, Family::kQueue}) {
    WriteSet writes;
    absl::Status status;
    CFS_RETURN_IF_ERROR(
        ScanSlots(family, slots, [&](absl::string_view key, absl::string_view) {
          writes.Delete(family, std::string(key));
          if (writes.writes().size() >= kEraseKeys) status = store_->Apply(std::exchange(writes, {}));
          return status.ok();
        }));
    CFS_RETURN_IF_ERROR(status);
    if (!writes.empty()) CFS_RETURN_IF_ERROR(store_->Apply(writes));
  }
  return absl::OkStatus();
}

absl::Status LocalFileSystem::TakePiece(WriteSet piece) {
  WriteSet writes;
  for (const WriteSet::Write& write : piece.writes()) {
    if (Owns(SlotOfKey(write.key)) || write.family == Family::kLocal) return PosixError(EPROTO);
    if (write.is_delete) {
      writes.Delete(write.family, write.key);
      continue;
    }
    std::string value = write.value;
    if (write.family == Family::kRecords && IsInodeKey(write.key)) {
      CFS_ASSIGN_OR_RETURN(InodeRecord record, DecodeInode(value));
      // Where the data is here, it is to be looked at; epochs are those of a store.
      record.attr_epoch = 0;
      value = Encode(record);
    }
    writes.Put(write.family, write.key, std::move(value));
  }
  return store_->Apply(writes);
}

absl::Status LocalFileSystem::Take(uint64_t number, const SlotList& slots, uint64_t inode_end,
                                   absl::FunctionRef<void()> before) {
  for (const Slot slot : slots) {
    if (Planted("owned-before-written")) shard_->SetOwned(slot, true);
  }
  if (!Planted("inodes-not-raised")) CFS_RETURN_IF_ERROR(state_->RaiseInodes(inode_end));
  FaultPoint("take-unwritten");
  CFS_ASSIGN_OR_RETURN(const auto files, FilesOf(slots));
  Shard::Update update(shard_.get());
  if (!Planted("taking-not-written")) update.PutRaw(Family::kLocal, TakenKey(number), "1");
  for (const auto& [ino, backing] : files) update.DeleteForeign(backing);
  CFS_RETURN_IF_ERROR(CommitOwned(slots, /*owned=*/true, &update));
  if (!Planted("taking-not-synced")) CFS_RETURN_IF_ERROR(store_->SyncWal());
  shard_->ClearCaches();
  FaultPoint("take-written");
  before();
  for (const Slot slot : slots) shard_->SetOwned(slot, true);
  shard_->Barrier();
  for (const auto& [ino, backing] : files) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    OpenInode* const open = open_.Find(ino);
    if (open == nullptr || !open->foreign) continue;
    // Opened as another node's: from now on as one of this shard.
    open->foreign = false;
    bool fresh;
    const absl::Status marked = BeginWriting(ino, open, &fresh);
    if (!marked.ok()) LogWarn("open file is not marked error=", marked.ToString());
    if (open->writers == 0) QueueSettle(ino, open);
  }
  // Removed, and perhaps open somewhere.
  std::vector<InodeId> orphans;
  const absl::Status scanned =
      ScanSlots(Family::kQueue, slots, [&](absl::string_view key, absl::string_view) {
        QueueKind kind;
        InodeId ino;
        if (ParseQueueKey(key, &kind, &ino) && kind == QueueKind::kOrphan) orphans.push_back(ino);
        return true;
      });
  // They are this node's by now, whatever else happens.
  if (!scanned.ok()) LogWarn("removed files stay until the next start error=", scanned.ToString());
  for (const InodeId ino : orphans) {
    StripeLocks::Hold hold(&shard_->locks(), {ino});
    const auto record = shard_->GetInode(ino);
    if (record.ok() && record->nlink == 0) OnRemoved({ino, /*orphaned=*/true, *record});
  }
  return absl::OkStatus();
}

absl::Status LocalFileSystem::Adopt(const SlotList& slots, uint64_t inode_first) {
  CFS_RETURN_IF_ERROR(state_->RaiseInodes(inode_first));
  CFS_RETURN_IF_ERROR(WipeSlots(slots));
  FaultPoint("adopt-unwritten");
  Shard::Update update(shard_.get());
  CFS_RETURN_IF_ERROR(CommitOwned(slots, /*owned=*/true, &update));
  CFS_RETURN_IF_ERROR(store_->SyncWal());
  shard_->ClearCaches();
  for (const Slot slot : slots) shard_->SetOwned(slot, true);
  shard_->Barrier();
  FaultPoint("adopt-written");
  return absl::OkStatus();
}

absl::StatusOr<bool> LocalFileSystem::HasTaken(uint64_t number) {
  std::string value;
  const absl::Status found = store_->Get(Family::kLocal, TakenKey(number), &value);
  if (absl::IsNotFound(found)) return false;
  CFS_RETURN_IF_ERROR(found);
  return true;
}

absl::Status LocalFileSystem::ForgetTaken(uint64_t number) {
  Shard::Update update(shard_.get());
  update.DeleteRaw(Family::kLocal, TakenKey(number));
  return update.Commit();
}

}  // namespace cfs
