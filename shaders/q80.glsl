// Stores numbers as f32, as f32 rounded to Q80, or as Q80. The includer declares OUT (one of these), `out_words`
// (uint[]) and `out_scales` (vec2[]), and defines STAGED(i): quad i of the numbers, in shared memory.
//
// Q80: int8 in rows of whole words; a vec2 (d, d · sum of the quants) for each block of 32 = 8 quads.
const uint OUT_F32 = 0;
const uint OUT_ROUNDED = 1;
const uint OUT_Q80 = 2;

// Quad `quad` of row `row`, which is STAGED(place); a block starts at a multiple of 8 in both countings.
// row_words: words from one row to the next; width: numbers of a row that exist (a multiple of 32 unless OUT_F32).
void store_quad(uint place, uint row, uint quad, uint row_words, uint width) {
    vec4 own = STAGED(place);
    if (OUT == OUT_F32) {
        uint at = row * row_words + 4 * quad;
        for (uint c = 0; c < 4; c++) {
            if (4 * quad + c < width) {
                out_words[at + c] = floatBitsToUint(own[c]);
            }
        }
        return;
    }
    vec4 largest = vec4(0);
    for (uint i = 0; i < 8; i++) {
        largest = max(largest, abs(STAGED((place & ~7u) + i)));
    }
    float scale = max(max(largest.x, largest.y), max(largest.z, largest.w)) / 127.0;
    float inverse = 1.0 / scale;
    inverse = scale > 0 && !isinf(inverse) ? inverse : 0.0;
    float stored = rounded_to_half(scale);
    vec4 quants = roundEven(own * inverse);
    if (OUT == OUT_ROUNDED) {
        uvec4 words = floatBitsToUint(quants * stored);
        for (uint c = 0; c < 4; c++) {
            out_words[row * row_words + 4 * quad + c] = words[c];
        }
        return;
    }
    out_words[row * row_words + quad] = pack_int8(ivec4(quants));
    if ((quad & 7u) == 0) {
        float sum = 0;
        for (uint i = 0; i < 8; i++) {
            sum += dot(roundEven(STAGED(place + i) * inverse), vec4(1));
        }
        out_scales[(row * row_words + quad) / 8] = vec2(stored, stored * sum);
    }
}
