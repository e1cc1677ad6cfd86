// Numbers as f16 for matrix units.
const float X_SCALE = 0.0625; // f16 ends at 65504; activations may be larger, and need no smaller steps
const float LARGEST = 65504.0;

// Bytes 0, 2, 1, 3 of a word, those bits of them that `mask` keeps: as the last bits of halves that `magic` begins.
f16vec4 bytes_as_halves(uint word, uint mask, uint magic) {
    return f16vec4(unpackFloat2x16((word & mask) | magic), unpackFloat2x16(((word >> 8) & mask) | magic));
}

uvec4 packed_halves(f16vec4 a, f16vec4 b) {
    return uvec4(packFloat2x16(a.xy), packFloat2x16(a.zw), packFloat2x16(b.xy), packFloat2x16(b.zw));
}
