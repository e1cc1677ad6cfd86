#include "frame.hpp"

#include "little_endian.hpp"

namespace dllama::net {

namespace {

constexpr uint32_t kPlainMagic = 0x31504c44;          // "DLP1"
constexpr uint32_t kAuthenticatedMagic = 0x31414c44;  // "DLA1"

const char* name_of(FrameKind kind) {
  switch (kind) {
    case FrameKind::Partial: return "partial sums";
    case FrameKind::PartialSpan: return "partial sums of a span";
    case FrameKind::SumSpan: return "sums of a span";
    case FrameKind::Broadcast: return "broadcast";
    case FrameKind::Gather: return "gather";
  }
  return "unknown kind";
}

const char* name_of(Wire wire) {
  switch (wire) {
    case Wire::F32: return "f32";
    case Wire::F16: return "f16";
    case Wire::Q80: return "q80";
  }
  return "unknown format";
}

}  // namespace

HeaderBytes write_header(const FrameHeader& header) {
  HeaderBytes bytes;
  store_little<uint32_t>(&bytes[0], header.authenticated ? kAuthenticatedMagic : kPlainMagic);
  bytes[4] = static_cast<uint8_t>(header.kind);
  bytes[5] = static_cast<uint8_t>(header.wire);
  store_little<uint16_t>(&bytes[6], header.sender);
  store_little<uint64_t>(&bytes[8], header.sequence);
  store_little<uint32_t>(&bytes[16], header.n_rows);
  store_little<uint32_t>(&bytes[20], header.width);
  store_little<uint32_t>(&bytes[24], header.payload_bytes);
  return bytes;
}

bool read_header(const uint8_t* bytes, FrameHeader& header) {
  const uint32_t magic = load_little<uint32_t>(&bytes[0]);
  header.authenticated = magic == kAuthenticatedMagic;
  header.kind = static_cast<FrameKind>(bytes[4]);
  header.wire = static_cast<Wire>(bytes[5]);
  header.sender = load_little<uint16_t>(&bytes[6]);
  header.sequence = load_little<uint64_t>(&bytes[8]);
  header.n_rows = load_little<uint32_t>(&bytes[16]);
  header.width = load_little<uint32_t>(&bytes[20]);
  header.payload_bytes = load_little<uint32_t>(&bytes[24]);
  return magic == kPlainMagic || magic == kAuthenticatedMagic;
}

bool in_step(const FrameHeader& found, const FrameHeader& due) {
  return found.kind == due.kind && found.wire == due.wire && found.sender == due.sender &&
         found.sequence == due.sequence && found.n_rows == due.n_rows && found.width == due.width;
}

std::string describe(const FrameHeader& header) {
  return "frame " + std::to_string(header.sequence) + " (" + name_of(header.kind) + ", " +
         std::to_string(header.n_rows) + " x " + std::to_string(header.width) + ", " + name_of(header.wire) +
         ", from node " + std::to_string(header.sender) + ")";
}

}  // namespace dllama::net
