#include "cfs/server/fsck.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/server/cluster_store.h"
#include "cfs/server/fsck_internal.h"
#include "cfs/server/local_file_system.h"
#include "cfs/server/peer_format.h"

namespace cfs {
namespace {

absl::Status In(const FsckStore& store, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("store ", store.dir.path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<FsckReport> CheckStores(const std::vector<std::string>& paths, bool strict) {
  Fsck fsck(strict);
  CFS_RETURN_IF_ERROR(fsck.Run(paths));
  return fsck.TakeReport();
}

absl::Status Fsck::Run(const std::vector<std::string>& paths) {
  CFS_RETURN_IF_ERROR(OpenStores(paths));
  CFS_RETURN_IF_ERROR(FindOwners());
  CheckOwners();
  CFS_RETURN_IF_ERROR(ReadTransactions());
  for (FsckStore& store : stores_) {
    if (store.meta == nullptr) continue;
    CFS_RETURN_IF_ERROR(In(store, ReadQueue(&store)));
    CFS_RETURN_IF_ERROR(In(store, ReadRecords(&store)));
  }
  std::ranges::sort(inodes_, {}, &FsckInode::ino);
  std::ranges::sort(names_, {}, [](const FsckName& n) { return std::pair(n.child, n.dir); });
  report_.inodes = inodes_.size();
  report_.names = names_.size();
  CheckQueue();
  CheckNames();
  CheckReachable();
  for (FsckStore& store : stores_) {
    if (!IsOfLostNode(store)) CFS_RETURN_IF_ERROR(In(store, CheckData(&store)));
  }
  AddPaths();
  return absl::OkStatus();
}

// ------------------------------------------------------------------- findings

void Fsck::Error(absl::string_view kind, Subject subject, std::string what) {
  ++report_.errors;
  Add(/*is_error=*/true, kind, std::move(subject), std::move(what));
}

void Fsck::Note(absl::string_view kind, Subject subject, std::string what) {
  ++report_.notes;
  Add(/*is_error=*/false, kind, std::move(subject), std::move(what));
}

void Fsck::Loss(absl::string_view kind, Subject subject, std::string what) {
  if (strict_ || map_ == nullptr || map_->losses() == 0) {
    return Error(kind, std::move(subject), std::move(what));
  }
  Note(kind, std::move(subject), what + ": a node was lost");
}

bool Fsck::IsOfLostNode(const FsckStore& store) const {
  const ClusterNode* const node =
      map_ == nullptr ? nullptr : map_->Find(store.dir.identity.node_id);
  return node != nullptr && IsGone(node->state);
}

void Fsck::Add(bool is_error, absl::string_view kind, Subject subject, std::string what) {
  if (++counts_[kind] > kFsckFindingsMax) return;
  report_.findings.push_back({is_error, kind, std::move(subject.text), std::move(what)});
  subjects_.push_back(subject.ino);
}

void Fsck::AddPaths() {
  for (size_t i = 0; i < subjects_.size(); ++i) {
    if (subjects_[i] == kNoInode) continue;
    const std::string path = PathOf(subjects_[i]);
    report_.findings[i].where = absl::StrCat("inode ", Raw(subjects_[i]), path.empty() ? "" : " (",
                                             path, path.empty() ? "" : ")");
  }
}

// --------------------------------------------------------------------- stores

absl::Status Fsck::OpenStores(const std::vector<std::string>& paths) {
  stores_.resize(paths.size());
  for (size_t i = 0; i < paths.size(); ++i) {
    FsckStore& store = stores_[i];
    CFS_ASSIGN_OR_RETURN(store.dir, OpenIdleStore(paths[i]));
    const StoreIdentity& identity = store.dir.identity;
    const std::string& first = stores_.front().dir.path;
    if (identity.cluster_id != stores_.front().dir.identity.cluster_id) {
      return absl::InvalidArgumentError(
          absl::StrCat("stores ", first, " and ", store.dir.path, " are of different clusters"));
    }
    const auto [other, is_new] = by_node_.try_emplace(identity.node_id, &store);
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat("stores ", other->second->dir.path, " and ",
                                                     store.dir.path, " are both of node ",
                                                     Raw(identity.node_id)));
    }
    CFS_ASSIGN_OR_RETURN(const ClusterMapPtr map,
                         ReadStoredMap(store.dir.path, ClusterIdOf(identity.cluster_id)));
    if (map != nullptr && (map_ == nullptr || map->epoch() > map_->epoch())) map_ = map;
    auto meta = OpenRocksdbStoreForReading(store.dir.path + "/meta");
    if (!meta.ok() && !absl::IsNotFound(meta.status())) {
      return absl::DataLossError(
          absl::StrCat("store ", store.dir.path, " cannot be read: ", meta.status().message()));
    }
    if (meta.ok()) {
      store.meta = *std::move(meta);
    } else {
      Note("no metadata", Of(store), "it has no metadata yet");
    }
  }
  if (map_ == nullptr && stores_.size() > 1) {
    return absl::InvalidArgumentError("the stores are of nodes that are alone: give one of them");
  }
  if (map_ == nullptr) return absl::OkStatus();
  for (const FsckStore& store : stores_) {
    if (map_->Find(store.dir.identity.node_id) != nullptr) continue;
    Note("unknown node", Of(store), "its node is not in the map of the cluster");
  }
  for (const FsckStore& store : stores_) {
    if (!IsOfLostNode(store)) continue;
    Note("lost node", Of(store), "its node was given up as lost: what it has is not looked at");
  }
  for (const ClusterNode& node : map_->nodes()) {
    if (IsGone(node.state) || by_node_.contains(node.id)) continue;
    complete_ = false;
    Note("missing store", {kNoInode, absl::StrCat("node ", Raw(node.id))},
         "its store is missing: what it has is not checked");
  }
  return absl::OkStatus();
}

absl::Status Fsck::ReadLocal(FsckStore* store, bool* says_slots) {
  bool has_state = false, moves = false;
  CFS_RETURN_IF_ERROR(store->meta->Scan(
      Family::kLocal, "", "", [&](absl::string_view key, absl::string_view value) {
        absl::Status malformed;
        BackingId backing;
        if (key == kStoreStateKey) {
          const auto state = DecodeStoreState(value);
          malformed = state.status();
          if (state.ok()) store->state = *state;
          has_state = true;
        } else if (key == kOwnedSlotsKey) {
          const auto owned = DecodeSlots(value);
          malformed = owned.status();
          if (owned.ok()) store->owned = *owned;
          *says_slots = true;
        } else if (ParseDoomedKey(key, &backing)) {
          store->doomed.push_back(backing);
        } else if (ParseForeignKey(key, &backing)) {
          const auto ino = DecodeInodeNumber(value);
          malformed = ino.status();
          if (ino.ok()) store->foreign.push_back({backing, *ino});
        } else if (key.substr(0, 1) == kGivingPrefix) {
          moves = true;
          LocalFileSystem::Giving giving;
          if (!ParseGivingKey(key, &giving.number) ||
              !Unpacker(value).Take(&giving.taker, &giving.slots)) {
            malformed = absl::DataLossError("hand-over: malformed record");
          }
          for (const Slot slot : giving.slots) store->giving.set(Raw(slot));
        } else if (key.substr(0, 1) != kTakenPrefix) {
          malformed = absl::DataLossError("unknown record of the node");
        }
        if (!malformed.ok())
          Error("malformed record", Of(*store), std::string(malformed.message()));
        return true;
      }));
  if (!has_state) Error("no store state", Of(*store), "its store state is missing");
  if (moves) Note("hand-over", Of(*store), "hand-over of slots under way");
  return absl::OkStatus();
}

absl::Status Fsck::FindOwners() {
  for (FsckStore& store : stores_) {
    bool says_slots = false;
    if (store.meta != nullptr) CFS_RETURN_IF_ERROR(In(store, ReadLocal(&store, &says_slots)));
    if (map_ == nullptr) {
      store.owned.set();
    } else if (!says_slots) {
      for (size_t i = 0; i < kSlots; ++i) {
        store.owned[i] = map_->owners()[i] == store.dir.identity.node_id && !map_->vacant()[i];
      }
    }
    if (IsOfLostNode(store)) store.owned.reset();
  }
  // What the taker has written down that it has is its own.
  for (FsckStore& giver : stores_) {
    for (const FsckStore& taker : stores_) {
      if (&taker != &giver) giver.owned &= ~(giver.giving & taker.owned);
    }
  }
  for (FsckStore& store : stores_) {
    for (size_t i = 0; i < kSlots; ++i) {
      if (store.owned[i] && owners_[i] == nullptr) owners_[i] = &store;
    }
  }
  return absl::OkStatus();
}

void Fsck::CheckOwners() {
  const auto owners_of = [&](size_t slot) {
    std::vector<uint32_t> nodes;
    for (const FsckStore& store : stores_) {
      if (store.owned[slot]) nodes.push_back(Raw(store.dir.identity.node_id));
    }
    return nodes;
  };
  for (size_t begin = 0, end; begin < kSlots; begin = end) {
    const std::vector<uint32_t> owners = owners_of(begin);
    const auto is_vacant = [this](size_t slot) {
      return map_ != nullptr &&
             (map_->vacant()[slot] || IsGone(map_->Find(map_->owners()[slot])->state));
    };
    const bool vacant = is_vacant(begin);
    for (end = begin + 1; end < kSlots && owners_of(end) == owners && is_vacant(end) == vacant;) {
      ++end;
    }
    if (owners.size() == 1 || (owners.empty() && !complete_)) continue;
    const Subject slots{kNoInode, end - begin == 1 ? absl::StrCat("slot ", begin)
                                                   : absl::StrCat("slots ", begin, "-", end - 1)};
    if (owners.empty() && vacant) {
      Note("vacant slot", slots, "its node was lost, and nobody has taken it over yet");
    } else if (owners.empty()) {
      Error("slot without owner", slots, "owned by no node");
    } else {
      Error("slot with two owners", slots,
            absl::StrCat("owned by nodes ", absl::StrJoin(owners, " and "),
                         "; only what the first has is looked at"));
    }
  }
}

FsckStore* Fsck::OwnerOf(Slot slot) { return owners_[Raw(slot)]; }

}  // namespace cfs
