// Tiles of the Q80 matmul by SMMLA, which multiplies 2 weight rows with 2 activation rows over 8 columns; included by
// matmul_neon.inl.

namespace {

// R quarters against T activation rows, T even. The sums of quarter r and activation rows 2p, 2p+1 lie in two registers:
// [row 4r: 2p, 2p+1; row 4r+1: 2p, 2p+1] and the same of rows 4r+2, 4r+3. The arithmetic per output is LaneTile's.
template <class Format, int R, int T>
class MatrixTile {
 public:
  static constexpr int kQuarters = R;

  MatrixTile() {
    DLLAMA_UNROLL
    for (int p = 0; p < kPairs; p++) {
      DLLAMA_UNROLL
      for (int i = 0; i < 2 * R; i++) sums_[p][i] = vdupq_n_f32(0);
    }
  }

  // Eight columns of rows 4r, 4r+1 and of rows 4r+2, 4r+3.
  static ColumnPair<R> arrange(const ColumnPair<R>& chunks) {
    ColumnPair<R> rows;
    DLLAMA_UNROLL
    for (int r = 0; r < R; r++) {
      const uint32x4_t even = vreinterpretq_u32_u8(chunks.even[r]), odd = vreinterpretq_u32_u8(chunks.odd[r]);
      rows.even[r] = vreinterpretq_u8_u32(vzip1q_u32(even, odd));
      rows.odd[r] = vreinterpretq_u8_u32(vzip2q_u32(even, odd));
    }
    return rows;
  }

  void begin(const Q80Rows& x, size_t index) {
    DLLAMA_UNROLL
    for (int p = 0; p < kPairs; p++) {
      const size_t row = index + 2 * p;
      DLLAMA_UNROLL
      for (int half = 0; half < 2; half++) {
        const int64x2_t even = vreinterpretq_s64_s8(vld1q_s8(x.quants + row * kBlock + 16 * half));
        const int64x2_t odd = vreinterpretq_s64_s8(vld1q_s8(x.quants + (row + 1) * kBlock + 16 * half));
        quants_[p][2 * half] = vreinterpretq_s8_s64(vzip1q_s64(even, odd));
        quants_[p][2 * half + 1] = vreinterpretq_s8_s64(vzip2q_s64(even, odd));
      }
      const int32_t starts[2] = {Format::start(x, row), Format::start(x, row + 1)};
      const int32x4_t start = vcombine_s32(vld1_s32(starts), vld1_s32(starts));
      DLLAMA_UNROLL
      for (int i = 0; i < 2 * R; i++) dots_[p][i] = start;
    }
  }

  template <int K>
  void add(const ColumnPair<R>& w) {
    DLLAMA_UNROLL
    for (int p = 0; p < kPairs; p++) {
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) {
        dots_[p][2 * r] = vmmlaq_s32(dots_[p][2 * r], vreinterpretq_s8_u8(w.even[r]), quants_[p][K]);
        dots_[p][2 * r + 1] = vmmlaq_s32(dots_[p][2 * r + 1], vreinterpretq_s8_u8(w.odd[r]), quants_[p][K]);
      }
    }
  }

  void finish(const Q80Rows& x, size_t index, const uint16_t* scales, const uint16_t* minima) {
    DLLAMA_UNROLL
    for (int p = 0; p < kPairs; p++) {
      const float32x4_t activation_scales = both(x.scales + index + 2 * p);
      DLLAMA_UNROLL
      for (int i = 0; i < 2 * R; i++) {
        const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(dots_[p][i]), activation_scales);
        sums_[p][i] = vfmaq_f32(sums_[p][i], scaled, of_two_rows(scales, i));
      }
      if (Format::has_minimum) {
        const float32x4_t activation_sums = both(x.scaled_sums + index + 2 * p);
        DLLAMA_UNROLL
        for (int i = 0; i < 2 * R; i++)
          sums_[p][i] = vfmaq_f32(sums_[p][i], activation_sums, of_two_rows(minima, i));
      }
    }
  }

  void result(F32x16* sums, int first_quarter) const {
    DLLAMA_UNROLL
    for (int p = 0; p < kPairs; p++) {
      DLLAMA_UNROLL
      for (int r = 0; r < R; r++) {
        sums[2 * p].q[first_quarter + r] = vuzp1q_f32(sums_[p][2 * r], sums_[p][2 * r + 1]);
        sums[2 * p + 1].q[first_quarter + r] = vuzp2q_f32(sums_[p][2 * r], sums_[p][2 * r + 1]);
      }
    }
  }

 private:
  static constexpr int kPairs = T / 2;

  // Values of two activation rows, for each of two weight rows.
  static float32x4_t both(const float* p) {
    const float32x2_t pair = vld1_f32(p);
    return vcombine_f32(pair, pair);
  }
  // Values of weight rows 2i and 2i+1, for each of two activation rows.
  static float32x4_t of_two_rows(const uint16_t* halves, int i) {
    const float32x4_t quarter = load_f16_quarter(halves + i / 2 * 4);
    return i % 2 ? vzip2q_f32(quarter, quarter) : vzip1q_f32(quarter, quarter);
  }

  int8x16_t quants_[kPairs][4];  // columns 8K..8K+7 of both activation rows
  int32x4_t dots_[kPairs][2 * R];
  float32x4_t sums_[kPairs][2 * R];
};

}  // namespace
