#include "tests/simulator/clients.h"

#include <linux/fs.h>

#include <algorithm>
#include <cerrno>

#include "cfs/base/awaited.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/ring/hash.h"

namespace cfs {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr size_t kSharedDirectories = 8;
constexpr size_t kLockFiles = 3;
constexpr uint64_t kWholeFile = 0x7fff'ffff'ffff'ffff;

// What a call answers. It outlives the caller, who may die while it waits.
template <typename T, typename Start>
absl::StatusOr<T> Ask(Start start) {
  const auto answer = std::make_shared<Awaited<absl::StatusOr<T>>>();
  start(Done<T>([answer](absl::StatusOr<T> value) { answer->Set(std::move(value)); }));
  return answer->Get();
}
template <typename Start>
absl::Status AskStatus(Start start) {
  const auto answer = std::make_shared<Awaited<absl::Status>>();
  start(DoneStatus([answer](absl::Status status) { answer->Set(std::move(status)); }));
  return answer->Get();
}

bool NobodyKnows(const absl::Status& status) { return !status.ok() && ErrnoOf(status) == EIO; }

bool MayBeRefusedSo(const absl::Status& status) {
  constexpr int kAllowed[] = {ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, EPERM, EMLINK,
                              ESTALE};
  return !absl::IsDataLoss(status) &&
         std::ranges::find(kAllowed, ErrnoOf(status)) != std::end(kAllowed);
}

InodeId InodeOf(const Attr& attr) { return InodeId(attr.st.st_ino); }

}  // namespace

Clients::Clients(Scheduler* scheduler, SlotOwners final_owners, std::vector<NodeId> nodes)
    : scheduler_(scheduler), final_owners_(std::move(final_owners)), nodes_(std::move(nodes)) {}

std::string Clients::NameIn(InodeId dir, const std::string& prefix) {
  const NodeId wanted = nodes_[scheduler_->random().Below(nodes_.size())];
  std::string name = prefix;
  for (int i = 0; i < 100; ++i) {
    name = absl::StrCat(prefix, "-", ++next_name_);
    if (final_owners_[Raw(SpreadSlot(dir, name))] == wanted) break;
  }
  return name;
}

void Clients::MakeShared(Nodes::Node* node) {
  FileSystem* const fs = node->process->part->file_system();
  const Caller caller{};
  shared_.push_back(kRootInode);
  while (shared_.size() < kSharedDirectories) {
    const InodeId dir = RandomDirectory();
    const std::string name = NameIn(dir, "shared");
    const auto made = Ask<Attr>(
        [&](Done<Attr> done) { fs->MakeDirectory(caller, dir, name, 0755, std::move(done)); });
    CFS_CHECK(made.ok());
    const absl::Status synced =
        AskStatus([&](DoneStatus done) { fs->SyncDirectory(InodeOf(*made), std::move(done)); });
    CFS_CHECK(synced.ok());
    shared_.push_back(InodeOf(*made));
  }
  while (lock_files_.size() < kLockFiles) {
    const InodeId dir = shared_[1 + lock_files_.size()];
    const auto made = Ask<CreateResult>([&](Done<CreateResult> done) {
      fs->Create(caller, dir, "lock", 0644, O_RDWR, std::move(done));
    });
    CFS_CHECK(made.ok());
    fs->Release(made->open.handle);
    const absl::Status synced =
        AskStatus([&](DoneStatus done) { fs->SyncDirectory(dir, std::move(done)); });
    CFS_CHECK(synced.ok());
    lock_files_.push_back(InodeOf(made->attr));
  }
}

void Clients::StartAt(Nodes::Node* node, size_t clients, size_t operations) {
  auto& of_node = clients_[node->id];
  if (of_node.empty()) {
    for (size_t i = 0; i < clients; ++i) {
      of_node.push_back(std::make_unique<Client>());
      of_node.back()->number = next_client_++;
      of_node.back()->left = operations;
    }
  }
  const std::shared_ptr<Nodes::Process> process = node->process;
  for (const auto& owned : of_node) {
    Client* const client = owned.get();
    client->process = process->id;
    // What was under way when the last process died: nobody knows.
    for (Name* const name : client->at) {
      name->lost_sight = true;
      std::erase(client->names, name);
      ++counts_.unknown;
    }
    client->at.clear();
    scheduler_->Spawn(process->id, [this, client, process] { Run(client, process.get()); });
  }
}

