#include "cfs/tier/io_uring.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cfs/base/check.h"
#include "cfs/base/error.h"
#include "cfs/base/limits.h"
#include "cfs/base/unique_fd.h"

namespace cfs {
namespace {

constexpr size_t kPieceBytes = kLargeCopyBytes / kLargeCopyPieces;
constexpr off_t kAligned = LargeCopier::kAligned;
// cachestat(2), Linux 6.5, has the same number everywhere.
constexpr long kCachestat = 451;

struct CachestatRange {
  uint64_t offset, length;
};
struct Cachestat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

// Whether most of it is in memory.
bool IsCached(int fd, off_t at, size_t size) {
  CachestatRange range{static_cast<uint64_t>(at), size};
  Cachestat found{};
  if (syscall(kCachestat, fd, &range, &found, 0) == 0) {
    return found.cached * static_cast<uint64_t>(kAligned) >= size / 2;
  }
  char byte;
  iovec iov{&byte, 1};
  return preadv2(fd, &iov, 1, at, RWF_NOWAIT) == 1;
}

UniqueFd OpenDirect(int fd, int flags) {
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  UniqueFd direct(open(path.c_str(), flags | O_DIRECT | O_CLOEXEC | O_NOATIME));
  if (!direct.valid() && errno == EPERM) {
    direct.reset(open(path.c_str(), flags | O_DIRECT | O_CLOEXEC));
  }
  return direct;
}

}  // namespace

// Of one copy at a time.
class LargeCopier::Ring {
 public:
  // Null: not here.
  static std::unique_ptr<Ring> Make();
  ~Ring();

  // Of aligned places.
  absl::StatusOr<bool> Copy(int from, int from_direct, int to_direct, off_t begin, off_t end,
                            const std::atomic<bool>& stop, uint64_t* copied);

 private:
  struct Piece {
    char* buffer = nullptr;
    off_t at = 0;
    size_t size = 0;
    size_t done = 0;  // Of reading, or of writing.
    bool writing = false;
  };

  Ring() = default;
  // Takes up the next piece.
  void Begin(Piece* piece);
  void Submit(Piece* piece);
  void Complete(Piece* piece, int result);

