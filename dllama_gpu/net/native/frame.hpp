// What crosses a connection: a header, a payload, and with a key an authentication code over both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "wire_format.hpp"

namespace dllama::net {

constexpr size_t kHeaderBytes = 28;
constexpr size_t kMaxPayloadBytes = size_t{1} << 30;

enum class FrameKind : uint8_t { Partial = 1, PartialSpan = 2, SumSpan = 3, Broadcast = 4, Gather = 5 };

// Both ends know every field but the payload's size before a frame arrives; a difference means they are out of step.
struct FrameHeader {
  bool authenticated = false;
  FrameKind kind{};
  Wire wire{};
  uint16_t sender = 0;    // rank
  uint64_t sequence = 0;  // never repeats on a connection
  uint32_t n_rows = 0;
  uint32_t width = 0;
  uint32_t payload_bytes = 0;
};

using HeaderBytes = std::array<uint8_t, kHeaderBytes>;

// uint32 magic (it says whether an authentication code follows), uint8 kind, uint8 wire, uint16 sender,
// uint64 sequence, uint32 n_rows, uint32 width, uint32 payload_bytes.
HeaderBytes write_header(const FrameHeader& header);

// False if these bytes begin no frame. `kind` and `wire` may be numbers that stand for nothing.
bool read_header(const uint8_t* bytes, FrameHeader& header);

// Same frame, whatever the payload's size.
bool in_step(const FrameHeader& found, const FrameHeader& due);

// For messages, e.g. `frame 12 (partial sums, 1 x 576, q80, from node 2)`.
std::string describe(const FrameHeader& header);

}  // namespace dllama::net