void Clients::Run(Client* client, Nodes::Process* process) {
  FileSystem* const fs = process->part->file_system();
  while (client->left > 0 && process->serving) {
    const uint64_t pause = scheduler_->random().PerMille(800) ? 3 : 150;
    scheduler_->SleepFor(microseconds(scheduler_->random().Below(1000 * pause)));
    if (!process->serving) break;
    --client->left;
    const uint64_t kind = scheduler_->random().Below(100);
    if (kind < 25) {
      DoShared(client, fs);
    } else if (kind < 35) {
      DoLocked(client, fs);
    } else {
      DoOwn(client, fs);
    }
  }
  client->process = kWorld;
}

std::string Clients::Unrest() const {
  for (const auto& [node, clients] : clients_) {
    for (const auto& client : clients) {
      if (client->process == kWorld) continue;
      return absl::StrCat("client ", client->number, " in process ", client->process, " does ",
                          client->does);
    }
  }
  return "";
}

void Clients::OnPowerLoss() {
  ++power_losses_;
  for (const auto& name : names_) {
    if (name->synced) continue;
    name->lost_sight = true;
    for (const auto& [node, clients] : clients_) {
      for (const auto& client : clients) std::erase(client->names, name.get());
    }
  }
}

void Clients::Settle(Name* name, InodeId value, const absl::Status& status,
                     uint64_t power_losses) {
  const bool lost_power = power_losses != power_losses_;
  if (!status.ok() && !NobodyKnows(status)) {
    // It was not done.
    if (!name->lost_sight) name->may_be.pop_back();
    return;
  }
  if (value != kNoInode && name->may_be.back() != value) name->may_be.back() = value;
  if (NobodyKnows(status) || lost_power) {
    name->lost_sight = true;
    return;
  }
  name->synced = false;
  // Synced values are known for good.
}

void Clients::Says(Client* client, const char* what, const Name& name) {
  client->does = absl::StrCat(what, " ", Raw(name.dir), "/", name.name);
  scheduler_->Trace("client ", client->number, " does ", client->does);
}

void Clients::Expect(const Client& client, const Name& name, const absl::Status& status) {
  scheduler_->Trace("client ", client.number, " ", client.does, ": ", status.ToString());
  if (status.ok()) {
    ++counts_.done;
  } else if (NobodyKnows(status)) {
    ++counts_.unknown;
  } else if (!name.lost_sight) {
    scheduler_->Fail(absl::StrCat("client ", client.number, ": ", client.does,
                                  ", which is its own: ", status.ToString()));
  }
}

Clients::Name* Clients::Pick(Client* client, bool there, bool directories) {
  std::vector<Name*> fit;
  for (Name* const name : client->names) {
    if ((name->now() != kNoInode) == there && (!there || directories || !name->directory)) {
      fit.push_back(name);
    }
  }
  return fit.empty() ? nullptr : fit[scheduler_->random().Below(fit.size())];
}

void Clients::Create(Client* client, FileSystem* fs) {
  Random& random = scheduler_->random();
  Name* name = random.PerMille(300) ? Pick(client, /*there=*/false, true) : nullptr;
  if (name == nullptr) {
    names_.push_back(std::make_unique<Name>());
    name = names_.back().get();
    name->dir = RandomDirectory();
    name->name = NameIn(name->dir, absl::StrCat("c", client->number));
    client->names.push_back(name);
  }
  name->directory = random.PerMille(500);
  // What it leads to is not known before the answer: any.
  const uint64_t power_losses = power_losses_;
  name->may_be.push_back(InodeId(UINT64_MAX));
  client->at = {name};
  const Caller caller{};
  Says(client, name->directory ? "mkdir" : "symlink", *name);
  const auto made = Ask<Attr>([&](Done<Attr> done) {
    if (name->directory) {
      fs->MakeDirectory(caller, name->dir, name->name, 0755, std::move(done));
    } else {
      fs->MakeSymlink(caller, name->dir, name->name, "target", std::move(done));
    }
  });
  client->at.clear();
  Expect(*client, *name, made.status());
  Settle(name, made.ok() ? InodeOf(*made) : kNoInode, made.status(), power_losses);
  if (name->lost_sight) std::erase(client->names, name);
}

