// Every bound in one place. Relations between them are asserted at the end.
#ifndef CFS_BASE_LIMITS_H_
#define CFS_BASE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace cfs {

// Names and values.
inline constexpr size_t kNameBytesMax = 255;
inline constexpr size_t kSymlinkBytesMax = 4095;
inline constexpr size_t kXattrNameBytesMax = 255;
inline constexpr size_t kXattrValueBytesMax = 64 << 10;
inline constexpr size_t kXattrListBytesMax = 64 << 10;
inline constexpr uint32_t kLinksMax = 1u << 31;

// Metadata. The counter of inode numbers is reserved ahead in synced blocks.
inline constexpr uint64_t kCounterBlock = 16384;
inline constexpr size_t kRecordCacheEntries = 64 << 10;
inline constexpr size_t kLockStripes = 1024;
inline constexpr size_t kMemtableBytes = 16 << 20;
inline constexpr size_t kBlockCacheBytes = 64 << 20;
inline constexpr int kRocksOpenFiles = 512;
// Space set aside for metadata: this much, or this share of a small device.
inline constexpr uint64_t kReserveBytesMax = 128 << 20;
inline constexpr uint64_t kReserveShare = 32;

// Chunk store. A pool of fresh backing files, and of kernel backing ids that
// stay registered after the last close.
inline constexpr size_t kPoolFiles = 1024;
// Inodes of the store's file system that are left to RocksDB's files.
inline constexpr uint64_t kSpareInodes = 256;
inline constexpr size_t kIdleBackingsMax = 32 << 10;
inline constexpr size_t kDescriptorCacheMax = 1024;
// Freeing more 512-byte blocks than this may take long: not in a FUSE thread.
inline constexpr int64_t kSlowTruncateBlocks = (64 << 20) / 512;
// What adds metadata gets ENOSPC when less than this share of the device is
// free, so that there is always room for what frees space.
inline constexpr uint64_t kGrowthShare = 64;
inline constexpr uint64_t kGrowthBytesMax = 256 << 20;
// Below this share of free space, an unlink frees before it replies.
inline constexpr uint64_t kShortSpaceShare = 8;
// New files go to other nodes of a cluster when less than this share of the store's
// device is free, or this much.
inline constexpr uint64_t kSpillShare = 8;
inline constexpr uint64_t kSpillBytesMax = uint64_t{16} << 30;
inline constexpr size_t kDoomedFilesMax = 64 << 10;

// A store in front of a backend. When less than the first of these shares of it is free,
// copies of what is on the backend go, until the second one is. Below the third, or the
// fourth of a small one, who opens a file for writing writes through the daemon.
inline constexpr uint64_t kEvictShare = 10;
inline constexpr uint64_t kEvictedShare = 5;
inline constexpr uint64_t kDaemonShare = 20;
inline constexpr uint64_t kDaemonShareOfSmall = 6;
inline constexpr uint64_t kDaemonBytesOfSmall = 64 << 20;
// Files of which it is known when they were opened.
inline constexpr size_t kUsedFilesMax = 256 << 10;

// fsck: findings of a kind that are shown, and names of a path.
inline constexpr uint64_t kFsckFindingsMax = 100;
inline constexpr size_t kFsckPathNamesMax = 4096;

// Threads.
inline constexpr int kIoThreads = 16;
// Those that copy files from the backend, and those that list directories there.
inline constexpr int kBackendThreads = 16;
inline constexpr int kBackendNameThreads = 4;
// Those that copy files to it.
inline constexpr int kFlushThreads = 8;
// Large copies at once, of files from and to it; the buffers of each; and how many there are.
inline constexpr int kLargeCopiesMax = 2;
inline constexpr size_t kLargeCopyBytes = 32 << 20;
inline constexpr size_t kLargeCopyPieces = 8;
// Those that look at what others have changed there.
inline constexpr int kRefreshThreads = 8;
inline constexpr int kFuseThreadsMin = 3;
inline constexpr int kFuseThreadsMax = 16;

// Locks: waiters over the bound get ENOLCK, which POSIX names for it.
inline constexpr size_t kLockWaitersMax = 16 << 10;
inline constexpr size_t kLocksPerInodeMax = 64 << 10;
// FUSE-over-io_uring holds one ring entry for each request that waits.
inline constexpr unsigned kRingEntriesMax = 2048;
inline constexpr size_t kRingLockWaitersMax = kRingEntriesMax - 512;

// Cluster: members of a map, also clients and lost nodes; bytes of their texts.
inline constexpr size_t kClusterNodesMax = 4096;
inline constexpr size_t kNodeAddressesMax = 16;
inline constexpr size_t kNodeTextBytesMax = 255;
inline constexpr size_t kKeepersMax = 7;
inline constexpr uint32_t kNodeWeightMax = 10'000;
inline constexpr uint32_t kNodeWeightDefault = 100;
// Of an encoded map; one of 4,096 nodes with an address each has under 600 KiB.
inline constexpr size_t kMapBytesMax = 4 << 20;
// Nodes of a cluster that are lost, ever: each takes a part of the inode numbers.
inline constexpr size_t kLossesMax = 255;
// What waits for the thread of the membership.
inline constexpr size_t kMemberEventsMax = 16 << 10;
// Changes of the map that watchers have not been told yet.
inline constexpr size_t kMapChangesMax = 64;
// Old maps that a keeper makes deltas from; 0.3 MiB each.
inline constexpr size_t kOldMapsMax = 8;

// Durability: the WAL is synced at least this often.
inline constexpr int kWalSyncMilliseconds = 1000;

// Network. A token's seeds, an address's host.
inline constexpr size_t kSeedsMax = 16;
inline constexpr size_t kHostBytesMax = 255;
inline constexpr size_t kTokenBytesMax = 16 << 10;
// A call's header; what is longer goes as payload.
inline constexpr size_t kCallHeaderBytesMax = 1024;
inline constexpr size_t kCallPayloadBytesMax = 16 << 20;
// Of one network thread. A connection takes up to 3 descriptors.
inline constexpr size_t kConnectionsMax = 2048;
inline constexpr size_t kHandshakesMax = 256;
inline constexpr size_t kCallsMax = 64 << 10;
// Requests of one peer that are not answered yet.
inline constexpr size_t kPeerRequestsMax = 16 << 10;
// Transactions of which a node still knows that they are over for it.
inline constexpr size_t kTransactionsOverMax = 64 << 10;

// The log of a daemon; as much again is kept of what was before.
inline constexpr int64_t kLogBytesMax = 16 << 20;

// Largest FUSE request.
inline constexpr size_t kRequestBytesMax = 1 << 20;

static_assert(kCounterBlock >= 4 * kPoolFiles);
static_assert(kSpillShare >= kShortSpaceShare && kSpillShare < kGrowthShare);
static_assert(kSpillBytesMax > kGrowthBytesMax);
static_assert(kEvictedShare < kEvictShare && kEvictShare < kDaemonShare);
static_assert(kDaemonShare < kGrowthShare);
static_assert(kRingLockWaitersMax > 1000);
static_assert(kCallPayloadBytesMax >= kRequestBytesMax);
static_assert(kCallPayloadBytesMax >= kMapBytesMax);
static_assert(kTokenBytesMax > 2 * kSeedsMax * (kHostBytesMax + 8));

}  // namespace cfs

#endif  // CFS_BASE_LIMITS_H_
