// A Transport is its threads.
#include <sodium.h>

#include <utility>

#include "absl/hash/hash.h"
#include "cfs/base/check.h"
#include "cfs/base/limits.h"
#include "cfs/base/status_macros.h"
#include "cfs/net/acceptor.h"
#include "cfs/net/address.h"
#include "cfs/net/transport.h"
#include "cfs/net/transport_ucx_context.h"
#include "cfs/net/transport_ucx_thread.h"

namespace cfs {

absl::StatusOr<std::unique_ptr<Transport>> Transport::Start(TransportOptions options) {
  CFS_CHECK(options.threads >= 1);
  CFS_CHECK(sodium_init() >= 0);
  TakeUcxLog();
  CFS_ASSIGN_OR_RETURN(SocketAddress address, ResolveAddress(options.listen));
  CFS_ASSIGN_OR_RETURN(UniqueFd listener, ListenOn(&address));

  auto transport = std::unique_ptr<Transport>(new Transport(address.ToString()));
  transport->shared_ = std::make_shared<Shared>(std::move(options));
  Shared* const shared = transport->shared_.get();
  CFS_ASSIGN_OR_RETURN(shared->context, MakeUcxContext(shared->options.transports, address));
  for (int i = 0; i < shared->options.threads; ++i) {
    transport->threads_.push_back(std::make_shared<Thread>(transport->shared_));
    CFS_RETURN_IF_ERROR(transport->threads_.back()->Prepare(address));
  }
  for (const auto& thread : transport->threads_) {
    thread->Run(std::exchange(listener, UniqueFd()), transport->threads_);
  }
  return transport;
}

Transport::~Transport() {
  for (const auto& thread : threads_) thread->Stop();
}

void Transport::SetNode(NodeId node) {
  shared_->node.store(node, std::memory_order_relaxed);
  for (const auto& thread : threads_) {
    thread->Submit([thread = thread.get()] { thread->CloseDialed("the node has a new number"); });
  }
}

void Transport::Start(Call call) {
  CFS_CHECK(call.header.size() <= kCallHeaderBytesMax);
  CFS_CHECK(call.payload_bytes <= kCallPayloadBytesMax);
  Thread* const thread = threads_[absl::HashOf(call.address) % threads_.size()].get();
  const Instant started = SteadyClock::now();
  const uint32_t checksum = PayloadChecksum(absl::string_view(call.payload, call.payload_bytes));
  auto owned = std::make_unique<Call>(std::move(call));
  const bool taken = thread->Submit([thread, started, checksum, given = owned.get()] {
    thread->StartCall(std::move(*std::unique_ptr<Call>(given)), started, checksum);
  });
  if (taken) {
    owned.release();
  } else {
    owned->done({.status = absl::UnavailableError("shutting down")});
  }
}

std::vector<PeerStats> Transport::Stats() const {
  std::vector<PeerStats> stats;
  for (const auto& thread : threads_) thread->AddStats(&stats);
  return stats;
}

}  // namespace cfs
