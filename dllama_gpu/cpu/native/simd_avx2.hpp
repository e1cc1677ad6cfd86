// 16 lanes in two 256-bit registers. Dot products by VPMADDUBSW, or by VPDPBUSD where the including file defines
// DLLAMA_USE_AVXVNNI. Included by one translation unit an instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr bool kHoldsBlock = false;  // whether a block of weights fits the registers beside the sums
constexpr int kMaxTokens = 4;     // activation rows a matmul keeps in registers
constexpr int kF32Tokens = 4;     // the same, where activations are f32
constexpr int kValueVectors = 1;  // columns of values, in vectors, that attention keeps in registers
constexpr int kKeyBlocks = 1;     // blocks of 16 keys that attention keeps in registers

struct F32x16 {
  __m256 lo, hi;
};

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32x16 round(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 scale_by_power_of_2(__m256 a, __m256 n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
// a * 2^n for integral n in [-126, 127].
inline F32x16 scale_by_power_of_2(F32x16 a, F32x16 n) {
  return {scale_by_power_of_2(a.lo, n.lo), scale_by_power_of_2(a.hi, n.hi)};
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_f16(uint16_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 load_bf16_half(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline __m256 load_i8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F32x16 load_i8(const int8_t* p) { return {load_i8_half(p), load_i8_half(p + 8)}; }
inline F32x16 load_bf16(const uint16_t* p) { return {load_bf16_half(p), load_bf16_half(p + 8)}; }
// Sums and maxima fold 16 -> 8 -> 4 -> 2 -> 1 in the same order on every instruction set.
inline float reduce_add(F32x16 a) {
  const __m256 half = _mm256_add_ps(a.lo, a.hi);
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline float reduce_max(F32x16 a) {
  const __m256 half = _mm256_max_ps(a.lo, a.hi);
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
// Lane by lane, c where a > b and d elsewhere.
inline F32x16 pick_greater(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  return {_mm256_blendv_ps(d.lo, c.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
          _mm256_blendv_ps(d.hi, c.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))};
}
// Rounds to nearest even and stores 16 int8; returns the sum.
inline int store_i8(int8_t* p, F32x16 a) {
  const __m256i lo = _mm256_cvtps_epi32(a.lo), hi = _mm256_cvtps_epi32(a.hi);
  // Packing works within 128-bit halves: put the four quarters back in order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  const __m256i half = _mm256_add_epi32(lo, hi);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
  return _mm_cvtsi128_si32(sum);
}

// 64 bytes of weights: 32-bit lane r holds four bytes of row r.
struct Bytes {
  __m256i lo, hi;
};
inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes low_nibbles(Bytes b) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(b.lo, mask), _mm256_and_si256(b.hi, mask)};
}
inline Bytes high_nibbles(Bytes b) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(b.lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b.hi, 4), mask)};
}
template <int J>
inline F32x16 unsigned_byte(Bytes b) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(b.lo, 8 * J), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(b.hi, 8 * J), mask))};
}
template <int J>
inline F32x16 signed_byte(Bytes b) {
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b.lo, 24 - 8 * J), 24)),
          _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b.hi, 24 - 8 * J), 24))};
}

inline __m256i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

#ifdef DLLAMA_USE_AVXVNNI

// Dot product of one block of nibbles (0..15) with int8 activations, one sum a row.
struct NibbleDot {
  __m256i lo, hi;
  NibbleDot() = default;
  explicit NibbleDot(int32_t start) : lo(_mm256_set1_epi32(start)), hi(lo) {}
  void add(Bytes w, const int8_t* a) {
    const __m256i x = broadcast4(a);
    lo = _mm256_dpbusd_avx_epi32(lo, w.lo, x);
    hi = _mm256_dpbusd_avx_epi32(hi, w.hi, x);
  }
  F32x16 result() const { return {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)}; }
};

// The same for int8 weights. VPDPBUSD wants them unsigned: they are raised by 128, and the start makes up for it.
struct ByteDot : NibbleDot {
  ByteDot() = default;
  explicit ByteDot(int32_t sums_times_minus8) : NibbleDot(16 * sums_times_minus8) {}
  static Bytes prepare(Bytes w) {
    const __m256i raise = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(w.lo, raise), _mm256_xor_si256(w.hi, raise)};
  }
};

#else

// Dot product of one block of nibbles (0..15) with int8 activations, one sum a row. A block's eight pair sums fit
// 16 bits (8 * 2 * 15 * 127 = 30480), so widening is done once a block.
struct NibbleDot {
  __m256i lo, hi;
  int32_t start;
  NibbleDot() = default;
  explicit NibbleDot(int32_t start) : lo(_mm256_setzero_si256()), hi(lo), start(start) {}
  void add(Bytes w, const int8_t* a) {
    const __m256i x = broadcast4(a);
    lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w.lo, x));
    hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w.hi, x));
  }
  F32x16 result() const {
    const __m256i ones = _mm256_set1_epi16(1), begin = _mm256_set1_epi32(start);
    return {_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(lo, ones), begin)),
            _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(hi, ones), begin))};
  }
};

// The same for int8 weights. |a| <= 127, so unsigned |w| * sign(a, w) pair sums fit 16 bits (2 * 128 * 127 = 32512).
struct ByteDot {
  __m256i lo, hi;
  ByteDot() = default;
  explicit ByteDot(int32_t) : lo(_mm256_setzero_si256()), hi(lo) {}
  static Bytes prepare(Bytes w) { return w; }
  void add(Bytes w, const int8_t* a) {
    const __m256i x = broadcast4(a), ones = _mm256_set1_epi16(1);
    const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(x, w.lo));
    const __m256i q = _mm256_maddubs_epi16(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(x, w.hi));
    lo = _mm256_add_epi32(lo, _mm256_madd_epi16(p, ones));
    hi = _mm256_add_epi32(hi, _mm256_madd_epi16(q, ones));
  }
  F32x16 result() const { return {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)}; }
};

#endif

}  // namespace