  io_uring ring_{};
  bool ready_ = false, registered_ = false;
  char* memory_ = nullptr;
  Piece pieces_[kLargeCopyPieces];
  // Of the copy.
  int from_ = -1, from_direct_ = -1, to_direct_ = -1;
  off_t next_ = 0, end_ = 0;
  int busy_ = 0;
  int error_ = 0;
};

std::unique_ptr<LargeCopier::Ring> LargeCopier::Ring::Make() {
  std::unique_ptr<Ring> made(new Ring);
  // Whoever takes it next may be another thread.
  if (io_uring_queue_init(kLargeCopyPieces, &made->ring_, IORING_SETUP_COOP_TASKRUN) != 0 &&
      io_uring_queue_init(kLargeCopyPieces, &made->ring_, 0) != 0) {
    return nullptr;
  }
  made->ready_ = true;
  void* const memory =
      mmap(nullptr, kLargeCopyBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  made->memory_ = static_cast<char*>(memory);
  iovec buffers[kLargeCopyPieces];
  for (size_t i = 0; i < kLargeCopyPieces; ++i) {
    made->pieces_[i].buffer = made->memory_ + i * kPieceBytes;
    buffers[i] = {made->pieces_[i].buffer, kPieceBytes};
  }
  // It may be more than may be locked.
  made->registered_ = io_uring_register_buffers(&made->ring_, buffers, kLargeCopyPieces) == 0;
  return made;
}

LargeCopier::Ring::~Ring() {
  if (ready_) io_uring_queue_exit(&ring_);
  if (memory_ != nullptr) munmap(memory_, kLargeCopyBytes);
}

void LargeCopier::Ring::Submit(Piece* piece) {
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
  char* const data = piece->buffer + piece->done;
  const auto left = static_cast<unsigned>(piece->size - piece->done);
  const auto at = static_cast<uint64_t>(piece->at) + piece->done;
  const int index = static_cast<int>(piece - pieces_);
  if (piece->writing && registered_) {
    io_uring_prep_write_fixed(sqe, to_direct_, data, left, at, index);
  } else if (piece->writing) {
    io_uring_prep_write(sqe, to_direct_, data, left, at);
  } else if (registered_) {
    io_uring_prep_read_fixed(sqe, from_direct_, data, left, at, index);
  } else {
    io_uring_prep_read(sqe, from_direct_, data, left, at);
  }
  io_uring_sqe_set_data(sqe, piece);
}

void LargeCopier::Ring::Begin(Piece* piece) {
  if (next_ >= end_ || error_ != 0) return;
  piece->at = next_;
  piece->size = std::min(kPieceBytes, static_cast<size_t>(end_ - next_));
  piece->done = 0;
  piece->writing = false;
  next_ += static_cast<off_t>(piece->size);
  if (from_direct_ < 0 || IsCached(from_, piece->at, piece->size)) {
    while (piece->done < piece->size) {
      const ssize_t got = pread(from_, piece->buffer + piece->done, piece->size - piece->done,
                                piece->at + static_cast<off_t>(piece->done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        error_ = got < 0 ? errno : EAGAIN;  // It has become shorter.
        return;
      }
      piece->done += static_cast<size_t>(got);
    }
    piece->done = 0;
    piece->writing = true;
  }
  ++busy_;
  Submit(piece);
}

void LargeCopier::Ring::Complete(Piece* piece, int result) {
  --busy_;
  if (error_ != 0) return;
  const bool again = result == -EINTR || result == -EAGAIN;
  if (result < 0 && !again) {
    error_ = -result;
    return;
  }
  // The file has become shorter, perhaps; the rest is not aligned.
  if (result == 0 || (result > 0 && result % kAligned != 0)) {
    error_ = EINVAL;
    return;
  }
  if (result > 0) piece->done += static_cast<size_t>(result);
  if (piece->done == piece->size) {
    if (piece->writing) return Begin(piece);
    piece->writing = true;
    piece->done = 0;
  }
  ++busy_;
  Submit(piece);
}

absl::StatusOr<bool> LargeCopier::Ring::Copy(int from, int from_direct, int to_direct, off_t begin,
                                             off_t end, const std::atomic<bool>& stop,
                                             uint64_t* copied) {
  from_ = from;
  from_direct_ = from_direct;
  to_direct_ = to_direct;
  next_ = begin;
  end_ = end;
  busy_ = error_ = 0;
  for (Piece& piece : pieces_) {
    Begin(&piece);
    io_uring_submit(&ring_);
  }
  while (busy_ > 0) {
    if (stop.load(std::memory_order_relaxed) && error_ == 0) error_ = EINTR;
    const int waited = io_uring_submit_and_wait(&ring_, 1);
    // Nobody else may have the buffers while something is on its way.
    CFS_CHECK(waited >= 0 || waited == -EINTR || waited == -EAGAIN || waited == -EBUSY);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      Piece* const piece = static_cast<Piece*>(io_uring_cqe_get_data(cqe));
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      Complete(piece, result);
    }
  }
  if (error_ == EINVAL || error_ == EOPNOTSUPP) return false;
  if (error_ != 0) return PosixError(error_);
  *copied += static_cast<uint64_t>(end - begin);
  return true;
}

LargeCopier::LargeCopier() = default;
LargeCopier::~LargeCopier() = default;

std::unique_ptr<LargeCopier::Ring> LargeCopier::TakeRing() {
  {
    MutexLock lock(&mutex_);
    while (taken_ == kLargeCopiesMax) given_back_.Wait(&mutex_);
    ++taken_;
    if (!idle_.empty()) {
      std::unique_ptr<Ring> ring = std::move(idle_.back());
      idle_.pop_back();
      return ring;
    }
  }
  return Ring::Make();
}

void LargeCopier::GiveBack(std::unique_ptr<Ring> ring) {
  MutexLock lock(&mutex_);
  --taken_;
  // One is kept for the next file.
  if (ring != nullptr && idle_.empty()) idle_.push_back(std::move(ring));
  given_back_.Signal();
}

absl::StatusOr<bool> LargeCopier::Copy(int from, int to, off_t begin, off_t end,
                                       const std::atomic<bool>& stop, uint64_t* copied) {
  if (refused_.load(std::memory_order_relaxed)) return false;
  const UniqueFd to_direct = OpenDirect(to, O_WRONLY);
  if (!to_direct.valid()) return false;
  const UniqueFd from_direct = OpenDirect(from, O_RDONLY);
  std::unique_ptr<Ring> ring = TakeRing();
  absl::StatusOr<bool> done = false;
  if (ring == nullptr) {
    refused_.store(true, std::memory_order_relaxed);
  } else {
    done = ring->Copy(from, from_direct.get(), to_direct.get(), begin, end, stop, copied);
  }
  GiveBack(std::move(ring));
  return done;
}

}  // namespace cfs
