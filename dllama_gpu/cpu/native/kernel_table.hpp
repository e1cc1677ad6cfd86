// What a kernel is given, and the table of kernels that each instruction set fills.
//
// Layouts (all sizes in elements unless said otherwise):
//
// Packed weight: matrix rows are interleaved in groups of 16, so that one vector holds four neighbouring bytes (or one
// element) of each of 16 rows. Group g holds rows 16g..16g+15; rows past the end are zero.
//   Q40   pairs of blocks, so that a group is read from front to back in whole cache lines: [2][16] f16 scales, then
//         [2 blocks][4 chunks][16 rows][4 bytes] nibbles. Byte j of chunk c holds elements 4c+j (low nibble) and 16+4c+j
//         (high nibble) of a block; value = (nibble - 8) * scale. An odd last block is paired with zeros.
//   Q41   the same with [2][16] f16 minima after the scales; value = nibble * scale + minimum.
//   Q80   pairs of blocks: [2][16] f16 scales, then [2 blocks][8 chunks][16 rows][4 int8].
//   F32   [n_columns][16] f32;  F16, BF16  [n_columns][16] 16-bit.
//
// Q80 activations (rows, width): rows are interleaved in tiles of up to 16. Tile t holds rows 16t..16t+h-1, where
// h = min(16, n_rows - 16t); within it int8 quants lie as [nb][h][32], and the three per-block numbers as [nb][h].
#pragma once

#include <cstddef>
#include <cstdint>

namespace dllama {

constexpr int kGroupRows = 16;
constexpr int kTileRows = 16;
constexpr int kBlock = 32;
// Positions one attention work item covers; partial results are merged in order, so that a row's result depends
// neither on the number of threads nor on the other rows of its batch.
constexpr int kAttentionChunk = 256;
constexpr int kMaxHeadDim = 512;

enum class WeightType : int { F32 = 0, F16, BF16, Q40, Q41, Q80 };
constexpr int kWeightTypes = 6;

struct PackedWeight {
  WeightType type;
  int n_rows, n_columns;
  const uint8_t* data;
  size_t group_stride;  // bytes from one group to the next, a multiple of 64; another matrix's groups may lie between
};

// Where the parts of block b of a group of quantized rows are, in bytes from the group's start. (Functions here have
// internal linkage: this header is compiled with several instruction sets' flags, and their code must not mix.)
struct PairLayout {
  size_t header_bytes;  // scales, and minima, of both blocks
  size_t quant_bytes;   // of one block
};
constexpr PairLayout kQ40Pair{64, 256}, kQ41Pair{128, 256}, kQ80Pair{64, 512};

static constexpr size_t pair_bytes(PairLayout pair) { return pair.header_bytes + 2 * pair.quant_bytes; }
static constexpr size_t scales_at(PairLayout pair, int b) { return b / 2 * pair_bytes(pair) + b % 2 * 32; }
static constexpr size_t minima_at(PairLayout pair, int b) { return scales_at(pair, b) + 64; }
static constexpr size_t quants_at(PairLayout pair, int b) {
  return b / 2 * pair_bytes(pair) + pair.header_bytes + b % 2 * pair.quant_bytes;
}

struct Q80Rows {
  int width;             // elements of a row, a multiple of 32
  int8_t* quants;        // value = quant * scale
  float* scales;         // f16-rounded
  int32_t* sums_times_minus8;  // -8 * sum of the block's quants
  float* scaled_sums;    // scale * sum of the block's quants
};

// Height of the tile that holds `row` in a batch of `n_rows`.
static inline int tile_height(int row, int n_rows) {
  const int left = n_rows - row / kTileRows * kTileRows;
  return left < kTileRows ? left : kTileRows;
}

// Index of (row, block) in the per-block arrays; its quants start at 32 times that.
static inline size_t q80_index(const Q80Rows& x, int row, int block, int n_rows) {
  const size_t tile_start = static_cast<size_t>(row / kTileRows) * kTileRows * (x.width / kBlock);
  return tile_start + static_cast<size_t>(block) * tile_height(row, n_rows) + row % kTileRows;
}

struct MatmulArgs {
  PackedWeight weight;
  const float* x_f32;  // [n_rows][x_stride], or null
  size_t x_stride;
  Q80Rows x_q80;  // used when x_f32 is null
  int n_rows;
  float* out;  // element (row, weight row r) at out[row * out_stride + r - first_weight_row]
  size_t out_stride;
  int first_weight_row = 0;
};

// Where a row-wise kernel writes: f32 or Q80.
struct RowOutput {
  float* f32;  // [n_rows][width], or null
  Q80Rows q80;
  int width;
  int n_rows;  // rows of the whole buffer, for the tile layout
};

// Bytes that are read next. Kernels that compute more than they load fetch them into the cache meanwhile, so that memory
// is busy all the time.
struct Stretch {
  const uint8_t *begin = nullptr, *end = nullptr;
};

enum class CacheType : int { F16 = 0, Q80, F32 };
constexpr int kCacheTypes = 3;

// One KV head of one slot. Elements are 16-bit, int8 or f32; Q80 has a scale for each 32 elements of a head.
struct AttentionArgs {
  int padded_head_dim;    // a multiple of 16, for Q80 of 32
  const uint8_t* k;       // [seq_len / 16][padded_head_dim][16]
  const uint8_t* v;       // [seq_len][padded_head_dim]
  const float* k_scales;  // [seq_len / 16][padded_head_dim / 32][16], or null
  const float* v_scales;  // [seq_len][padded_head_dim / 32], or null
  Stretch then;           // read after this chunk's values
};

// The positions that a query sees: [begin, end).
struct PositionSpan {
  int begin, end;
};

// One query's softmax over one chunk, before division: out = sum(exp(s - maximum) * v), sum = sum(exp(s - maximum)).
struct AttentionPartial {
  float maximum;
  float sum;
  float* out;  // [padded_head_dim]
};

// What is known of some logits of a row. Lane i has those of which i is the index modulo 16: their maximum, and
// sum(exp((v - maximum) * scale)).
struct LogitSurvey {
  float maxima[16], exp_sums[16];
};

// The best logits so far and their ids, the worst on top.
struct CandidateHeap {
  float* values;  // [capacity]
  int* ids;       // [capacity]
  int size, capacity;
};

struct KernelTable {
  const char* name;

