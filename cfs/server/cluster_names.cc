#include "cfs/server/cluster_names.h"

#include <memory>
#include <string>
#include <utility>

#include "cfs/base/status_macros.h"
#include "cfs/meta/records.h"
#include "cfs/ring/hash.h"

namespace cfs {

DoneStatus ClusterNames::OrTransact(InodeId dir, Transactor::Body body, DoneStatus done) {
  return [this, dir, body = std::move(body), request = RequestScope::CurrentRequest(),
          done = std::move(done)](absl::Status status) mutable {
    if (!IsNotOwned(status) || !local_->Owns(SlotOf(dir))) return done(std::move(status));
    transactor_->Run(SlotOf(dir), kNoInode, std::move(request), std::move(body), std::move(done));
  };
}

absl::StatusOr<Slot> ClusterNames::SlotOfNew(NodeId creator, InodeId dir,
                                             absl::string_view name) {
  const Slot spread = SpreadSlot(dir, name);
  CFS_ASSIGN_OR_RETURN(const bool local, local_->PlacesLocally(dir));
  const ClusterMapPtr map = map_();
  const auto first = [&](auto fits) {
    for (size_t i = 0; i < kSlotCount; ++i) {
      const Slot slot{static_cast<uint16_t>(Raw(spread) + i)};
      if (fits(slot)) return slot;
    }
    return spread;
  };
  if (local) {
    const Slot near = first([&](Slot slot) {
      return map->OwnerOf(slot) == creator && !map->InHandOver(slot);
    });
    if (map->OwnerOf(near) == creator) return near;
  }
  // A node that is down need not keep others from making directories.
  return first([&](Slot slot) {
    return map->Find(map->OwnerOf(slot))->state == NodeState::kUp;
  });
}

void ClusterNames::MakeDirectory(NodeId creator, const Caller& caller, InodeId dir,
                                 absl::string_view name, uint32_t mode, Done<Attr> done) {
  if (!local_->Owns(SlotOf(dir))) return done(NotOwned());
  const absl::StatusOr<Slot> slot = SlotOfNew(creator, dir, name);
  if (!slot.ok()) return done(slot.status());
  if (local_->Owns(*slot)) {
    return local_->MakeDirectoryIn(*slot, caller, dir, name, mode, std::move(done));
  }
  reserve_(*slot, [this, caller, dir, name = std::string(name), mode,
                  request = RequestScope::CurrentRequest(),
                  done = std::move(done)](absl::StatusOr<InodeId> ino) mutable {
    if (!ino.ok()) return done(ino.status());
    const auto made = std::make_shared<InodeRecord>();
    auto body = [caller, dir, name = std::move(name), mode, ino = *ino, made](Namespace* names) {
      Namespace::NewInode inode;
      inode.ino = ino;
      inode.record.mode = S_IFDIR | (mode & 07777u);
      auto created = names->Create(caller, dir, name, std::move(inode));
      if (created.ok()) *made = *std::move(created);
      return created.status();
    };
    transactor_->Run(SlotOf(dir), *ino, std::move(request), std::move(body),
                     [this, ino = *ino, made, done = std::move(done)](absl::Status status) mutable {
                       if (!status.ok()) return done(std::move(status));
                       done(local_->AttrOfNewDirectory(ino, *made));
                     });
  });
}

void ClusterNames::Link(InodeId ino, InodeId dir, absl::string_view name, Done<Attr> done) {
  if (!local_->Owns(SlotOf(dir))) return done(NotOwned());
  auto body = [ino, dir, name = std::string(name)](Namespace* names) {
    return names->Link(ino, dir, name).status();
  };
  auto transact = [this, ino, dir, body = std::move(body), request = RequestScope::CurrentRequest(),
                   done = std::move(done)](absl::StatusOr<Attr> linked) mutable {
    if (!IsNotOwned(linked.status())) return done(std::move(linked));
    transactor_->Run(SlotOf(dir), ino, std::move(request), std::move(body),
                     [ino, done = std::move(done)](absl::Status status) mutable {
                       if (!status.ok()) return done(std::move(status));
                       Attr attr;
                       attr.st.st_ino = Raw(ino);
                       attr.elsewhere = true;
                       done(attr);
                     });
  };
  local_->Link(ino, dir, name, std::move(transact));
}

void ClusterNames::Unlink(InodeId dir, absl::string_view name, DoneStatus done) {
  local_->Unlink(dir, name,
                 OrTransact(dir,
                            [dir, name = std::string(name)](Namespace* names) {
                              return names->Unlink(dir, name).status();
                            },
                            std::move(done)));
}

void ClusterNames::RemoveDirectory(InodeId dir, absl::string_view name, DoneStatus done) {
  local_->RemoveDirectory(dir, name,
                          OrTransact(dir,
                                     [dir, name = std::string(name)](Namespace* names) {
                                       return names->RemoveDirectory(dir, name).status();
                                     },
                                     std::move(done)));
}

void ClusterNames::Rename(InodeId from_dir, absl::string_view from_name, InodeId to_dir,
                          absl::string_view to_name, uint32_t flags, DoneStatus done) {
  local_->Rename(
      from_dir, from_name, to_dir, to_name, flags,
      OrTransact(from_dir,
                 [from_dir, from_name = std::string(from_name), to_dir,
                  to_name = std::string(to_name), flags](Namespace* names) {
                   return names->Rename(from_dir, from_name, to_dir, to_name, flags).status();
                 },
                 std::move(done)));
}

}  // namespace cfs
