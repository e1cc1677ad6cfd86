// Matmul kernels over packed weights; needs one simd_*.hpp included before.

namespace {

#ifndef DLLAMA_UNROLL
#if defined(__GNUC__) || defined(__clang__)
#define DLLAMA_UNROLL _Pragma("GCC unroll 16")
#else
#define DLLAMA_UNROLL
#endif
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

#ifndef DLLAMA_NIBBLE_ROW
// Both nibbles of packed bytes against one activation row.
struct NibbleRow {
  NibbleDot dot;
  explicit NibbleRow(int32_t start) : dot(start) {}
  void add(Bytes packed, const int8_t* low, const int8_t* high) {
    dot.add(low_nibbles(packed), low);
    dot.add(high_nibbles(packed), high);
  }
  F32x16 result() const { return dot.result(); }
};
#endif

// A format says how one block (32 columns of 16 rows) turns into eight vectors of bytes, which of them meet activations
// 4c..4c+3, and which dot product takes them.

template <bool kHasMinimum>
struct NibbleFormat {
  using Dot = NibbleDot;
  static constexpr PairLayout kPair = kHasMinimum ? dllama::kQ41Pair : dllama::kQ40Pair;
  static constexpr bool has_minimum = kHasMinimum, has_row = true;
  static constexpr int kLoads = 4;

  static int32_t start(const Q80Rows& x, size_t index) { return kHasMinimum ? 0 : x.sums_times_minus8[index]; }
  static void expand(const uint8_t* block, int load, Bytes& low, Bytes& high) {
    const Bytes packed = load_bytes(block + 64 * load);
    low = low_nibbles(packed);
    high = high_nibbles(packed);
  }
  // A block against one activation row; only where `has_row`, which others compute as they do several.
  static F32x16 dot_row(const uint8_t* block, const Q80Rows& x, size_t index) {
    const int8_t* a = x.quants + index * kBlock;
    NibbleRow row(start(x, index));
    DLLAMA_UNROLL
    for (int i = 0; i < kLoads; i++) row.add(load_bytes(block + 64 * i), a + low_columns(i), a + high_columns(i));
    return row.result();
  }
  // Activations that the two vectors of a load meet.
  static constexpr int low_columns(int load) { return 4 * load; }
  static constexpr int high_columns(int load) { return 16 + 4 * load; }
};

struct ByteFormat {
  using Dot = ByteDot;
  static constexpr PairLayout kPair = dllama::kQ80Pair;
  static constexpr bool has_minimum = false, has_row = false;
  static constexpr int kLoads = 4;

