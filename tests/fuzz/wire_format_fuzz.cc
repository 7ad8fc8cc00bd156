// Headers of messages, after four bytes that say how long the payload is. What
// is taken is what would be sent, and within bounds.
#include "cfs/base/check.h"
#include "cfs/net/wire_format.h"
#include "tests/fuzz/fuzz.h"

namespace cfs {

bool FuzzOne(absl::string_view input) {
  uint32_t payload_bytes;
  if (!ConsumeLittle(&input, &payload_bytes)) return false;
  absl::string_view in = input;
  WireHeader header;
  if (!ConsumeWireHeader(&in, payload_bytes, &header)) return false;
  CFS_CHECK(in.size() == header.header_bytes);
  CFS_CHECK(in.size() <= kCallHeaderBytesMax);
  CFS_CHECK(header.payload_bytes == payload_bytes);
  CFS_CHECK(payload_bytes <= kCallPayloadBytesMax);
  std::string again;
  AppendWireHeader(&again, header);
  again.append(in.data(), in.size());
  CFS_CHECK(again == input);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (const uint32_t payload_bytes : {0u, 100u, 70'000u}) {
    std::string bytes;
    AppendLittle(&bytes, payload_bytes);
    AppendWireHeader(&bytes, {.session = 1,
                              .request = 2,
                              .payload_bytes = payload_bytes,
                              .header_bytes = 3,
                              .method = 4,
                              .type = MessageType::kRequest,
                              .payload_checksum = payload_bytes > 4096 ? 5u : 0u});
    seeds.push_back(bytes + "abc");
  }
  return seeds;
}

}  // namespace cfs
