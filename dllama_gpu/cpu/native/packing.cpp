#include "packing.hpp"

#include <cmath>
#include <cstring>

#include "half.hpp"

namespace dllama {

namespace {

struct BlockShape {
  size_t bytes;      // of one block as files hold it
  size_t header;     // of those before the quants: scale, then minimum
  size_t n_words;    // 32-bit words of quants
  PairLayout packed;
};

BlockShape block_shape(WeightType type) {
  switch (type) {
    case WeightType::Q40:
      return {18, 2, 4, kQ40Pair};
    case WeightType::Q41:
      return {20, 4, 4, kQ41Pair};
    default:
      return {34, 2, 8, kQ80Pair};
  }
}

size_t element_bytes(WeightType type) { return type == WeightType::F32 ? 4 : 2; }

bool is_quantized(WeightType type) {
  return type == WeightType::Q40 || type == WeightType::Q41 || type == WeightType::Q80;
}

bool is_finite_half(uint16_t half) { return (half & 0x7C00) != 0x7C00; }

uint16_t read_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

float plain_element(WeightType type, const uint8_t* p) {
  if (type == WeightType::F32) {
    float value;
    std::memcpy(&value, p, 4);
    return value;
  }
  return type == WeightType::F16 ? f16_to_f32(read_u16(p)) : bf16_to_f32(read_u16(p));
}

bool pack_quantized_row(const PackedWeight& weight, uint8_t* group, int lane, const uint8_t* source) {
  const BlockShape shape = block_shape(weight.type);
  bool finite = true;
  for (int b = 0; b < weight.n_columns / kBlock; b++, source += shape.bytes) {
    std::memcpy(group + scales_at(shape.packed, b) + 2 * lane, source, 2);
    finite &= is_finite_half(read_u16(source));
    if (weight.type == WeightType::Q41) {
      std::memcpy(group + minima_at(shape.packed, b) + 2 * lane, source + 2, 2);
      finite &= is_finite_half(read_u16(source + 2));
    }
    uint8_t* quants = group + quants_at(shape.packed, b) + 4 * lane;
    for (size_t i = 0; i < shape.n_words; i++)
      std::memcpy(quants + i * 4 * kGroupRows, source + shape.header + 4 * i, 4);
  }
  return finite;
}

bool pack_plain_row(const PackedWeight& weight, uint8_t* group, int lane, const uint8_t* source) {
  const size_t size = element_bytes(weight.type);
  bool finite = true;
  for (int k = 0; k < weight.n_columns; k++) {
    std::memcpy(group + (static_cast<size_t>(k) * kGroupRows + lane) * size, source + k * size, size);
    finite &= std::isfinite(plain_element(weight.type, source + k * size));
  }
  return finite;
}

// 4 bytes of quants (word `i` of a block) to the elements they hold.
void dequantize_word(WeightType type, const uint8_t* bytes, size_t i, float scale, float offset, float* block) {
  for (size_t j = 0; j < 4; j++) {
    const size_t k = 4 * i + j;
    if (type == WeightType::Q80) {
      block[k] = static_cast<float>(static_cast<int8_t>(bytes[j])) * scale;
    } else {
      block[k] = static_cast<float>(bytes[j] & 15) * scale + offset;
      block[k + 16] = static_cast<float>(bytes[j] >> 4) * scale + offset;
    }
  }
}

}  // namespace

size_t row_bytes(WeightType type, int n_columns) {
  if (!is_quantized(type)) return element_bytes(type) * n_columns;
  return n_columns % kBlock ? 0 : block_shape(type).bytes * (n_columns / kBlock);
}

PackedWeight packed_layout(WeightType type, int n_rows, int n_columns) {
  const size_t n_pairs = (n_columns / kBlock + 1) / 2;
  const size_t bytes = is_quantized(type) ? n_pairs * pair_bytes(block_shape(type).packed)
                                          : static_cast<size_t>(n_columns) * kGroupRows * element_bytes(type);
  return {type, n_rows, n_columns, nullptr, (bytes + 63) / 64 * 64};
}

size_t packed_bytes(const PackedWeight& weight) {
  return static_cast<size_t>((weight.n_rows + kGroupRows - 1) / kGroupRows) * weight.group_stride;
}

int pack_rows(const PackedWeight& weight, uint8_t* data, const uint8_t* source, size_t source_stride, int first_row,
               int n_rows) {
  int first_bad = -1;
  for (int r = 0; r < n_rows; r++) {
    const int row = first_row + r;
    uint8_t* group = data + static_cast<size_t>(row / kGroupRows) * weight.group_stride;
    const uint8_t* from = source + r * source_stride;
    const bool finite = is_quantized(weight.type) ? pack_quantized_row(weight, group, row % kGroupRows, from)
                                                  : pack_plain_row(weight, group, row % kGroupRows, from);
    if (!finite && first_bad < 0) first_bad = r;
  }
  return first_bad;
}

void dequantize_row(WeightType type, const uint8_t* source, int n_columns, float* out) {
  if (!is_quantized(type)) {
    for (int k = 0; k < n_columns; k++) out[k] = plain_element(type, source + k * element_bytes(type));
    return;
  }
  const BlockShape shape = block_shape(type);
  for (int b = 0; b < n_columns / kBlock; b++, source += shape.bytes) {
    const float scale = f16_to_f32(read_u16(source));
    const float offset = type == WeightType::Q41 ? f16_to_f32(read_u16(source + 2)) : -8 * scale;
    for (size_t i = 0; i < shape.n_words; i++)
      dequantize_word(type, source + shape.header + 4 * i, i, scale, offset, out + b * kBlock);
  }
}

void dequantize_packed_row(const PackedWeight& weight, int row, float* out) {
  const uint8_t* group = weight.data + static_cast<size_t>(row / kGroupRows) * weight.group_stride;
  const int lane = row % kGroupRows;
  if (!is_quantized(weight.type)) {
    const size_t size = element_bytes(weight.type);
    for (int k = 0; k < weight.n_columns; k++)
      out[k] = plain_element(weight.type, group + (static_cast<size_t>(k) * kGroupRows + lane) * size);
    return;
  }
  const BlockShape shape = block_shape(weight.type);
  for (int b = 0; b < weight.n_columns / kBlock; b++) {
    const float scale = f16_to_f32(read_u16(group + scales_at(shape.packed, b) + 2 * lane));
    const float offset = weight.type == WeightType::Q41
                             ? f16_to_f32(read_u16(group + minima_at(shape.packed, b) + 2 * lane))
                             : -8 * scale;
    const uint8_t* quants = group + quants_at(shape.packed, b) + 4 * lane;
    for (size_t i = 0; i < shape.n_words; i++)
      dequantize_word(weight.type, quants + i * 4 * kGroupRows, i, scale, offset, out + b * kBlock);
  }
}

}  // namespace dllama
