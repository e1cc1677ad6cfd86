// The Q80 matmul's weight formats and tiles on ARM; included by matmul.inl instead of its own.
//
// A tile is R quarters (registers of four weight rows) against T activation rows. The products of a block are summed as
// integers, eight columns at a time: `ColumnPair` holds the two neighbouring four-column chunks of a packed weight.

namespace {

template <int R>
struct ColumnPair {
  uint8x16_t even[R], odd[R];
};

template <int R>
inline ColumnPair<R> load_pair(const uint8_t* chunks) {
  ColumnPair<R> pair;
  DLLAMA_UNROLL
  for (int r = 0; r < R; r++) {
    pair.even[r] = vld1q_u8(chunks + 16 * r);
    pair.odd[r] = vld1q_u8(chunks + 64 + 16 * r);
  }
  return pair;
}

// A format hands a tile the four column pairs of a block (pair K: columns 8K..8K+7), K = 0 first.

template <bool kHasMinimum>
struct NibbleFormat {
  static constexpr PairLayout kPair = kHasMinimum ? dllama::kQ41Pair : dllama::kQ40Pair;
  static constexpr bool has_minimum = kHasMinimum;
  static constexpr bool is_byte = false;

  static int32_t start(const Q80Rows& x, size_t index) { return kHasMinimum ? 0 : x.sums_times_minus8[index]; }

  template <class Tile>
  static void multiply(const uint8_t* block, Tile& tile) {
    const auto first = Tile::arrange(load_pair<Tile::kQuarters>(block));
    tile.template add<0>(nibbles(first, [](uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }));
    tile.template add<2>(nibbles(first, [](uint8x16_t v) { return vshrq_n_u8(v, 4); }));
    const auto second = Tile::arrange(load_pair<Tile::kQuarters>(block + 128));
    tile.template add<1>(nibbles(second, [](uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }));
    tile.template add<3>(nibbles(second, [](uint8x16_t v) { return vshrq_n_u8(v, 4); }));
  }

 private:
  template <int R, class F>
  static ColumnPair<R> nibbles(const ColumnPair<R>& packed, F half) {
    ColumnPair<R> pair;
    DLLAMA_UNROLL
    for (int r = 0; r < R; r++) {
      pair.even[r] = half(packed.even[r]);
      pair.odd[r] = half(packed.odd[r]);
    }
    return pair;
  }
};

struct ByteFormat {
  static constexpr PairLayout kPair = dllama::kQ80Pair;
  static constexpr bool has_minimum = false;
  static constexpr bool is_byte = true;

  static int32_t start(const Q80Rows&, size_t) { return 0; }

  template <class Tile>
  static void multiply(const uint8_t* block, Tile& tile) {
    tile.template add<0>(Tile::arrange(load_pair<Tile::kQuarters>(block)));
    tile.template add<1>(Tile::arrange(load_pair<Tile::kQuarters>(block + 128)));
    tile.template add<2>(Tile::arrange(load_pair<Tile::kQuarters>(block + 256)));
    tile.template add<3>(Tile::arrange(load_pair<Tile::kQuarters>(block + 384)));
  }
};

// One quarter's integer dot products with one activation row: `add` takes chunks 2K and 2K+1 of the weights and the 16
// activations around them.

#ifdef DLLAMA_USE_DOTPROD

struct LaneDot {
  int32x4_t sum;

  void begin(int32_t start) { sum = vdupq_n_s32(start); }
  template <int K>
  void add(uint8x16_t even, uint8x16_t odd, int8x16_t a) {
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_u8(even), a, 2 * (K % 2));
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_u8(odd), a, 2 * (K % 2) + 1);
  }
  int32x4_t result() const { return sum; }
};

template <bool kBytes>
using QuarterDot = LaneDot;

#else

// Four activations, repeated for each weight row.
template <int kLane>
inline int8x16_t repeat4(int8x16_t a) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), kLane));
}

inline int16x8_t multiply_low(int8x16_t w, int8x16_t a) { return vmull_s8(vget_low_s8(w), vget_low_s8(a)); }
inline int16x8_t multiply_add_low(int16x8_t sum, int8x16_t w, int8x16_t a) {
  return vmlal_s8(sum, vget_low_s8(w), vget_low_s8(a));
}

// A row's sums of a block of nibbles fit 16 bits even after the first pairwise addition (16 * 15 * 127 = 30480), so
// widening is done once a block.
struct NibbleDot {
  int16x8_t low, high;  // four sums for each of two rows
  int32_t start;

  void begin(int32_t first) { start = first; }
  template <int K>
  void add(uint8x16_t even, uint8x16_t odd, int8x16_t a) {
    const int8x16_t x = repeat4<2 * (K % 2)>(a), y = repeat4<2 * (K % 2) + 1>(a);
    const int8x16_t w = vreinterpretq_s8_u8(even), v = vreinterpretq_s8_u8(odd);
    low = multiply_add_low(K == 0 ? multiply_low(w, x) : multiply_add_low(low, w, x), v, y);
    high = vmlal_high_s8(K == 0 ? vmull_high_s8(w, x) : vmlal_high_s8(high, w, x), v, y);
  }
  int32x4_t result() const { return vaddq_s32(vpaddlq_s16(vpaddq_s16(low, high)), vdupq_n_s32(start)); }
};

