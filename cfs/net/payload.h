// Bytes on their way from or to a peer, with what has to be done when nobody
// needs them any more.
#ifndef CFS_NET_PAYLOAD_H_
#define CFS_NET_PAYLOAD_H_

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"

namespace cfs {

// Move-only. `release` is called once, on whatever thread drops the payload.
class Payload {
 public:
  Payload() = default;
  // `size` bytes that the payload owns, not initialised.
  static Payload Allocate(size_t size) {
    // Not make_unique, which would clear them.
    std::unique_ptr<char[]> bytes(new char[size]);
    char* const data = bytes.get();
    return Payload(data, size, [bytes = std::move(bytes)] {});
  }
  // Bytes of the caller's, who has them back when `release` is called.
  Payload(char* data, size_t size, absl::AnyInvocable<void()> release)
      : data_(data), size_(size), release_(std::move(release)) {}
  Payload(Payload&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        release_(std::exchange(other.release_, nullptr)) {}
  Payload& operator=(Payload&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Payload() {
    if (release_) release_();
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
  absl::AnyInvocable<void()> release_;
};

}  // namespace cfs

#endif  // CFS_NET_PAYLOAD_H_
