// Fixed-width integers in keys (big-endian, so that byte order is numeric
// order) and in values (little-endian).
#ifndef CFS_BASE_CODING_H_
#define CFS_BASE_CODING_H_

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <limits>
#include <string>

#include "absl/strings/string_view.h"
#include "cfs/base/check.h"

namespace cfs {

template <std::unsigned_integral T>
constexpr T ByteSwap(T value) {
  T result = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    result = static_cast<T>((uint64_t{result} << 8) | (value & 0xff));
    value = static_cast<T>(uint64_t{value} >> 8);
  }
  return result;
}

template <std::unsigned_integral T>
void AppendBig(std::string* out, T value) {
  if constexpr (std::endian::native == std::endian::little) value = ByteSwap(value);
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// REQUIRES: `data` has sizeof(T) readable bytes.
template <std::unsigned_integral T>
T ReadBig(const char* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  if constexpr (std::endian::native == std::endian::little) value = ByteSwap(value);
  return value;
}

template <std::unsigned_integral T>
void AppendLittle(std::string* out, T value) {
  if constexpr (std::endian::native == std::endian::big) value = ByteSwap(value);
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Takes a T off the front of `in`; false, with nothing changed, when it is too
// short.
template <std::unsigned_integral T>
[[nodiscard]] bool ConsumeLittle(absl::string_view* in, T* value) {
  if (in->size() < sizeof(T)) return false;
  std::memcpy(value, in->data(), sizeof(T));
  if constexpr (std::endian::native == std::endian::big) *value = ByteSwap(*value);
  in->remove_prefix(sizeof(T));
  return true;
}

// A length of type Size before the bytes. REQUIRES: they fit it.
template <std::unsigned_integral Size>
void AppendSized(std::string* out, absl::string_view bytes) {
  CFS_CHECK(bytes.size() <= std::numeric_limits<Size>::max());
  AppendLittle(out, static_cast<Size>(bytes.size()));
  out->append(bytes.data(), bytes.size());
}

// As ConsumeLittle, but the length may be gone from `in` when it returns false.
template <std::unsigned_integral Size>
[[nodiscard]] bool ConsumeSized(absl::string_view* in, std::string* bytes) {
  Size size;
  if (!ConsumeLittle(in, &size) || in->size() < size) return false;
  bytes->assign(in->data(), size);
  in->remove_prefix(size);
  return true;
}

inline void AppendTime(std::string* out, const timespec& time) {
  AppendLittle(out, static_cast<uint64_t>(time.tv_sec));
  AppendLittle(out, static_cast<uint32_t>(time.tv_nsec));
}

[[nodiscard]] inline bool ConsumeTime(absl::string_view* in, timespec* time) {
  uint64_t seconds;
  uint32_t nanoseconds;
  if (!ConsumeLittle(in, &seconds) || !ConsumeLittle(in, &nanoseconds)) return false;
  if (nanoseconds >= 1'000'000'000) return false;
  *time = {static_cast<time_t>(seconds), static_cast<long>(nanoseconds)};
  return true;
}

}  // namespace cfs

#endif  // CFS_BASE_CODING_H_
