// Makes a store wrong in one place, for fsck.py: `damage STORE WHAT ARGUMENT...`.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cfs/base/check.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/store.h"
#include "cfs/meta/transaction_format.h"

namespace cfs {
namespace {

using Words = std::vector<std::string>;

uint64_t Number(const std::string& word) { return strtoull(word.c_str(), nullptr, 0); }
InodeId Ino(const std::string& word) { return InodeId(Number(word)); }

// INO FIELD VALUE, or INO alone: erases it.
void ChangeInode(Store* store, const Words& words, WriteSet* writes) {
  const std::string key = InodeKey(Ino(words[0]));
  if (words.size() == 1) return writes->Delete(Family::kRecords, key);
  std::string value;
  CFS_CHECK(store->Get(Family::kRecords, key, &value).ok());
  InodeRecord record = DecodeInode(value).value();
  const uint64_t number = Number(words[2]);
  if (words[1] == "nlink") record.nlink = static_cast<uint32_t>(number);
  if (words[1] == "parent") record.parent = InodeId(number);
  if (words[1] == "xattr_list_bytes") record.xattr_list_bytes = static_cast<uint32_t>(number);
  if (words[1] == "flags") record.flags = static_cast<uint32_t>(number);
  if (words[1] == "backing") record.backing = BackingId(number);
  if (words[1] == "home") record.home = NodeId(static_cast<uint32_t>(number));
  CFS_CHECK(Encode(record) != value);
  writes->Put(Family::kRecords, key, Encode(record));
}

// A transaction that makes the name DIR NAME INO TYPE, and has decided to or not.
void Prepare(const Words& words, bool decided, WriteSet* writes) {
  TransactionPart part;
  const InodeId dir = Ino(words[0]);
  part.writes.Put(Family::kRecords, DentryKey(dir, words[1]),
                  Encode(DentryRecord{Ino(words[2]), static_cast<uint8_t>(Number(words[3]))}));
  part.counts.push_back({dir, 1, 0, {}});
  const TransactionId id{SlotOf(dir), NodeId{1}, 2, 3};
  writes->Put(Family::kQueue, PreparedKey(SlotOf(dir), id), Encode(part));
  if (decided) writes->Put(Family::kQueue, OutcomeKey(id), EncodeNodes({}));
}

void ChangeSlot(Store* store, const Words& words, WriteSet* writes) {
  std::string value;
  CFS_CHECK(store->Get(Family::kLocal, kOwnedSlotsKey, &value).ok());
  SlotSet slots = DecodeSlots(value).value();
  slots.flip(Number(words[0]));
  writes->Put(Family::kLocal, kOwnedSlotsKey, Encode(slots));
}

// SLOT TARGET: the store TARGET owns it and has its records; here they are left over.
void MoveSlot(Store* store, const Words& words, WriteSet* writes) {
  const auto target = OpenRocksdbStore(words[1] + "/meta");
  CFS_CHECK(target.ok());
  const std::string prefix = InodeKey(MakeInode(Slot(static_cast<uint16_t>(Number(words[0]))), 0))
                                 .substr(0, 2);
  WriteSet moved;
  for (const Family family : {Family::kRecords, Family::kQueue}) {
    CFS_CHECK(store
                  ->Scan(family, prefix, prefix,
                         [&](absl::string_view key, absl::string_view value) {
                           moved.Put(family, std::string(key), std::string(value));
                           return true;
                         })
                  .ok());
  }
  CFS_CHECK(!moved.empty());
  ChangeSlot(target->get(), words, &moved);
  CFS_CHECK((*target)->Apply(moved).ok());
  ChangeSlot(store, words, writes);
}

void Damage(Store* store, const std::string& what, const Words& words) {
  WriteSet writes;
  if (what == "inode") ChangeInode(store, words, &writes);
  if (what == "bucket") {
    BucketRecord bucket;
    bucket.entries = Number(words[1]);
    writes.Put(Family::kRecords, BucketKey(Ino(words[0]), 0), Encode(bucket));
  }
  if (what == "dentry") {
    writes.Put(Family::kRecords, DentryKey(Ino(words[0]), words[1]),
               Encode(DentryRecord{Ino(words[2]), static_cast<uint8_t>(Number(words[3]))}));
  }
  if (what == "no-dentry") writes.Delete(Family::kRecords, DentryKey(Ino(words[0]), words[1]));
  if (what == "garbage") writes.Put(Family::kRecords, InodeKey(Ino(words[0])), "garbage");
  if (what == "slot") ChangeSlot(store, words, &writes);
  if (what == "move") MoveSlot(store, words, &writes);
  if (what == "queue") {
    writes.Put(Family::kQueue, QueueKey(QueueKind::kOrphan, Ino(words[0])),
               EncodeBacking(kNoBacking));
  }
  if (what == "no-queue") {
    writes.Delete(Family::kQueue, QueueKey(QueueKind::kOrphan, Ino(words[0])));
  }
  if (what == "mark") {
    writes.Put(Family::kQueue, QueueKey(QueueKind::kOpen, Ino(words[0])),
               EncodeBacking(kNoBacking));
  }
  if (what == "foreign") {
    writes.Put(Family::kLocal, ForeignKey(BackingId(Number(words[0]))),
               EncodeInodeNumber(Ino(words[1])));
  }
  if (what == "no-foreign") writes.Delete(Family::kLocal, ForeignKey(BackingId(Number(words[0]))));
  if (what == "hand-over") writes.Put(Family::kLocal, GivingKey(1), "");
  if (what == "prepared") Prepare(words, /*decided=*/false, &writes);
  if (what == "decided") Prepare(words, /*decided=*/true, &writes);
  CFS_CHECK(!writes.empty());
  CFS_CHECK(store->Apply(writes).ok());
}

}  // namespace
}  // namespace cfs

int main(int argc, char** argv) {
  CFS_CHECK(argc > 3 || (argc == 3 && std::string(argv[2]) == "hand-over"));
  auto store = cfs::OpenRocksdbStore(std::string(argv[1]) + "/meta");
  CFS_CHECK(store.ok());
  cfs::Damage(store->get(), argv[2], {argv + 3, argv + argc});
}
