// Matmul kernels over packed weights; needs one simd_*.hpp included before.

namespace {

#if defined(__GNUC__) || defined(__clang__)
#define DLLAMA_UNROLL _Pragma("GCC unroll 16")
#else
#define DLLAMA_UNROLL
#endif

inline F32x16 load_halves(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }

// Writes the outputs of one group for one activation row; the last group of a matrix may be partly padding.
inline void store_outputs(float* out, F32x16 values, int n_valid) {
  if (n_valid >= kGroupRows) {
    store(out, values);
    return;
  }
  float lanes[kGroupRows];
  store(lanes, values);
  for (int i = 0; i < n_valid; i++) out[i] = lanes[i];
}

}  // namespace

#ifdef DLLAMA_USE_NEON
#include "matmul_neon.inl"
#else

namespace {

// A format says how one block (32 columns of 16 rows) turns into eight vectors of bytes that meet activations
// 4c..4c+3, which dot product takes them, and what is added once a block.

template <bool kHasMinimum>
struct NibbleFormat {
  using Dot = NibbleDot;
  static constexpr PairLayout kPair = kHasMinimum ? dllama::kQ41Pair : dllama::kQ40Pair;
  Bytes bytes[8];

  explicit NibbleFormat(const uint8_t* block) {
    DLLAMA_UNROLL
    for (int c = 0; c < 4; c++) {
      const Bytes packed = load_bytes(block + 64 * c);
      bytes[c] = low_nibbles(packed);
      bytes[4 + c] = high_nibbles(packed);
    }
  }
  static int32_t start(const Q80Rows& x, size_t index) { return kHasMinimum ? 0 : x.sums_times_minus8[index]; }
  static constexpr bool has_minimum = kHasMinimum;
};

struct ByteFormat {
  using Dot = ByteDot;
  static constexpr PairLayout kPair = dllama::kQ80Pair;
  Bytes bytes[8];

  explicit ByteFormat(const uint8_t* block) {
    DLLAMA_UNROLL
    for (int c = 0; c < 8; c++) bytes[c] = ByteDot::prepare(load_bytes(block + 64 * c));
  }
  static int32_t start(const Q80Rows& x, size_t index) { return x.sums_times_minus8[index]; }
  static constexpr bool has_minimum = false;
};

// One group of 16 weight rows against T activation rows of one tile. `first` is the q80_index of the first of them in
// block 0, `height` the tile's.
template <class Format, int T>
inline void q80_tile(const MatmulArgs& args, const uint8_t* group, size_t first, int height, float* out, int n_valid) {
  const Q80Rows& x = args.x_q80;
  const int n_blocks = x.width / kBlock;
  F32x16 sums[T];
  DLLAMA_UNROLL
  for (int t = 0; t < T; t++) sums[t] = set1(0);
  for (int b = 0; b < n_blocks; b++) {
    const Format weights(group + quants_at(Format::kPair, b));
    const F32x16 scale = load_halves(group + scales_at(Format::kPair, b));
    const size_t block_index = first + static_cast<size_t>(b) * height;
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      const size_t index = block_index + t;
      const int8_t* a = x.quants + index * kBlock;
      typename Format::Dot dot(Format::start(x, index));
      DLLAMA_UNROLL
      for (int c = 0; c < 8; c++) dot.add(weights.bytes[c], a + 4 * c);
      sums[t] = fma(mul(dot.result(), set1(x.scales[index])), scale, sums[t]);
      if (Format::has_minimum)
        sums[t] = fma(set1(x.scaled_sums[index]), load_halves(group + minima_at(Format::kPair, b)), sums[t]);
    }
  }
  DLLAMA_UNROLL
  for (int t = 0; t < T; t++) store_outputs(out + t * args.out_stride, sums[t], n_valid);
}

}  // namespace

#endif

