#ifndef NUMBERS
#define NUMBERS
// Number formats: f16 rounding and the blocks of Q80.

// Nearest even, as NumPy rounds; packHalf2x16 may round either way.
uint half_bits(float value) {
    uint bits = floatBitsToUint(value);
    uint sign = (bits >> 16) & 0x8000u;
    uint magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) {
        return sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u);
    }
    if (magnitude < 0x38800000u) { // a subnormal half counts steps of 2^-24
        return sign | uint(roundEven(uintBitsToFloat(magnitude) * 16777216.0));
    }
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
}

float rounded_to_half(float value) {
    return unpackHalf2x16(half_bits(value)).x;
}

uint pack_int8(ivec4 q) {
    return uint(q.x & 0xff) | (uint(q.y & 0xff) << 8) | (uint(q.z & 0xff) << 16) | (uint(q.w & 0xff) << 24);
}

// Bytes as the mantissas of 2^23 + byte: cheaper on most GPUs than converting integers.
vec4 biased_bytes(uint word) {
    uvec4 bytes = uvec4(word, word >> 8, word >> 16, word >> 24) & 0xffu;
    return uintBitsToFloat(bytes | 0x4b000000u);
}

// The four int8 of a word.
vec4 int8_values(uint word) {
    return biased_bytes(word ^ 0x80808080u) - 8388736.0;
}
#endif