void Clients::DoOwn(Client* client, FileSystem* fs) {
  Random& random = scheduler_->random();
  const uint64_t kind = random.Below(100);
  Name* const name = Pick(client, /*there=*/true, /*directories=*/kind >= 50 && kind < 90);
  if (kind < 40 || name == nullptr) return Create(client, fs);
  const uint64_t power_losses = power_losses_;
  if (kind >= 90) {
    // What is in the directory is there for good.
    const InodeId dir = name->dir;
    std::vector<Name*> unsynced;
    for (Name* const other : client->names) {
      if (other->dir == dir && !other->synced) unsynced.push_back(other);
    }
    Says(client, "sync of the directory of", *name);
    const absl::Status synced =
        AskStatus([&](DoneStatus done) { fs->SyncDirectory(dir, std::move(done)); });
    scheduler_->Trace("client ", client->number, " syncs ", Raw(dir), ": ", synced.ToString());
    if (!synced.ok() && !NobodyKnows(synced)) {
      scheduler_->Fail(absl::StrCat("a sync: ", synced.ToString()));
    }
    if (!synced.ok() || power_losses != power_losses_) return;
    for (Name* const other : unsynced) {
      other->synced = true;
      other->may_be.erase(other->may_be.begin(), other->may_be.end() - 1);
    }
    return;
  }
  client->at = {name};
  const InodeId ino = name->now();
  absl::Status status;
  Name* other = nullptr;
  if (kind < 50 || (kind >= 75 && !name->directory)) {  // Another name, for it or instead.
    names_.push_back(std::make_unique<Name>());
    other = names_.back().get();
    other->dir = RandomDirectory();
    other->name = NameIn(other->dir, absl::StrCat("c", client->number));
    other->directory = name->directory;
    client->names.push_back(other);
    other->may_be.push_back(ino);
    client->at.push_back(other);
  }
  if (kind < 50) {
    client->at = {other};
    Says(client, "link", *other);
    status = Ask<Attr>([&](Done<Attr> done) {
               fs->Link(ino, other->dir, other->name, std::move(done));
             }).status();
    Expect(*client, *other, status);
    Settle(other, ino, status, power_losses);
  } else if (other != nullptr) {
    name->may_be.push_back(kNoInode);
    const uint32_t flags = random.PerMille(300) ? RENAME_NOREPLACE : 0;
    Says(client, "rename from", *name);
    Says(client, "rename to", *other);
    status = AskStatus([&](DoneStatus done) {
      fs->Rename(name->dir, name->name, other->dir, other->name, flags, std::move(done));
    });
    Expect(*client, *name, status);
    Settle(name, kNoInode, status, power_losses);
    Settle(other, ino, status, power_losses);
  } else {
    Says(client, name->directory ? "rmdir" : "unlink", *name);
    name->may_be.push_back(kNoInode);
    status = AskStatus([&](DoneStatus done) {
      if (name->directory) {
        fs->RemoveDirectory(name->dir, name->name, std::move(done));
      } else {
        fs->Unlink(name->dir, name->name, std::move(done));
      }
    });
    Expect(*client, *name, status);
    Settle(name, kNoInode, status, power_losses);
  }
  client->at.clear();
  for (Name* const touched : {name, other}) {
    if (touched != nullptr && touched->lost_sight) std::erase(client->names, touched);
  }
}

