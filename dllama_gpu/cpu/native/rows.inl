// Row-wise kernels: RMS norm, quantization, SwiGLU and GeGLU, f16 conversion; needs one simd_*.hpp included before.

namespace {

// Relative error below 2e-7 for x in [-87, 88]; smaller x give about 1e-38, larger ones 1.6e38.
inline F32x16 exp(F32x16 x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));  // in this order, what is no number stays none on all processors
  const F32x16 n = round(mul(x, set1(1.44269504088896341f)));
  // ln 2 in two parts, so that n * ln 2 is exact in the first.
  F32x16 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  return scale_by_power_of_2(p, n);
}

// The C library's exponential differs from system to system in the last bit; nodes of a cluster must not.
inline float exp_of(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

inline F32x16 load_up_to_16(const float* p, int n) {
  if (n >= 16) return load(p);
  float lanes[16] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}

inline void store_up_to_16(float* p, F32x16 a, int n) {
  if (n >= 16) {
    store(p, a);
    return;
  }
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}

// 32 values -> one Q80 block: scale = max|x| / 127 rounded to f16, quant = round(x times the reciprocal of the
// unrounded scale), as the codec in model/codecs.py.
inline void quantize_block(F32x16 lo, F32x16 hi, const Q80Rows& out, size_t index) {
  const float scale = reduce_max(max(abs(lo), abs(hi))) / 127.0f;
  uint16_t halves[16];
  float rounded[16];
  store_f16(halves, set1(scale));
  store(rounded, load_f16(halves));
  // Blocks too small for an f16 scale are zero, as is a block of zeros.
  const F32x16 reciprocal = set1(1.0f / scale);
  int sum = 0;
  if (rounded[0] > 0) {
    sum = store_i8(out.quants + index * kBlock, mul(lo, reciprocal));
    sum += store_i8(out.quants + index * kBlock + 16, mul(hi, reciprocal));
  } else {
    for (int i = 0; i < kBlock; i++) out.quants[index * kBlock + i] = 0;
  }
  out.scales[index] = rounded[0];
  out.sums_times_minus8[index] = -8 * sum;
  out.scaled_sums[index] = rounded[0] * static_cast<float>(sum);
}

void store_row(const float* x, int n, const RowOutput& out, int out_row, int column) {
  if (out.f32) {
    float* row = out.f32 + static_cast<size_t>(out_row) * out.width + column;
    for (int i = 0; i < n; i += 16) store_up_to_16(row + i, load_up_to_16(x + i, n - i), n - i);
    return;
  }
  for (int i = 0; i < n; i += kBlock)
    quantize_block(load(x + i), load(x + i + 16), out.q80,
                   q80_index(out.q80, out_row, (column + i) / kBlock, out.n_rows));
}

void rms_norm(float* x, const float* added, const float* weight, float epsilon, int width, const RowOutput& out,
              int out_row) {
  F32x16 squares = set1(0);
  for (int i = 0; i < width; i += 16) {
    F32x16 v = load_up_to_16(x + i, width - i);
    if (added) {
      v = add(v, load_up_to_16(added + i, width - i));
      store_up_to_16(x + i, v, width - i);
    }
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(width);
  // A row with NaN or infinity stays one: quantizing would hide what damaged weights have done.
  const bool finite = mean - mean == 0;
  const F32x16 scale = set1(1.0f / std::sqrt(mean + epsilon));
  if (out.f32) {
    float* row = out.f32 + static_cast<size_t>(out_row) * out.width;
    for (int i = 0; i < width; i += 16) {
      const F32x16 v = mul(mul(load_up_to_16(x + i, width - i), scale), load_up_to_16(weight + i, width - i));
      store_up_to_16(row + i, v, width - i);
    }
    return;
  }
  for (int i = 0; i < width; i += kBlock) {
    const F32x16 lo = mul(mul(load(x + i), scale), load(weight + i));
    const F32x16 hi = mul(mul(load(x + i + 16), scale), load(weight + i + 16));
    const size_t index = q80_index(out.q80, out_row, i / kBlock, out.n_rows);
    quantize_block(lo, hi, out.q80, index);
    if (!finite) out.q80.scales[index] = out.q80.scaled_sums[index] = NAN;
  }
}

void silu_mul(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i += 16) {
    const F32x16 g = load_up_to_16(gate + i, n - i);
    const F32x16 denominator = add(set1(1.0f), exp(sub(set1(0.0f), g)));
    store_up_to_16(gate + i, mul(div(g, denominator), load_up_to_16(up + i, n - i)), n - i);
  }
}

// x * (1 + tanh(u)) / 2 = x / (1 + exp(-2u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3).
void gelu_mul(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i += 16) {
    const F32x16 g = load_up_to_16(gate + i, n - i);
    const F32x16 cubic = fma(mul(mul(g, g), g), set1(0.044715f), g);
    const F32x16 denominator = add(set1(1.0f), exp(mul(cubic, set1(-1.5957691216057308f))));
    store_up_to_16(gate + i, mul(div(g, denominator), load_up_to_16(up + i, n - i)), n - i);
  }
}

void f32_to_f16_row(const float* x, uint16_t* out, int n) {
  for (int i = 0; i < n; i += 16) {
    uint16_t halves[16];
    store_f16(halves, load_up_to_16(x + i, n - i));
    for (int j = 0; j < 16 && i + j < n; j++) out[i + j] = halves[j];
  }
}

}  // namespace
