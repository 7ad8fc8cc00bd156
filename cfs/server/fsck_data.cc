// The backing files, for CheckStores.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/status_macros.h"
#include "cfs/server/fsck_internal.h"
#include "cfs/tier/chunk_store.h"

namespace cfs {
namespace {

// Null: it is not among them.
const FsckUse* FindUse(const std::vector<FsckUse>& uses, BackingId backing) {
  const auto it = std::ranges::lower_bound(uses, backing, {}, &FsckUse::backing);
  return it == uses.end() || it->backing != backing ? nullptr : &*it;
}

// Ready for a create: the next start removes it.
bool IsOfPool(const StoreState& state, BackingId backing) {
  return !state.clean && Raw(backing) >= state.settled;
}

std::string FileText(const FsckStore& store, absl::string_view path) {
  return absl::StrCat("file ", store.dir.path, "/data/", path);
}

}  // namespace

absl::Status Fsck::CheckData(FsckStore* home) {
  std::vector<FsckUse>& uses = home->uses;
  std::ranges::sort(uses);
  for (size_t i = 1; i < uses.size(); ++i) {
    if (uses[i].backing != uses[i - 1].backing) continue;
    Error("shared backing file", Inode(uses[i].ino),
          absl::StrCat("inode ", Raw(uses[i - 1].ino), " has the same backing file"));
  }
  std::vector<bool> present(uses.size());
  CFS_RETURN_IF_ERROR(
      WalkBackingFiles(home->dir.path + "/data", [&](absl::string_view path, BackingId backing) {
        ++report_.files;
        const Subject file{kNoInode, FileText(*home, path)};
        if (backing == kNoBacking) {
          return Error("strange file", file, "no backing file, and no file that cfs made");
        }
        if (const FsckUse* use = FindUse(uses, backing)) {
          for (; use != uses.data() + uses.size() && use->backing == backing; ++use) {
            present[static_cast<size_t>(use - uses.data())] = true;
          }
        } else if (Raw(backing) >= home->state.counter_end) {
          Error("stray backing file", file, "its number was never given out");
        } else if (complete_ && !IsOfPool(home->state, backing) &&
                   FindUse(home->foreign, backing) == nullptr &&
                   !std::ranges::binary_search(home->doomed, backing)) {
          Error("stray backing file", file, "no inode names it");
        }
      }));
  for (size_t i = 0; i < uses.size(); ++i) {
    if (!present[i]) CheckMissing(*home, uses[i]);
  }
  CheckForeign(*home);
  return absl::OkStatus();
}

void Fsck::CheckMissing(const FsckStore& home, const FsckUse& use) {
  const FsckInode* const inode = Find(use.ino);
  const FsckStore* const owner = OwnerOf(SlotOf(use.ino));
  // Its home has freed it, and the owner's turn comes.
  if (owner != &home && inode->nlink == 0) return;
  bool unsynced = home.ended_badly();
  if (owner == &home) {
    std::string value;
    const bool read = home.meta->Get(Family::kRecords, InodeKey(use.ino), &value).ok();
    const auto record = DecodeInode(value);
    unsynced =
        !home.state.clean || (read && record.ok() && record->attr_epoch != home.state.attr_epoch);
  } else {
    // The home makes it again only where it has forgotten it.
    unsynced = unsynced && FindUse(home.foreign, use.backing) == nullptr;
  }
  const std::string path = FileText(home, BackingPath(use.backing));
  if (unsynced) {
    Note("unsynced file", Inode(use.ino),
         absl::StrCat("its ", path, " was lost before it was synced; it will be empty"));
  } else {
    Error("missing backing file", Inode(use.ino), absl::StrCat("its ", path, " is missing"));
  }
}

void Fsck::CheckForeign(const FsckStore& home) {
  for (const FsckUse& use : home.uses) {
    const FsckInode* const inode = Find(use.ino);
    const FsckUse* const foreign = FindUse(home.foreign, use.backing);
    if (OwnerOf(SlotOf(use.ino)) == &home || inode->nlink == 0) continue;
    if (foreign == nullptr) {
      if (home.ended_badly()) {
        Note("no foreign record", Inode(use.ino), "its home has forgotten it, after power loss");
      } else {
        Error("no foreign record", Inode(use.ino), "its home does not know of it");
      }
    } else if (foreign->ino != use.ino && foreign->ino != kNoInode) {
      Error("wrong foreign record", Inode(use.ino),
            absl::StrCat("its home says that its file is of inode ", Raw(foreign->ino)));
    }
  }
  for (const FsckUse& foreign : home.foreign) {
    const Subject file{kNoInode, FileText(home, BackingPath(foreign.backing))};
    const bool used = FindUse(home.uses, foreign.backing) != nullptr;
    if (foreign.ino == kNoInode) {
      Note("uncertain create", file,
           used ? "its home does not know of which inode it is"
                : "nobody could say whether it has an inode; it has none");
    } else if (!used && OwnerOf(SlotOf(foreign.ino)) != nullptr) {
      Note("left-over file", file,
           absl::StrCat("it was of inode ", Raw(foreign.ino), ", which does not name it"));
    }
  }
}

}  // namespace cfs
