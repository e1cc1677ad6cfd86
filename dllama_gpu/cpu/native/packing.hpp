// Turns row-major weights, as files hold them, into the packed layout of kernel_table.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_table.hpp"

namespace dllama {

// Bytes of one row of `n_columns` elements as files hold it; 0 when n_columns is not a whole number of blocks.
size_t row_bytes(WeightType type, int n_columns);

// Describes a packed (n_rows, n_columns) weight whose groups lie side by side; `data` is left null.
PackedWeight packed_layout(WeightType type, int n_rows, int n_columns);
// Bytes from the start of the first group to the start of the one that would follow the last.
size_t packed_bytes(const PackedWeight& weight);

// Writes row-major rows into rows [first_row, first_row + n_rows) of a packed weight, whose memory is zero at first.
// `source` rows are `source_stride` bytes apart. Returns the first source row that holds NaN or infinity (in a scale,
// for quantized types), or -1.
int pack_rows(const PackedWeight& weight, uint8_t* data, const uint8_t* source, size_t source_stride, int first_row,
               int n_rows);

// One row-major row as f32.
void dequantize_row(WeightType type, const uint8_t* source, int n_columns, float* out);
// The same from a packed weight.
void dequantize_packed_row(const PackedWeight& weight, int row, float* out);

}  // namespace dllama