  static int32_t start(const Q80Rows& x, size_t index) { return x.sums_times_minus8[index]; }
  static void expand(const uint8_t* block, int load, Bytes& low, Bytes& high) {
    low = ByteDot::prepare(load_bytes(block + 128 * load));
    high = ByteDot::prepare(load_bytes(block + 128 * load + 64));
  }
  static constexpr int low_columns(int load) { return 8 * load; }
  static constexpr int high_columns(int load) { return 8 * load + 4; }
};

// Adds a block's dot product with activation row `index` to its sums.
template <class Format>
inline F32x16 add_block(F32x16 sums, F32x16 dot, const Q80Rows& x, size_t index, F32x16 scale, const uint8_t* minima) {
  sums = fma(mul(dot, set1(x.scales[index])), scale, sums);
  return Format::has_minimum ? fma(set1(x.scaled_sums[index]), load_halves(minima), sums) : sums;
}

// One group of 16 weight rows against T activation rows of one tile. `first` is the q80_index of the first of them in
// block 0, `height` the tile's.
template <class Format, int T>
inline void q80_tile(const MatmulArgs& args, const uint8_t* group, size_t first, int height, float* out, int n_valid) {
  using Dot = typename Format::Dot;
  const Q80Rows& x = args.x_q80;
  const int n_blocks = x.width / kBlock;
  F32x16 sums[T];
  DLLAMA_UNROLL
  for (int t = 0; t < T; t++) sums[t] = set1(0);
  for (int b = 0; b < n_blocks; b++) {
    const uint8_t* block = group + quants_at(Format::kPair, b);
    const uint8_t* minima = group + minima_at(Format::kPair, b);
    const F32x16 scale = load_halves(group + scales_at(Format::kPair, b));
    const size_t index = first + static_cast<size_t>(b) * height;
    [[maybe_unused]] const int8_t* a = x.quants + index * kBlock;
    if constexpr (T == 1 && Format::has_row) {
      sums[0] = add_block<Format>(sums[0], Format::dot_row(block, x, index), x, index, scale, minima);
    } else if constexpr (T > 1 && kHoldsBlock) {
      // The whole block stays in registers, and one activation row after the other passes it.
      Bytes low[4], high[4];
      DLLAMA_UNROLL
      for (int i = 0; i < Format::kLoads; i++) Format::expand(block, i, low[i], high[i]);
      DLLAMA_UNROLL
      for (int t = 0; t < T; t++) {
        Dot dot(Format::start(x, index + t));
        DLLAMA_UNROLL
        for (int i = 0; i < Format::kLoads; i++) {
          dot.add(low[i], a + t * kBlock + Format::low_columns(i));
          dot.add(high[i], a + t * kBlock + Format::high_columns(i));
        }
        sums[t] = add_block<Format>(sums[t], dot.result(), x, index + t, scale, minima);
      }
    } else {
      // All activation rows' dot products stay in registers, and one piece of the block after the other passes them.
      Dot dots[T];
      DLLAMA_UNROLL
      for (int t = 0; t < T; t++) dots[t] = Dot(Format::start(x, index + t));
      DLLAMA_UNROLL
      for (int i = 0; i < Format::kLoads; i++) {
        Bytes low, high;
        Format::expand(block, i, low, high);
        DLLAMA_UNROLL
        for (int t = 0; t < T; t++) {
          dots[t].add(low, a + t * kBlock + Format::low_columns(i));
          dots[t].add(high, a + t * kBlock + Format::high_columns(i));
        }
      }
      DLLAMA_UNROLL
      for (int t = 0; t < T; t++) sums[t] = add_block<Format>(sums[t], dots[t].result(), x, index + t, scale, minima);
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
    const uint8_t* group = args.weight.data + g * args.weight.group_stride;
    float* out = args.out + (g * kGroupRows - args.first_weight_row);
    const int n_valid = args.weight.n_rows - g * kGroupRows;
    if (args.n_rows == 1) {  // decode: no tiles to look for
      q80_tile<Format, 1>(args, group, 0, 1, out, n_valid);
      continue;
    }
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

// Sums of one activation row over even and over odd columns: two, to hide the latency of the multiply-add.
struct ColumnSums {
  F32x16 even, odd;
};

// Adds n columns of 16 weight rows, w [n][16], to the sums of T activation rows.
template <int T>
inline void add_columns(const float* w, const float* x, size_t x_stride, int n, ColumnSums* sums) {
  ColumnSums held[T];
  DLLAMA_UNROLL
  for (int t = 0; t < T; t++) held[t] = sums[t];
  int k = 0;
  for (; k + 2 <= n; k += 2) {
    const F32x16 first = load(w + k * kGroupRows), second = load(w + (k + 1) * kGroupRows);
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      held[t].even = fma(set1(x[t * x_stride + k]), first, held[t].even);
      held[t].odd = fma(set1(x[t * x_stride + k + 1]), second, held[t].odd);
    }
  }
  if (k < n) {
    const F32x16 last = load(w + k * kGroupRows);
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) held[t].even = fma(set1(x[t * x_stride + k]), last, held[t].even);
  }
  DLLAMA_UNROLL
  for (int t = 0; t < T; t++) sums[t] = held[t];
}

// One group of 16 weight rows against a tile of up to kHeight activation rows; each stretch of weights is expanded once.
template <class Reader, int kHeight>
inline void f32_tile(const MatmulArgs& args, const uint8_t* group, int tile, float* out, int n_valid) {
  const int height = kHeight == 1 ? 1 : tile_height(tile, args.n_rows), n_columns = args.weight.n_columns;
  const float* x = args.x_f32 + tile * args.x_stride;
  float expanded[kBlock * kGroupRows];
  ColumnSums sums[kHeight];
  for (int t = 0; t < height; t++) sums[t] = {set1(0), set1(0)};
  for (int column = 0; column < n_columns; column += kBlock) {
    const int n = n_columns - column < kBlock ? n_columns - column : kBlock;
    const float* w = Reader::read(args.weight, group, column, n, expanded);
    int t = 0;
    for (; t + kF32Tokens <= height; t += kF32Tokens)
      add_columns<kF32Tokens>(w, x + t * args.x_stride + column, args.x_stride, n, sums + t);
    for (; t < height; t++) add_columns<1>(w, x + t * args.x_stride + column, args.x_stride, n, sums + t);
  }
  for (int t = 0; t < height; t++)
    store_outputs(out + (tile + t) * args.out_stride, add(sums[t].even, sums[t].odd), n_valid);
}

template <class Reader>
void matmul_f32(const MatmulArgs& args, int group_begin, int group_end) {
  for (int g = group_begin; g < group_end; g++) {
    const uint8_t* group = args.weight.data + g * args.weight.group_stride;
    float* out = args.out + (g * kGroupRows - args.first_weight_row);
    const int n_valid = args.weight.n_rows - g * kGroupRows;
    if (args.n_rows == 1) {
      f32_tile<Reader, 1>(args, group, 0, out, n_valid);
      continue;
    }
    for (int tile = 0; tile < args.n_rows; tile += kTileRows)
      f32_tile<Reader, kTileRows>(args, group, tile, out, n_valid);
  }
}

}  // namespace
