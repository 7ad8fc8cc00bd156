// What the files of Membership share, and nobody else includes.
#ifndef CFS_SERVER_MEMBERSHIP_INTERNAL_H_
#define CFS_SERVER_MEMBERSHIP_INTERNAL_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cfs/net/payload.h"
#include "cfs/net/transport.h"
#include "cfs/server/membership.h"
#include "cfs/server/membership_format.h"

namespace cfs {

// Of a call that joins, says that we are there, or pushes a map.
inline constexpr absl::Duration kMemberCallPatience = absl::Seconds(3);

// As users and logs see it.
absl::string_view StateName(NodeState state);

// Somebody who waits for an answer, and gets one.
class Membership::Asker {
 public:
  explicit Asker(Responder responder) : responder_(std::move(responder)) {}
  Asker(const Asker&) = delete;
  ~Asker() {
    if (!answered_) Reply({MemberCode::kNotNow, Epoch{0}, "is busy, or about to end"});
  }
  void Reply(const MemberAnswer& answer, std::shared_ptr<const std::string> bytes = nullptr) {
    answered_ = true;
    responder_.Reply(EncodeMemberAnswer(answer), PayloadOf(std::move(bytes)));
  }

 private:
  static Payload PayloadOf(std::shared_ptr<const std::string> bytes) {
    if (bytes == nullptr) return {};
    char* const data = const_cast<char*>(bytes->data());
    const size_t size = bytes->size();
    return Payload(data, size, [bytes = std::move(bytes)] {});
  }

  Responder responder_;
  bool answered_ = false;
};

}  // namespace cfs

#endif  // CFS_SERVER_MEMBERSHIP_INTERNAL_H_
