// The control socket STORE/cfs.sock: one JSON object a line each way.
//
//   {"verb":"status"}  ->  {"ok":true,...} or {"ok":false,"error":"...","errno":N}
#ifndef CFS_SERVER_CONTROL_H_
#define CFS_SERVER_CONTROL_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/base/unique_fd.h"

namespace cfs {

inline constexpr size_t kControlLineBytesMax = 64 << 10;  // Of a request.
inline constexpr size_t kControlReplyBytesMax = 16 << 20;
inline constexpr int kControlConnectionsMax = 32;
inline constexpr absl::Duration kControlIdleMax = absl::Seconds(10);

// Answers requests from one thread of its own. Only the owner of the process
// (and root) may connect.
//
// Guarantees: a slow, silent or malicious client costs a bounded amount of
//   memory, never blocks another, and is cut off after `idle_max`; over
//   kControlConnectionsMax the next ones wait.
class ControlServer {
 public:
  // Runs on the server's thread for each request, which is always an object:
  // should not block. Its result is the reply, also an object.
  using Handler = std::function<nlohmann::json(const nlohmann::json& request)>;

  // REQUIRES: the caller holds the store's lock; a socket left by a dead process
  // is replaced.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Start(
      const std::string& store_dir, Handler handler, absl::Duration idle_max = kControlIdleMax);
  // Waits for a running handler, drops connections, removes the socket.
  ~ControlServer();

 private:
  struct Connection;

  ControlServer(std::string store_dir, Handler handler, absl::Duration idle_max, UniqueFd listener,
                UniqueFd stop);
  void Run();
  void Accept();
  // False when the connection is over.
  bool Serve(Connection* connection);

  const std::string store_dir_;
  const Handler handler_;
  const absl::Duration idle_max_;
  const UniqueFd listener_;
  const UniqueFd stop_;
  std::list<Connection> connections_;  // Of thread_ only.
  std::thread thread_;
};

// Sends one request and waits for the reply. UNAVAILABLE when no process serves
// the store, DEADLINE_EXCEEDED when it is too slow; an {"ok":false} reply becomes
// a Status with its errno.
absl::StatusOr<nlohmann::json> ControlCall(const std::string& store_dir,
                                           const nlohmann::json& request, absl::Duration timeout);

// {"ok":false,...} for a failed request.
nlohmann::json ControlError(const absl::Status& status);

// A member of the wanted type; "", 0 or false when it is missing or of another:
// nlohmann::json's own accessors abort then in a build without exceptions.
std::string StringMember(const nlohmann::json& object, absl::string_view name);
uint64_t UintMember(const nlohmann::json& object, absl::string_view name);
bool BoolMember(const nlohmann::json& object, absl::string_view name);

// Text of a JSON value; bytes that are not UTF-8 (paths may have them) are
// replaced.
std::string ToText(const nlohmann::json& value, int indent = -1);

}  // namespace cfs

#endif  // CFS_SERVER_CONTROL_H_
