// 16 lanes in four 128-bit registers. Baseline ARMv8.0; the including file may define DLLAMA_USE_DOTPROD (SDOT) and
// DLLAMA_USE_I8MM (SMMLA, with SDOT). Included by one translation unit an instruction set.
// The tiles of the Q80 matmul are ARM's own, in matmul_neon.inl: there are 32 registers, but 16 lanes take four.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <type_traits>

#define DLLAMA_USE_NEON

namespace {

constexpr int kMaxTokens = 4;     // activation rows a matmul keeps in registers
constexpr int kF32Tokens = 2;     // the same, where activations are f32
constexpr int kValueVectors = 1;  // columns of values, in vectors, that attention keeps in registers
constexpr int kKeyBlocks = 1;     // blocks of 16 keys that attention keeps in registers

struct F32x16 {
  float32x4_t q[4];
};

// Applies f to the numbers of the four quarters.
template <class F>
inline F32x16 quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline F32x16 load(const float* p) { return quarters([&](int i) { return vld1q_f32(p + 4 * i); }); }
inline void store(float* p, F32x16 a) {
  vst1q_f32(p, a.q[0]);
  vst1q_f32(p + 4, a.q[1]);
  vst1q_f32(p + 8, a.q[2]);
  vst1q_f32(p + 12, a.q[3]);
}
inline F32x16 set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
inline F32x16 add(F32x16 a, F32x16 b) { return quarters([&](int i) { return vaddq_f32(a.q[i], b.q[i]); }); }
inline F32x16 sub(F32x16 a, F32x16 b) { return quarters([&](int i) { return vsubq_f32(a.q[i], b.q[i]); }); }
inline F32x16 mul(F32x16 a, F32x16 b) { return quarters([&](int i) { return vmulq_f32(a.q[i], b.q[i]); }); }
inline F32x16 div(F32x16 a, F32x16 b) { return quarters([&](int i) { return vdivq_f32(a.q[i], b.q[i]); }); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return quarters([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
inline F32x16 max(F32x16 a, F32x16 b) { return quarters([&](int i) { return vmaxq_f32(a.q[i], b.q[i]); }); }
inline F32x16 min(F32x16 a, F32x16 b) { return quarters([&](int i) { return vminq_f32(a.q[i], b.q[i]); }); }
inline F32x16 abs(F32x16 a) { return quarters([&](int i) { return vabsq_f32(a.q[i]); }); }
inline F32x16 round(F32x16 a) { return quarters([&](int i) { return vrndnq_f32(a.q[i]); }); }
inline float32x4_t power_of_2(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
// a * 2^n for integral n in [-126, 127].
inline F32x16 scale_by_power_of_2(F32x16 a, F32x16 n) {
  return quarters([&](int i) { return vmulq_f32(a.q[i], power_of_2(n.q[i])); });
}

inline float32x4_t load_f16_quarter(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F32x16 load_f16(const uint16_t* p) { return quarters([&](int i) { return load_f16_quarter(p + 4 * i); }); }
inline void store_f16_quarter(uint16_t* p, float32x4_t a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
inline void store_f16(uint16_t* p, F32x16 a) {
  store_f16_quarter(p, a.q[0]);
  store_f16_quarter(p + 4, a.q[1]);
  store_f16_quarter(p + 8, a.q[2]);
  store_f16_quarter(p + 12, a.q[3]);
}
inline F32x16 load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline F32x16 load_bf16(const uint16_t* p) {
  return quarters([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p + 4 * i)), 16)); });
}
// Sums and maxima fold 16 -> 8 -> 4 -> 2 -> 1 in the same order on every instruction set.
inline float reduce_add(F32x16 a) {
  const float32x4_t quarter = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t pair = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
inline float reduce_max(F32x16 a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.q[0], a.q[2]), vmaxq_f32(a.q[1], a.q[3])));
}
// Lane by lane, c where a > b and d elsewhere.
inline F32x16 pick_greater(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  return quarters([&](int i) { return vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), c.q[i], d.q[i]); });
}
// Rounds to nearest even and stores 16 int8; returns the sum.
inline int store_i8(int8_t* p, F32x16 a) {
  const int32x4_t q0 = vcvtnq_s32_f32(a.q[0]), q1 = vcvtnq_s32_f32(a.q[1]);
  const int32x4_t q2 = vcvtnq_s32_f32(a.q[2]), q3 = vcvtnq_s32_f32(a.q[3]);
  const int16x8_t lo = vcombine_s16(vqmovn_s32(q0), vqmovn_s32(q1));
  const int16x8_t hi = vcombine_s16(vqmovn_s32(q2), vqmovn_s32(q3));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
  return vaddvq_s32(vaddq_s32(vaddq_s32(q0, q2), vaddq_s32(q1, q3)));
}

// 64 bytes of weights: 32-bit lane r holds four bytes of row r, four rows a register.
struct Bytes {
  uint8x16_t q[4];
};
inline Bytes load_bytes(const uint8_t* p) {
  return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
inline Bytes low_nibbles(Bytes b) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {{vandq_u8(b.q[0], mask), vandq_u8(b.q[1], mask), vandq_u8(b.q[2], mask), vandq_u8(b.q[3], mask)}};
}
inline Bytes high_nibbles(Bytes b) {
  return {{vshrq_n_u8(b.q[0], 4), vshrq_n_u8(b.q[1], 4), vshrq_n_u8(b.q[2], 4), vshrq_n_u8(b.q[3], 4)}};
}
// Byte J of each row goes to the top of its lane, and down again with zeros or with its sign.
template <int J>
inline F32x16 unsigned_byte(Bytes b) {
  return quarters([&](int i) {
    return vcvtq_f32_u32(vshrq_n_u32(vshlq_n_u32(vreinterpretq_u32_u8(b.q[i]), 24 - 8 * J), 24));
  });
}
template <int J>
inline F32x16 signed_byte(Bytes b) {
  return quarters([&](int i) {
    return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_u8(b.q[i]), 24 - 8 * J), 24));
  });
}

}  // namespace
