// Rows of f32 to the bytes that cross the network and back. Plain IEEE arithmetic, so every machine gets the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dllama::net {

enum class Wire : uint8_t { F32 = 0, F16 = 1, Q80 = 2 };

constexpr size_t kBlock = 32;          // numbers that share a scale in Q80
constexpr size_t kQ80BlockBytes = 34;  // f16 scale, 32 int8

// Columns [begin, end) of a matrix (n_rows, stride).
struct Columns {
  size_t begin;
  size_t end;
};

// Bytes of a row of `width` numbers; for Q80 that is a multiple of kBlock.
size_t wire_row_bytes(Wire wire, size_t width);

// Rounds columns of `rows` (n_rows, stride) to `to`, row after row. Q80 is rounded as dllama_gpu/model/codecs.py does:
// scale d = max|x| / 127, quant = x * (1 / d) rounded to even, d stored as f16; a block with a number that is not finite
// becomes NaN.
void encode(Wire wire, const float* rows, size_t n_rows, size_t stride, Columns columns, uint8_t* to);

// Adds encoded columns to those of `rows` (n_rows, stride).
void add_encoded(Wire wire, const uint8_t* from, float* rows, size_t n_rows, size_t stride, Columns columns);

}  // namespace dllama::net
