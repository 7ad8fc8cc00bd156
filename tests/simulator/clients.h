// Clients of nodes, which call what a mount calls, and know what they must find.
//
// Each client has names of its own, which nobody else touches, in directories that
// all share: an answer that does not fit them is wrong, be it that something happened
// twice or not at all. What nobody can know (no answer came, or the power was lost of
// a node that may not have synced it) is left alone from then on. Other names all
// clients fight for: any answer of POSIX's is right there. A lock only one may have.
#ifndef CFS_TESTS_SIMULATOR_CLIENTS_H_
#define CFS_TESTS_SIMULATOR_CLIENTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulator/nodes.h"
#include "tests/simulator/scheduler.h"

namespace cfs {

class Clients {
 public:
  struct Counts {
    uint64_t done = 0, unknown = 0, refused = 0, locks = 0;
  };

  // `final_owners`: who has each slot in the end; names are chosen so that all get
  // some directories.
  Clients(Scheduler* scheduler, SlotOwners final_owners, std::vector<NodeId> nodes);

  // Makes what is shared, through a node that is alone.
  void MakeShared(Nodes::Node* node);
  // Of the node's process, in one of its threads; goes on where the last one was
  // cut off.
  void StartAt(Nodes::Node* node, size_t clients, size_t operations);
  void OnPowerLoss();
  // Whether a process runs still; nothing, where who runs may be taken for dead, and
  // lose its locks.
  std::function<bool(ProcessId)> runs;
  // Who is at it still, and what; empty: nobody, but in processes that are gone.
  std::string Unrest() const;
  const Counts& counts() const { return counts_; }

  // What is wrong in the names that all nodes have now; empty if nothing is.
  using Names = std::map<std::pair<InodeId, std::string>, InodeId>;
  std::string Check(const Names& names) const;

 private:
  // What a name may lead to, by what its client knows: kNoInode is nothing.
  struct Name {
    InodeId dir;
    std::string name;
    bool directory = false;
    std::vector<InodeId> may_be{kNoInode};  // The last one is the newest.
    bool lost_sight = false;                // Any of them; nobody touches it any more.
    bool synced = true;
    InodeId now() const { return may_be.back(); }
  };
  struct Client {
    size_t number = 0, left = 0;
    ProcessId process = kWorld;  // That it runs in.
    std::string does;
    std::vector<Name*> names;
    std::vector<Name*> at;  // What the operation under way is about.
  };

  void Run(Client* client, Nodes::Process* process);
  void DoOwn(Client* client, FileSystem* fs);
  void DoShared(Client* client, FileSystem* fs);
  void DoLocked(Client* client, FileSystem* fs);
  void Create(Client* client, FileSystem* fs);
  // What the client has done to `name` has happened, or not, or nobody knows.
  void Settle(Name* name, InodeId value, const absl::Status& status, uint64_t power_losses);
  // Says what the client is going to do.
  void Says(Client* client, const char* what, const Name& name);
  void Expect(const Client& client, const Name& name, const absl::Status& status);
  Name* Pick(Client* client, bool there, bool directories);
  InodeId RandomDirectory() { return shared_[scheduler_->random().Below(shared_.size())]; }
  std::string NameIn(InodeId dir, const std::string& prefix);

  Scheduler* const scheduler_;
  const SlotOwners final_owners_;
  const std::vector<NodeId> nodes_;
  std::vector<InodeId> shared_, lock_files_;
  std::map<InodeId, ProcessId> lock_holders_;
  std::vector<std::unique_ptr<Name>> names_;
  std::map<NodeId, std::vector<std::unique_ptr<Client>>> clients_;
  uint64_t next_client_ = 1, next_name_ = 0, power_losses_ = 0;
  Counts counts_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_CLIENTS_H_
