#include "cfs/server/cluster_start.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/log.h"
#include "cfs/base/status_macros.h"
#include "cfs/net/token.h"
#include "cfs/server/cluster_store.h"

namespace cfs {
namespace {

// That a random number is taken happens once in millions of joins.
constexpr int kNumbersMax = 5;

absl::Status Refuse(const StoreDir& store, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("store ", store.path(), " ", why, "; choose another --store"));
}

// `memory`, of a store that is in a cluster, with what the user says anew.
absl::Status CheckRejoin(const StoreDir& store, const std::optional<Token>& token,
                         ClusterMemory* memory) {
  if (HexOf(memory->token.cluster) != store.identity().cluster_id) {
    return absl::DataLossError(absl::StrCat("store ", store.path(),
                                            " is damaged: node.json and cluster.json are of "
                                            "different clusters"));
  }
  if (!token) return absl::OkStatus();
  if (token->cluster != memory->token.cluster) {
    return Refuse(store, "belongs to another cluster than the token");
  }
  if (!(token->secret == memory->token.secret)) {
    return absl::PermissionDeniedError(
        absl::StrCat("the token has another secret than the cluster of store ", store.path()));
  }
  if (!memory->founder) memory->token.seeds = token->seeds;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Membership>> Join(
    MembershipOptions options, StoreDir* store,
    const absl::flat_hash_map<uint16_t, Method>& methods) {
  if (!store->empty()) {
    return Refuse(*store, "has data of its own, as a cluster of one");
  }
  const std::string cluster = HexOf(options.memory.token.cluster);
  if (store->identity().cluster_id != cluster) CFS_RETURN_IF_ERROR(store->Renew(cluster));
  for (int attempt = 1;; ++attempt) {
    options.identity = store->identity();
    auto membership = Membership::Start(options, methods);
    if (membership.ok()) return membership;
    if (membership.status().code() == absl::StatusCode::kAlreadyExists && attempt < kNumbersMax) {
      LogInfo("the cluster has another node of this number, choosing one anew node=",
              Raw(options.identity.node_id));
      CFS_RETURN_IF_ERROR(store->Renew(cluster));
      continue;
    }
    const auto memory = ReadClusterMemory(store->path());
    if (memory.ok() && !*memory) CFS_RETURN_IF_ERROR(store->Renew());
    return membership.status();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Membership>> StartMembership(
    const ClusterConfig& config, StoreDir* store, absl::flat_hash_map<uint16_t, Method> methods,
    std::function<bool()> cancelled) {
  std::optional<Token> token;
  if (!config.join.empty()) {
    CFS_ASSIGN_OR_RETURN(token, ParseToken(config.join));
  }
  CFS_ASSIGN_OR_RETURN(std::optional<ClusterMemory> memory, ReadClusterMemory(store->path()));
  // A join that was never answered.
  const bool unfinished = memory && !memory->member && !memory->founder;
  const bool joins = unfinished || (!memory && token);
  if (memory && !unfinished) {
    CFS_RETURN_IF_ERROR(CheckRejoin(*store, token, &*memory));
  } else if (token) {
    if (!memory || memory->token.cluster != token->cluster) memory = ClusterMemory();
    memory->token = *token;
  } else if (!memory && !config.listen.empty()) {
    // What it holds becomes the cluster's.
    memory = ClusterMemory();
    CFS_ASSIGN_OR_RETURN(memory->token, MakeToken({config.listen}));
    memory->token.cluster = ClusterIdOf(store->identity().cluster_id);
    memory->founder = true;
  }
  if (!memory) {
    if (config.weight || config.expect > 0) {
      return absl::InvalidArgumentError(
          "--weight and --expect are for a node of a cluster; give --listen or --join");
    }
    return nullptr;
  }
  if (!config.listen.empty() && config.listen != memory->listen) {
    memory->listen = config.listen;
    memory->address.clear();
  }
  if (config.weight) memory->weight = *config.weight;
  MembershipOptions options;
  options.identity = store->identity();
  options.store_path = store->path();
  options.memory = *std::move(memory);
  options.cancelled = std::move(cancelled);
  if (!config.transports.empty()) options.transports = config.transports;
  if (joins) return Join(std::move(options), store, methods);
  return Membership::Start(std::move(options), std::move(methods));
}

}  // namespace cfs
