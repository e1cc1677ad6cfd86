// Packed weights, dllama_gpu/vulkan/weights.py: rows of units of 16 bytes, scales apart from them.
//
// type   columns of a unit   scales
// F32    4                   -
// F16    8                   -
// BF16   8                   -
// Q40    32                  one half a unit
// Q41    32                  two halves a unit: scale, minimum
// Q80    16                  one half for two units
//
// A unit's columns are read as quads of 4: quad k of unit u is columns 4·(u·QUADS + k) .. + 3.
// The includer declares `weights` (uvec4[]) and `scales` (uint[]).
#include "numbers.glsl"

const uint F32 = 0;
const uint F16 = 1;
const uint BF16 = 2;
const uint Q40 = 3;
const uint Q41 = 4;
const uint Q80 = 5;

layout(constant_id = 1) const uint TYPE = Q40;
const bool NIBBLES = TYPE == Q40 || TYPE == Q41;
const bool HALVES = TYPE == F16 || TYPE == BF16;
const uint QUADS = NIBBLES ? 8 : TYPE == Q80 ? 4 : HALVES ? 2 : 1;

// Quad k of a unit, not yet scaled.
vec4 weight_quad(uvec4 unit, uint k) {
    if (NIBBLES) {
        uint word = k < 4 ? unit[k] & 0x0f0f0f0fu : (unit[k - 4] >> 4) & 0x0f0f0f0fu;
        return biased_bytes(word) - (TYPE == Q40 ? 8388616.0 : 8388608.0);
    }
    if (TYPE == Q80) {
        return int8_values(unit[k]);
    }
    if (TYPE == F16) {
        return vec4(unpackHalf2x16(unit[2 * k]), unpackHalf2x16(unit[2 * k + 1]));
    }
    if (TYPE == BF16) {
        uvec4 bits = uvec4(unit[2 * k] << 16, unit[2 * k], unit[2 * k + 1] << 16, unit[2 * k + 1]);
        return uintBitsToFloat(bits & 0xffff0000u);
    }
    return uintBitsToFloat(unit);
}

// Scale and minimum of a unit, given the unit's number in the matrix.
vec2 weight_scale(uint unit) {
    if (TYPE == Q40) {
        return vec2(unpackHalf2x16(scales[unit >> 1])[unit & 1], 0);
    }
    if (TYPE == Q80) {
        return vec2(unpackHalf2x16(scales[unit >> 2])[(unit >> 1) & 1], 0);
    }
    return TYPE == Q41 ? unpackHalf2x16(scales[unit]) : vec2(1, 0);
}