namespace {

template <class Format, int T>
inline int q80_tiles(const MatmulArgs& args, const uint8_t* group, int row, int end, int height, float* out,
                     int n_valid) {
  for (; row + T <= end; row += T)
    q80_tile<Format, T>(args, group, q80_index(args.x_q80, row, 0, args.n_rows), height, out + row * args.out_stride,
                        n_valid);
  return row;
}

template <class Format>
void matmul_q80(const MatmulArgs& args, int group_begin, int group_end) {
  for (int g = group_begin; g < group_end; g++) {
    const uint8_t* group = args.weight.data + g * args.weight.group_bytes;
    float* out = args.out + static_cast<size_t>(g) * kGroupRows;
    const int n_valid = args.weight.n_rows - g * kGroupRows;
    for (int tile = 0; tile < args.n_rows; tile += kTileRows) {
      const int height = tile_height(tile, args.n_rows);
      const int end = tile + height;
      int row = tile;
      if (kMaxTokens >= 16) row = q80_tiles<Format, 16>(args, group, row, end, height, out, n_valid);
      if (kMaxTokens >= 8) row = q80_tiles<Format, 8>(args, group, row, end, height, out, n_valid);
      row = q80_tiles<Format, 4>(args, group, row, end, height, out, n_valid);
      row = q80_tiles<Format, 2>(args, group, row, end, height, out, n_valid);
      q80_tiles<Format, 1>(args, group, row, end, height, out, n_valid);
    }
  }
}

// Readers turn up to 32 columns of a group into f32 [columns][16].

struct F32Reader {
  static const float* read(const PackedWeight&, const uint8_t* group, int column, int, float*) {
    return reinterpret_cast<const float*>(group) + static_cast<size_t>(column) * kGroupRows;
  }
};

template <bool kBrain>
struct HalfReader {
  static const float* read(const PackedWeight&, const uint8_t* group, int column, int n, float* expanded) {
    const auto* p = reinterpret_cast<const uint16_t*>(group) + static_cast<size_t>(column) * kGroupRows;
    for (int k = 0; k < n; k++) {
      const uint16_t* lanes = p + k * kGroupRows;
      store(expanded + k * kGroupRows, kBrain ? load_bf16(lanes) : load_f16(lanes));
    }
    return expanded;
  }
};

template <int J>
inline void expand_nibbles(Bytes lanes, F32x16 scale, F32x16 offset, float* expanded) {
  store(expanded + J * kGroupRows, fma(unsigned_byte<J>(lanes), scale, offset));
}

template <bool kHasMinimum>
struct NibbleReader {
  static const float* read(const PackedWeight&, const uint8_t* group, int column, int, float* expanded) {
    const int b = column / kBlock;
    constexpr PairLayout pair = kHasMinimum ? dllama::kQ41Pair : dllama::kQ40Pair;
    const F32x16 scale = load_halves(group + scales_at(pair, b));
    const F32x16 offset = kHasMinimum ? load_halves(group + minima_at(pair, b)) : mul(scale, set1(-8));
    for (int c = 0; c < 4; c++) {
      const Bytes packed = load_bytes(group + quants_at(pair, b) + 64 * c);
      for (int half = 0; half < 2; half++) {
        const Bytes lanes = half ? high_nibbles(packed) : low_nibbles(packed);
        float* out = expanded + (16 * half + 4 * c) * kGroupRows;
        expand_nibbles<0>(lanes, scale, offset, out);
        expand_nibbles<1>(lanes, scale, offset, out);
        expand_nibbles<2>(lanes, scale, offset, out);
        expand_nibbles<3>(lanes, scale, offset, out);
      }
    }
    return expanded;
  }
};

template <int J>
inline void expand_bytes(Bytes lanes, F32x16 scale, float* expanded) {
  store(expanded + J * kGroupRows, mul(signed_byte<J>(lanes), scale));
}

struct ByteReader {
  static const float* read(const PackedWeight&, const uint8_t* group, int column, int, float* expanded) {
    const int b = column / kBlock;
    const F32x16 scale = load_halves(group + scales_at(dllama::kQ80Pair, b));
    for (int c = 0; c < 8; c++) {
      const Bytes lanes = load_bytes(group + quants_at(dllama::kQ80Pair, b) + 64 * c);
      float* out = expanded + 4 * c * kGroupRows;
      expand_bytes<0>(lanes, scale, out);
      expand_bytes<1>(lanes, scale, out);
      expand_bytes<2>(lanes, scale, out);
      expand_bytes<3>(lanes, scale, out);
    }
    return expanded;
  }
};

// Two sums a row (even and odd columns) hide the latency of the multiply-add.
template <class Reader, int T>
inline int f32_tiles(const MatmulArgs& args, const uint8_t* group, int row, float* out, int n_valid) {
  const int n_columns = args.weight.n_columns;
  float expanded[kBlock * kGroupRows];
  for (; row + T <= args.n_rows; row += T) {
    const float* x = args.x_f32 + row * args.x_stride;
    F32x16 even[T], odd[T];
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) even[t] = odd[t] = set1(0);
    for (int column = 0; column < n_columns; column += kBlock) {
      const int n = n_columns - column < kBlock ? n_columns - column : kBlock;
      const float* w = Reader::read(args.weight, group, column, n, expanded);
      int k = 0;
      for (; k + 2 <= n; k += 2) {
        const F32x16 first = load(w + k * kGroupRows), second = load(w + (k + 1) * kGroupRows);
        DLLAMA_UNROLL
        for (int t = 0; t < T; t++) {
          even[t] = fma(set1(x[t * args.x_stride + column + k]), first, even[t]);
          odd[t] = fma(set1(x[t * args.x_stride + column + k + 1]), second, odd[t]);
        }
      }
      if (k < n) {
        const F32x16 last = load(w + k * kGroupRows);
        for (int t = 0; t < T; t++) even[t] = fma(set1(x[t * args.x_stride + column + k]), last, even[t]);
      }
    }
    for (int t = 0; t < T; t++) store_outputs(out + (row + t) * args.out_stride, add(even[t], odd[t]), n_valid);
  }
  return row;
}

template <class Reader>
void matmul_f32(const MatmulArgs& args, int group_begin, int group_end) {
  for (int g = group_begin; g < group_end; g++) {
    const uint8_t* group = args.weight.data + g * args.weight.group_bytes;
    float* out = args.out + static_cast<size_t>(g) * kGroupRows;
    const int n_valid = args.weight.n_rows - g * kGroupRows;
    int row = 0;
    if (kMaxTokens >= 16) row = f32_tiles<Reader, 8>(args, group, row, out, n_valid);
    row = f32_tiles<Reader, 4>(args, group, row, out, n_valid);
    f32_tiles<Reader, 1>(args, group, row, out, n_valid);
  }
}

}  // namespace
