// 16 lanes in plain C++: the fallback for any processor, and what the other instruction sets are compared with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.hpp"

// The 16 lanes are loops already; unrolling those around them doubles the code and the time to compile it.
#define DLLAMA_UNROLL

namespace {

constexpr bool kHoldsBlock = false;  // whether a block of weights fits the registers beside the sums
constexpr int kMaxTokens = 4;     // activation rows a matmul keeps in registers
constexpr int kF32Tokens = 4;     // the same, where activations are f32
constexpr int kValueVectors = 1;  // columns of values, in vectors, that attention keeps in registers
constexpr int kKeyBlocks = 1;     // blocks of 16 keys that attention keeps in registers

struct F32x16 {
  float v[16];
};

#define DLLAMA_LANES(expression)          \
  F32x16 r;                               \
  for (int i = 0; i < 16; i++) r.v[i] = (expression); \
  return r

inline F32x16 load(const float* p) { DLLAMA_LANES(p[i]); }
inline void store(float* p, F32x16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F32x16 set1(float x) { DLLAMA_LANES(x); }
inline F32x16 add(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] + b.v[i]); }
inline F32x16 sub(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] - b.v[i]); }
inline F32x16 mul(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] * b.v[i]); }
inline F32x16 div(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] / b.v[i]); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { DLLAMA_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline F32x16 max(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F32x16 min(F32x16 a, F32x16 b) { DLLAMA_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F32x16 abs(F32x16 a) { DLLAMA_LANES(a.v[i] < 0 ? -a.v[i] : a.v[i]); }
inline F32x16 round(F32x16 a) { DLLAMA_LANES(std::nearbyintf(a.v[i])); }

// a * 2^n for integral n in [-126, 127].
inline F32x16 scale_by_power_of_2(F32x16 a, F32x16 n) {
  F32x16 r;
  for (int i = 0; i < 16; i++) {
    const int32_t exponent = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) : 0;  // NaN is no integer
    const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    r.v[i] = a.v[i] * power;
  }
  return r;
}

using dllama::bf16_to_f32;
using dllama::f16_to_f32;
using dllama::f32_to_f16;

inline F32x16 load_f16(const uint16_t* p) { DLLAMA_LANES(f16_to_f32(p[i])); }
inline F32x16 load_bf16(const uint16_t* p) { DLLAMA_LANES(bf16_to_f32(p[i])); }
inline F32x16 load_i8(const int8_t* p) { DLLAMA_LANES(static_cast<float>(p[i])); }
inline void store_f16(uint16_t* p, F32x16 a) {
  for (int i = 0; i < 16; i++) p[i] = f32_to_f16(a.v[i]);
}

// Sums and maxima fold 16 -> 8 -> 4 -> 2 -> 1 in the same order on every instruction set.
inline float reduce_add(F32x16 a) {
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
  return a.v[0];
}
inline float reduce_max(F32x16 a) {
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
  return a.v[0];
}
// Lane by lane, c where a > b and d elsewhere.
inline F32x16 pick_greater(F32x16 a, F32x16 b, F32x16 c, F32x16 d) { DLLAMA_LANES(a.v[i] > b.v[i] ? c.v[i] : d.v[i]); }
// Rounds to nearest even and stores 16 int8; returns the sum.
inline int store_i8(int8_t* p, F32x16 a) {
  int sum = 0;
  for (int i = 0; i < 16; i++) {
    p[i] = static_cast<int8_t>(std::nearbyintf(a.v[i]));
    sum += p[i];
  }
  return sum;
}

// 64 bytes of weights: bytes 4r..4r+3 belong to row r.
struct Bytes {
  uint8_t v[64];
};
inline Bytes load_bytes(const uint8_t* p) {
  Bytes b;
  std::memcpy(b.v, p, 64);
  return b;
}
inline Bytes low_nibbles(Bytes b) {
  for (uint8_t& x : b.v) x &= 15;
  return b;
}
inline Bytes high_nibbles(Bytes b) {
  for (uint8_t& x : b.v) x >>= 4;
  return b;
}
template <int J>
inline F32x16 unsigned_byte(Bytes b) {
  DLLAMA_LANES(static_cast<float>(b.v[4 * i + J]));
}
template <int J>
inline F32x16 signed_byte(Bytes b) {
  DLLAMA_LANES(static_cast<float>(static_cast<int8_t>(b.v[4 * i + J])));
}

// Adds 64 products of weights and four repeated activations to 64 sums; in this form compilers vectorize it.
template <class Sum, class Weight>
inline void add_products(Sum* __restrict sums, const Weight* __restrict weights, const int8_t* a) {
  const int16_t repeated[8] = {a[0], a[1], a[2], a[3], a[0], a[1], a[2], a[3]};
  for (int i = 0; i < 64; i += 8)
    for (int j = 0; j < 8; j++)
      sums[i + j] = static_cast<Sum>(sums[i + j] + static_cast<int16_t>(weights[i + j]) * repeated[j]);
}

template <class Sum>
inline F32x16 sums_of_four(const Sum* sums, int32_t start) {
  DLLAMA_LANES(static_cast<float>(start + sums[4 * i] + sums[4 * i + 1] + sums[4 * i + 2] + sums[4 * i + 3]));
}

// Dot product of one block of nibbles (0..15) with int8 activations, one sum a row. A block's eight products a byte
// fit 16 bits (8 * 15 * 127 = 15240).
struct NibbleDot {
  int16_t sums[64] = {};
  int32_t start = 0;
  NibbleDot() = default;
  explicit NibbleDot(int32_t start) : start(start) {}
  void add(const Bytes& w, const int8_t* a) { add_products(sums, w.v, a); }
  F32x16 result() const { return sums_of_four(sums, start); }
};

// The same for int8 weights.
struct ByteDot {
  int32_t sums[64] = {};
  ByteDot() = default;
  explicit ByteDot(int32_t) {}
  static Bytes prepare(Bytes w) { return w; }
  void add(const Bytes& w, const int8_t* a) { add_products(sums, reinterpret_cast<const int8_t*>(w.v), a); }
  F32x16 result() const { return sums_of_four(sums, 0); }
};

#undef DLLAMA_LANES

}  // namespace