void Clients::DoShared(Client* client, FileSystem* fs) {
  Random& random = scheduler_->random();
  const Caller caller{};
  const InodeId dir = RandomDirectory(), to_dir = RandomDirectory();
  const std::string name = absl::StrCat("s", random.Below(4));
  const std::string to_name = absl::StrCat("s", random.Below(4));
  const uint64_t kind = random.Below(6);
  client->does = absl::StrCat("shared ", kind, " ", Raw(dir), "/", name, " ", Raw(to_dir), "/",
                              to_name);
  scheduler_->Trace("client ", client->number, " does ", client->does);
  absl::Status status;
  switch (kind) {
    case 0:
      status = Ask<Attr>([&](Done<Attr> done) {
                 fs->MakeDirectory(caller, dir, name, 0755, std::move(done));
               }).status();
      break;
    case 1:
      status = AskStatus(
          [&](DoneStatus done) { fs->RemoveDirectory(dir, name, std::move(done)); });
      break;
    case 2:
      status = Ask<Attr>([&](Done<Attr> done) {
                 fs->MakeSymlink(caller, dir, name, "target", std::move(done));
               }).status();
      break;
    case 3:
      status = AskStatus([&](DoneStatus done) { fs->Unlink(dir, name, std::move(done)); });
      break;
    default: {
      constexpr uint32_t kFlags[] = {0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
      const uint32_t flags = kFlags[random.Below(std::size(kFlags))];
      status = AskStatus([&](DoneStatus done) {
        fs->Rename(dir, name, to_dir, to_name, flags, std::move(done));
      });
    }
  }
  scheduler_->Trace("client ", client->number, " ", client->does, ": ", status.ToString());
  if (status.ok()) {
    ++counts_.done;
  } else if (NobodyKnows(status)) {
    ++counts_.unknown;
  } else {
    ++counts_.refused;
    if (!MayBeRefusedSo(status)) scheduler_->Fail(absl::StrCat("shared: ", status.ToString()));
  }
}

void Clients::DoLocked(Client* client, FileSystem* fs) {
  Random& random = scheduler_->random();
  const InodeId ino = lock_files_[random.Below(lock_files_.size())];
  client->does = absl::StrCat("lock ", Raw(ino));
  scheduler_->Trace("client ", client->number, " does ", client->does);
  const auto opened = Ask<OpenResult>([&](Done<OpenResult> done) {
    fs->Open(ino, O_RDWR, /*kill_privileges=*/false, std::move(done));
  });
  scheduler_->Trace("client ", client->number, " opens: ", opened.status().ToString());
  if (!opened.ok()) {
    ++counts_.unknown;
    if (!NobodyKnows(opened.status())) {
      scheduler_->Fail(absl::StrCat("an open: ", opened.status().ToString()));
    }
    return;
  }
  const auto set = [&](int type) {
    const FileLock lock{0, kWholeFile, type, static_cast<int32_t>(client->number)};
    return AskStatus([&](DoneStatus done) {
      fs->SetLock(opened->handle, client->number, lock, /*flock=*/true, /*wait=*/false,
                  LockRequestId{++next_name_}, std::move(done));
    });
  };
  const absl::Status locked = set(F_WRLCK);
  scheduler_->Trace("client ", client->number, " locks: ", locked.ToString());
  if (locked.ok()) {
    ++counts_.locks;
    ProcessId& holder = lock_holders_[ino];
    if (holder != kWorld && runs && runs(holder)) {
      scheduler_->Fail(absl::StrCat("process ", holder, " has the lock of ", Raw(ino),
                                    ", and so has ", client->process));
    }
    holder = client->process;
    scheduler_->SleepFor(milliseconds(random.Below(random.PerMille(700) ? 5 : 600)));
    lock_holders_[ino] = kWorld;
    set(F_UNLCK).IgnoreError();  // It goes with the handle.
  } else if (!NobodyKnows(locked) && ErrnoOf(locked) != EAGAIN && ErrnoOf(locked) != EINTR) {
    scheduler_->Fail(absl::StrCat("a lock: ", locked.ToString()));
  }
  client->does = "a release";
  fs->Release(opened->handle);
}

std::string Clients::Check(const Names& names) const {
  for (const auto& name : names_) {
    const auto at = names.find({name->dir, name->name});
    const InodeId ino = at == names.end() ? kNoInode : at->second;
    const auto fits = [ino](InodeId may) {
      return may == ino || (may == InodeId(UINT64_MAX) && ino != kNoInode);
    };
    const bool right = name->lost_sight ? std::ranges::any_of(name->may_be, fits)
                                        : fits(name->may_be.back());
    if (right) continue;
    return absl::StrCat(Raw(name->dir), "/", name->name, " of a client is ", Raw(ino),
                        ", expected ", Raw(name->now()), name->lost_sight ? " or before" : "");
  }
  return "";
}

}  // namespace cfs