// Of int8 weights only two products fit 16 bits (2 * 128 * 127 = 32512).
struct ByteDot {
  int32x4_t low, high;  // two sums for each of two rows

  void begin(int32_t) {}
  template <int K>
  void add(uint8x16_t even, uint8x16_t odd, int8x16_t a) {
    const int8x16_t x = repeat4<2 * (K % 2)>(a), y = repeat4<2 * (K % 2) + 1>(a);
    const int8x16_t w = vreinterpretq_s8_u8(even), v = vreinterpretq_s8_u8(odd);
    const int16x8_t p = multiply_add_low(multiply_low(w, x), v, y);
    const int16x8_t q = vmlal_high_s8(vmull_high_s8(w, x), v, y);
    low = K == 0 ? vpaddlq_s16(p) : vpadalq_s16(low, p);
    high = K == 0 ? vpaddlq_s16(q) : vpadalq_s16(high, q);
  }
  int32x4_t result() const { return vpaddq_s32(low, high); }
};

template <bool kBytes>
using QuarterDot = std::conditional_t<kBytes, ByteDot, NibbleDot>;

#endif

template <class Format, int R, int T>
class LaneTile {
 public:
  static constexpr int kQuarters = R;

  LaneTile() {
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) sums_[t][r] = vdupq_n_f32(0);
    }
  }

  static ColumnPair<R> arrange(ColumnPair<R> pair) { return pair; }

  void begin(const Q80Rows& x, size_t index) {
    quants_ = x.quants + index * kBlock;
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) dots_[t][r].begin(Format::start(x, index + t));
    }
  }

  template <int K>
  void add(const ColumnPair<R>& w) {
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      const int8x16_t a = vld1q_s8(quants_ + t * kBlock + K / 2 * 16);
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) dots_[t][r].template add<K>(w.even[r], w.odd[r], a);
    }
  }

  void finish(const Q80Rows& x, size_t index, const uint16_t* scales, const uint16_t* minima) {
    DLLAMA_UNROLL
    for (int r = 0; r < R; r++) {
      const float32x4_t scale = load_f16_quarter(scales + 4 * r);
      DLLAMA_UNROLL
      for (int t = 0; t < T; t++) {
        const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(dots_[t][r].result()), x.scales[index + t]);
        sums_[t][r] = vfmaq_f32(sums_[t][r], scaled, scale);
      }
      if (Format::has_minimum) {
        const float32x4_t minimum = load_f16_quarter(minima + 4 * r);
        DLLAMA_UNROLL
        for (int t = 0; t < T; t++) sums_[t][r] = vfmaq_n_f32(sums_[t][r], minimum, x.scaled_sums[index + t]);
      }
    }
  }

  void result(F32x16* sums, int first_quarter) const {
    DLLAMA_UNROLL
    for (int t = 0; t < T; t++) {
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) sums[t].q[first_quarter + r] = sums_[t][r];
    }
  }

 private:
  const int8_t* quants_;
  QuarterDot<Format::is_byte> dots_[T][R];
  float32x4_t sums_[T][R];
};

}  // namespace

#ifdef DLLAMA_USE_I8MM
#include "matmul_i8mm.inl"
#endif

namespace {

// Quarters [first_quarter, first_quarter + Tile::kQuarters) of a group.
template <class Format, class Tile>
inline void sum_blocks(const MatmulArgs& args, const uint8_t* group, size_t first, int height, F32x16* sums,
                       int first_quarter) {
  const Q80Rows& x = args.x_q80;
  const int n_blocks = x.width / kBlock;
  Tile tile;
  for (int b = 0; b < n_blocks; b++) {
    const size_t index = first + static_cast<size_t>(b) * height;
    tile.begin(x, index);
    Format::multiply(group + quants_at(Format::kPair, b) + 16 * first_quarter, tile);
    const auto* scales = reinterpret_cast<const uint16_t*>(group + scales_at(Format::kPair, b)) + 4 * first_quarter;
    const auto* minima = reinterpret_cast<const uint16_t*>(group + minima_at(Format::kPair, b)) + 4 * first_quarter;
    tile.finish(x, index, scales, minima);
  }
  tile.result(sums, first_quarter);
}

#ifdef DLLAMA_USE_I8MM
template <class Format, int R, int T>
using Q80Tile = std::conditional_t<T % 2 == 0, MatrixTile<Format, R, T>, LaneTile<Format, R, T>>;
#else
template <class Format, int R, int T>
using Q80Tile = LaneTile<Format, R, T>;
#endif

// One group of 16 weight rows against T activation rows of one tile. `first` is the q80_index of the first of them in
// block 0, `height` the tile's.
template <class Format, int T>
inline void q80_tile(const MatmulArgs& args, const uint8_t* group, size_t first, int height, float* out, int n_valid) {
  // Two quarters at a time leave enough registers for four activation rows.
  constexpr int kQuarters = T < 4 ? 4 : 2;
  F32x16 sums[T];
  for (int quarter = 0; quarter < 4; quarter += kQuarters)
    sum_blocks<Format, Q80Tile<Format, kQuarters, T>>(args, group, first, height, sums, quarter);
  for (int t = 0; t < T; t++) store_outputs(out + t * args.out_stride, sums[t], n_valid);
}

}  // namespace
