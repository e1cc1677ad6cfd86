// 16 lanes in one 512-bit register; dot products by VPDPBUSD. Included by one translation unit only.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 header triggers these (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr bool kHoldsBlock = true;  // whether a block of weights fits the registers beside the sums
constexpr int kMaxTokens = 16;    // activation rows a matmul keeps in registers
constexpr int kF32Tokens = 4;     // the same, where activations are f32
constexpr int kValueVectors = 4;  // columns of values, in vectors, that attention keeps in registers
constexpr int kKeyBlocks = 4;     // blocks of 16 keys that attention keeps in registers

struct F32x16 {
  __m512 v;
};

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for integral n in [-126, 127].
inline F32x16 scale_by_power_of_2(F32x16 a, F32x16 n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(exponent))};
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_f16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Sums and maxima fold 16 -> 8 -> 4 -> 2 -> 1 in the same order on every instruction set.
inline float reduce_add(F32x16 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
// Lane by lane, c where a > b and d elsewhere.
inline F32x16 pick_greater(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), d.v, c.v)};
}
// Rounds to nearest even and stores 16 int8; returns the sum.
inline int store_i8(int8_t* p, F32x16 a) {
  const __m512i q = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(q));
  return _mm512_reduce_add_epi32(q);
}

// 64 bytes of weights: lane r holds four bytes of row r.
struct Bytes {
  __m512i v;
};
inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes low_nibbles(Bytes b) { return {_mm512_and_si512(b.v, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(Bytes b) {
  return {_mm512_and_si512(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(15))};
}
template <int J>
inline F32x16 unsigned_byte(Bytes b) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(b.v, 8 * J), _mm512_set1_epi32(255)))};
}
template <int J>
inline F32x16 signed_byte(Bytes b) {
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b.v, 24 - 8 * J), 24))};
}

inline __m512i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// Dot product of one block of nibbles (0..15) with int8 activations, one sum a row.
struct NibbleDot {
  __m512i sum;
  NibbleDot() = default;
  explicit NibbleDot(int32_t start) : sum(_mm512_set1_epi32(start)) {}
  void add(Bytes w, const int8_t* a) { sum = _mm512_dpbusd_epi32(sum, w.v, broadcast4(a)); }
  F32x16 result() const { return {_mm512_cvtepi32_ps(sum)}; }
};

// Both nibbles of packed bytes against one activation row. The high ones stay where they are and count 16 fold, which spares
// a shift for every load.
#define DLLAMA_NIBBLE_ROW
struct NibbleRow {
  __m512i sum, sixteenfold = _mm512_setzero_si512();
  explicit NibbleRow(int32_t start) : sum(_mm512_set1_epi32(start)) {}
  void add(Bytes packed, const int8_t* low, const int8_t* high) {
    const __m512i high_nibbles_in_place = _mm512_and_si512(packed.v, _mm512_set1_epi8(static_cast<char>(0xF0)));
    sum = _mm512_dpbusd_epi32(sum, low_nibbles(packed).v, broadcast4(low));
    sixteenfold = _mm512_dpbusd_epi32(sixteenfold, high_nibbles_in_place, broadcast4(high));
  }
  F32x16 result() const { return {_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_srai_epi32(sixteenfold, 4)))}; }
};

// The same for int8 weights. VPDPBUSD wants them unsigned: they are raised by 128, and the start makes up for it.
struct ByteDot {
  __m512i sum;
  ByteDot() = default;
  explicit ByteDot(int32_t sums_times_minus8) : sum(_mm512_set1_epi32(16 * sums_times_minus8)) {}
  static Bytes prepare(Bytes w) { return {_mm512_xor_si512(w.v, _mm512_set1_epi8(-128))}; }
  void add(Bytes w, const int8_t* a) { sum = _mm512_dpbusd_epi32(sum, w.v, broadcast4(a)); }
  F32x16 result() const { return {_mm512_cvtepi32_ps(sum)}; }
};

}  // namespace
