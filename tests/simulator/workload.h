// Clients that change a small tree at random, and what they were answered.
#ifndef CFS_TESTS_SIMULATOR_WORKLOAD_H_
#define CFS_TESTS_SIMULATOR_WORKLOAD_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "tests/simulator/cluster.h"

namespace cfs {

// The operations go through the node that owns the directory, which does them by
// itself or, where others have records of them, as a transaction.
class Workload {
 public:
  struct Counts {
    uint64_t alone = 0, transactions = 0, refused = 0, unknown = 0, unknown_happened = 0;
  };

  // Makes the root directory, durably.
  explicit Workload(Cluster* cluster);

  void Start(size_t clients, size_t operations_each);
  bool done() const { return clients_ == 0; }
  const Counts& counts() const { return counts_; }

  // The first thing that is wrong, empty if nothing is: each operation has happened
  // wholly and once, or not at all, as it was answered. What a node did by itself
  // may be lost with its power.
  std::string CheckAnswers();

 private:
  enum class Kind { kMakeDirectory, kCreate, kLink, kUnlink, kRemoveDirectory, kRename };
  enum class Answer { kNone, kOk, kRefused, kUnknown };
  struct Operation {
    size_t number;
    size_t client;
    Kind kind;
    NodeId node;
    InodeId dir, to_dir, ino;
    std::string name, to_name;
    uint32_t flags = 0;
    bool transaction = false;
    int tries = 0;
    Answer answer = Answer::kNone;
    std::vector<Stamp> stamps;  // Of its runs.
  };

  void Next(size_t client);
  void Try(Operation* op);
  absl::Status Do(Operation* op, Namespace* names);
  void Finish(Operation* op, const absl::Status& status);
  void OnCrash(NodeId node);
  std::string Check(const Operation& op, const std::map<Stamp, std::multiset<NodeId>>& happened);
  InodeId RandomDirectory();
  // Of a directory's entries, mostly one that is there.
  std::string RandomName(InodeId dir, bool existing);

  Cluster* const cluster_;
  size_t clients_ = 0;
  std::vector<size_t> left_;  // Operations of each client.
  std::deque<Operation> operations_;
  Operation* running_ = nullptr;  // Just now, and so what is stamped.
  std::vector<InodeId> directories_, files_;
  uint64_t next_inode_ = 2;
  Counts counts_;
};

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_WORKLOAD_H_
