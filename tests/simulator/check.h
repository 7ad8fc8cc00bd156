// What must hold of the records when everything has come to rest.
#ifndef CFS_TESTS_SIMULATOR_CHECK_H_
#define CFS_TESTS_SIMULATOR_CHECK_H_

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulator/cluster.h"

namespace cfs {

// Whether some transaction is unfinished at some node.
bool HasUnfinished(Cluster* cluster);

// What a node has of the slots that it owns.
struct OwnedRecords {
  NodeId node;
  SimulatedDisk* disk;
  std::function<bool(Slot)> owns;
  // What slots of others have left behind is of no interest.
  bool has_others = false;
};

// The first thing that is wrong, empty if nothing is: the names, links, counts and
// parents of all nodes' records agree, and everything is below the root or an
// orphan. `names`: what there is, by directory and name.
std::string CheckTree(const std::vector<OwnedRecords>& nodes,
                      std::map<std::pair<InodeId, std::string>, InodeId>* names = nullptr);
std::string CheckTree(Cluster* cluster);

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_CHECK_H_
