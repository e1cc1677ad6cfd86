#include "wire_format.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "half.hpp"
#include "little_endian.hpp"

#if FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "float arithmetic here is wider than float; on 32-bit x86, compile with -msse2 -mfpmath=sse"
#endif

namespace dllama::net {

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void encode_q80_block(const float* x, uint8_t* to) {
  // As integers, the bits of magnitudes are ordered like the magnitudes, with infinity and NaN above all.
  uint32_t largest_bits = 0;
  for (size_t i = 0; i < kBlock; i++) largest_bits = std::max(largest_bits, bits_of(x[i]) & 0x7FFFFFFF);
  if (largest_bits >= 0x7F800000) {
    store_little<uint16_t>(to, 0x7E00);
    std::memset(to + 2, 0, kBlock);
    return;
  }
  const float scale = float_of(largest_bits) / 127.0f;
  float inverse = 1.0f / scale;
  if (!std::isfinite(inverse)) inverse = 0.0f;  // such a scale is 0 in f16 anyway
  store_little<uint16_t>(to, f32_to_f16(scale));
  // Adding 1.5 * 2^23 leaves the integer nearest to a small number, ties to even, in the low bits.
  constexpr float kRounder = 12582912.0f;
  for (size_t i = 0; i < kBlock; i++) {
    const float shifted = x[i] * inverse + kRounder;
    to[2 + i] = static_cast<uint8_t>(bits_of(shifted) - bits_of(kRounder));
  }
}

void add_q80_block(const uint8_t* from, float* x) {
  const float scale = f16_to_f32(load_little<uint16_t>(from));
  for (size_t i = 0; i < kBlock; i++) x[i] += static_cast<float>(static_cast<int8_t>(from[2 + i])) * scale;
}

// Without branches, so that compilers do several at a time; same bits as f32_to_f16.
void encode_f16(const float* x, size_t n, uint8_t* to) {
  for (size_t i = 0; i < n; i++) {
    const uint32_t bits = bits_of(x[i]), magnitude = bits & 0x7FFFFFFF;
    const uint32_t normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    // Below the normal numbers, adding 0.5 leaves multiples of 2^-24, rounded to even, in the low bits.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477FF000 ? 0x7C00 : half;
    half = magnitude > 0x7F800000 ? 0x7E00 : half;
    store_little<uint16_t>(to + 2 * i, static_cast<uint16_t>(half | (bits >> 16 & 0x8000)));
  }
}

void add_f16(const uint8_t* from, size_t n, float* x) {
  for (size_t i = 0; i < n; i++) {
    const uint32_t half = load_little<uint16_t>(from + 2 * i), magnitude = half & 0x7FFF;
    // As a float of the same bits it is too small by 2^112, subnormal numbers too.
    const uint32_t bits = bits_of(float_of(magnitude << 13) * 0x1p112f) | (magnitude >= 0x7C00 ? 0x7F800000 : 0);
    x[i] += float_of(bits | (half & 0x8000) << 16);
  }
}

void encode_row(Wire wire, const float* x, size_t width, uint8_t* to) {
  switch (wire) {
    case Wire::F32:
      std::memcpy(to, x, 4 * width);
      return;
    case Wire::F16:
      encode_f16(x, width, to);
      return;
    case Wire::Q80:
      for (size_t i = 0; i < width / kBlock; i++) encode_q80_block(x + i * kBlock, to + i * kQ80BlockBytes);
      return;
  }
}

void add_row(Wire wire, const uint8_t* from, size_t width, float* x) {
  switch (wire) {
    case Wire::F32:
      for (size_t i = 0; i < width; i++) x[i] += load_little<float>(from + 4 * i);
      return;
    case Wire::F16:
      add_f16(from, width, x);
      return;
    case Wire::Q80:
      for (size_t i = 0; i < width / kBlock; i++) add_q80_block(from + i * kQ80BlockBytes, x + i * kBlock);
      return;
  }
}

}  // namespace

size_t wire_row_bytes(Wire wire, size_t width) {
  switch (wire) {
    case Wire::F32: return 4 * width;
    case Wire::F16: return 2 * width;
    case Wire::Q80: return width / kBlock * kQ80BlockBytes;
  }
  return 0;
}

void encode(Wire wire, const float* rows, size_t n_rows, size_t stride, Columns columns, uint8_t* to) {
  const size_t width = columns.end - columns.begin, row_bytes = wire_row_bytes(wire, width);
  for (size_t r = 0; r < n_rows; r++) encode_row(wire, rows + r * stride + columns.begin, width, to + r * row_bytes);
}

void add_encoded(Wire wire, const uint8_t* from, float* rows, size_t n_rows, size_t stride, Columns columns) {
  const size_t width = columns.end - columns.begin, row_bytes = wire_row_bytes(wire, width);
  for (size_t r = 0; r < n_rows; r++) add_row(wire, from + r * row_bytes, width, rows + r * stride + columns.begin);
}

}  // namespace dllama::net