  // Weight rows of groups [group_begin, group_end) against all rows of x; null where the pair is not supported.
  void (*matmul_q80[kWeightTypes])(const MatmulArgs&, int group_begin, int group_end);
  void (*matmul_f32[kWeightTypes])(const MatmulArgs&, int group_begin, int group_end);

  // x += add (add may be null), then out row = x / rms(x) * weight.
  void (*rms_norm)(float* x, const float* add, const float* weight, float epsilon, int width, const RowOutput& out,
                   int out_row);
  // Elements [column, column + n) of an output row; n and column multiples of 32 when out is Q80.
  void (*store_row)(const float* x, int n, const RowOutput& out, int out_row, int column);
  // gate = silu(gate) * up, n elements.
  void (*silu_mul)(float* gate, const float* up, int n);
  // The same with the tanh approximation of GELU.
  void (*gelu_mul)(float* gate, const float* up, int n);
  void (*f32_to_f16)(const float* x, uint16_t* out, int n);
  // Queries [n_queries][padded_head_dim], already scaled, against what each sees of the chunk of positions from begin,
  // a multiple of kAttentionChunk; spans end within the chunk, and a query that sees nothing of it gets an empty partial
  // result; scores is scratch [n_queries][kAttentionChunk].
  void (*attention_chunk[kCacheTypes])(const AttentionArgs&, const float* queries, int n_queries, int begin,
                                       const PositionSpan* spans, float* scores, AttentionPartial* partials);
  // Folds a later chunk into an earlier one.
  void (*attention_merge)(AttentionPartial& into, const AttentionPartial& later, int padded_head_dim);
  // The k experts with the largest of n logits, the largest first (lowest id first among equals), and their softmax over
  // all n, or over the k alone. A logit that is no finite number makes all weights NaN.
  void (*top_experts)(const float* logits, int n, int k, bool normalize, int* ids, float* weights);
  // Takes in the next n logits of a row, at most 16; first, with `begins`, forgets all others.
  void (*survey_logits)(const float* logits, int n, float scale, bool begins, LogitSurvey& survey);
  // Fills `best` with the best of a row's n logits, the first of which is token first_id's; each survey knows `surveyed` of
  // them, the last one the rest. Returns log(sum(exp(v * scale))): NaN where a logit is NaN, which is never among the best,
  // or infinite.
  float (*search_logits)(const float* logits, int n, int first_id, float scale, const LogitSurvey* surveys, int surveyed,
                         CandidateHeap& best);
};

const KernelTable* kernels_plain();
#ifdef DLLAMA_HAVE_AVX2
const KernelTable* kernels_avx2();
#endif
#ifdef DLLAMA_HAVE_AVXVNNI
const KernelTable* kernels_avxvnni();
#endif
#ifdef DLLAMA_HAVE_AVX512
const KernelTable* kernels_avx512();
#endif
#ifdef DLLAMA_HAVE_NEON
const KernelTable* kernels_neon();
#endif
#ifdef DLLAMA_HAVE_DOTPROD
const KernelTable* kernels_dotprod();
#endif
#ifdef DLLAMA_HAVE_I8MM
const KernelTable* kernels_i8mm();
#endif

}  // namespace dllama
