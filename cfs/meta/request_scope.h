// The request of another node that a thread is executing, so that the change it
// makes and the record that it was made are one batch.
#ifndef CFS_META_REQUEST_SCOPE_H_
#define CFS_META_REQUEST_SCOPE_H_

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "cfs/base/check.h"
#include "cfs/base/types.h"
#include "cfs/meta/record_format.h"
#include "cfs/meta/records.h"

namespace cfs {

// Guarantees: the first requested Update that this thread commits while the scope
// lives also writes the request's reply record, and removes those of requests
// whose answers their client has. An Update that fails writes neither.
// Of one thread; scopes do not nest.
class RequestScope {
 public:
  struct Answered {
    Slot slot;
    RequestId request;
  };
  struct Request {
    Slot slot;  // Of the inode which it is about: where the record is kept.
    RequestId id;
    // Runs after the record was written; any number of times before the request
    // is answered.
    std::function<void()> recorded;
  };

  RequestScope(Request request, std::vector<Answered> answered)
      : request_(std::move(request)), answered_(std::move(answered)) {
    CFS_CHECK(current_ == nullptr);
    current_ = this;
  }
  RequestScope(const RequestScope&) = delete;
  RequestScope& operator=(const RequestScope&) = delete;
  ~RequestScope() { current_ = nullptr; }

  // Null outside of a scope, and after the record was written.
  static RequestScope* Current() {
    return current_ == nullptr || current_->recorded_ ? nullptr : current_;
  }
  // For what goes on in another thread, where a scope is to be made of it.
  static std::optional<Request> CurrentRequest() {
    if (Current() == nullptr) return std::nullopt;
    return current_->request_;
  }

  // The inode that the reply names; before the change is committed.
  void SetInode(InodeId ino) { ino_ = ino; }

  // The record that `request` has made `made`.
  static void AddReply(const Request& request, InodeId made, Records::Update* update) {
    update->PutRaw(Family::kQueue, ReplyKey(request.slot, request.id), EncodeInodeNumber(made));
  }
  void AddTo(Records::Update* update) const {
    AddReply(request_, ino_, update);
    for (const Answered& answered : answered_) {
      update->DeleteReply(answered.slot, answered.request);
    }
  }
  void SetRecorded() {
    recorded_ = true;
    request_.recorded();
  }
  bool recorded() const { return recorded_; }

 private:
  static thread_local inline RequestScope* current_ = nullptr;

  const Request request_;
  const std::vector<Answered> answered_;
  InodeId ino_ = kNoInode;
  bool recorded_ = false;
};

}  // namespace cfs

#endif  // CFS_META_REQUEST_SCOPE_H_
