// The network between simulated nodes: the Transport that they get here.
//
// What may go wrong. Each message takes its own time, now and then seconds, so that
// they overtake each other. A request or an answer is lost: the call fails some time
// later as that of a lost connection does, and nobody knows whether it was executed;
// a request may still arrive after that, when its sender has long sent it again. Two
// nodes cannot hear each other, or one of them the other. With a process, all that is
// on its way to it is gone. Not simulated: damaged messages, large payloads that are
// cut off, strangers.
#ifndef CFS_TESTS_SIMULATOR_NETWORK_H_
#define CFS_TESTS_SIMULATOR_NETWORK_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "cfs/net/transport.h"
#include "tests/simulator/scheduler.h"

namespace cfs {

class Network {
 public:
  // What goes wrong, per mille.
  struct Weather {
    uint64_t lost = 0, late = 0;
  };
  struct Counts {
    uint64_t calls = 0, lost = 0, late = 0, cut = 0;
  };

  explicit Network(Scheduler* scheduler) : scheduler_(scheduler) {}

  void SetWeather(const Weather& weather) { weather_ = weather; }
  const Counts& counts() const { return counts_; }
  // Nothing that `from` sends arrives at `to`.
  void Cut(const std::string& from, const std::string& to);
  void HealCuts() { cuts_.clear(); }
  // The process is gone. `silently`: others find out by its silence.
  void Kill(ProcessId process, bool silently);

  // What Transport does.
  class Endpoint;
  std::shared_ptr<Endpoint> Add(TransportOptions options);
  void Remove(const std::shared_ptr<Endpoint>& endpoint);
  void Start(const std::shared_ptr<Endpoint>& from, Call call);

 private:
  using Nanoseconds = std::chrono::nanoseconds;
  struct Message;

  Nanoseconds Delay();
  // Until a lost connection is known to be lost.
  Nanoseconds Detection();
  bool IsCut(const Endpoint& from, const Endpoint& to) const;
  std::shared_ptr<Endpoint> Find(const std::string& address) const;
  void FailLater(const std::shared_ptr<Endpoint>& from, uint64_t number, Nanoseconds after,
                 bool maybe_executed);
  void Deliver(const std::shared_ptr<Endpoint>& from, const std::shared_ptr<Endpoint>& to,
               uint64_t number, Message message);
  void Answer(const std::shared_ptr<Endpoint>& from, const std::shared_ptr<Endpoint>& to,
              uint64_t number, std::string header, Payload payload);

  Scheduler* const scheduler_;
  Weather weather_;
  Counts counts_;
  uint64_t next_call_ = 1;
  std::map<std::string, std::shared_ptr<Endpoint>> endpoints_;  // By address.
  std::set<std::pair<std::string, std::string>> cuts_;
};

// That of the simulation.
inline Network* network = nullptr;

}  // namespace cfs

#endif  // CFS_TESTS_SIMULATOR_NETWORK_H_
