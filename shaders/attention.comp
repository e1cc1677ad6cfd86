#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Causal attention of one row's query heads that share a KV head, over one part of the positions, tile by tile with a
// running softmax. Source: Dao, "FlashAttention-2" (2023).
//
// A tile is WORKGROUP positions. Scores: a lane for each position. Values: HEAD_UNITS lanes share a position and each
// sums 8 elements; teams of HEAD_UNITS lanes take positions in turn and are added up at the end.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64; // at least HEAD_UNITS
layout(constant_id = 1) const uint OUT = 0;
layout(constant_id = 2) const uint HEADS = 4; // query heads at a time
layout(constant_id = 3) const uint HEAD_UNITS = 8; // head_dim / 8, rounded up
layout(constant_id = 4) const uint SPLITS = 0; // store part results, for attention_merge
layout(constant_id = 5) const uint CACHE = 0;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Qkv { float qkv[]; };
layout(binding = 2) restrict readonly buffer Keys { uvec4 keys[]; };
layout(binding = 3) restrict readonly buffer Values { uvec4 values[]; };
layout(binding = 4) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 5) restrict writeonly buffer OutScales { vec2 out_scales[]; };
layout(binding = 6) restrict readonly buffer KeyScales { float key_scales[]; };
layout(binding = 7) restrict readonly buffer ValueScales { float value_scales[]; };

#include "attention_shape.glsl"
#include "kv_cache.glsl"
#include "numbers.glsl"

shared vec4 queries[HEADS * HEAD_UNITS * 2];
shared float scores[HEADS * WORKGROUP];
shared float slice_max[HEADS * 8];
shared vec4 gathered[WORKGROUP * 2];
shared float weight_sums[WORKGROUP];
shared vec4 result[HEAD_UNITS * 2 + 6]; // whole blocks of 8 quads
#define STAGED(i) result[i]
#include "q80.glsl"

const float LOWEST = -3.0e38;

// The 8 elements of a unit that `words` holds, all of it or, of Q80, half; of floats it is two.
void elements(uvec4 words, uvec4 more, uint unit, float scale, out vec4 first, out vec4 second) {
    if (CACHE == CACHE_F32) {
        first = uintBitsToFloat(words);
        second = uintBitsToFloat(more);
    } else if (CACHE == CACHE_Q80) {
        uvec2 half_of = (unit & 1u) == 0 ? words.xy : words.zw;
        first = int8_values(half_of.x) * scale;
        second = int8_values(half_of.y) * scale;
    } else {
        first = vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
        second = vec4(unpackHalf2x16(words.z), unpackHalf2x16(words.w));
    }
}

// Of 16 bytes, where a unit begins.
uint place_of(uint unit) {
    return CACHE == CACHE_F32 ? 2 * unit : CACHE == CACHE_Q80 ? unit / 2 : unit;
}

void key_elements(uint kv_row, uint position, uint unit, out vec4 first, out vec4 second) {
    uint at = key_unit(kv_row, shape.seq_len, HEAD_UNITS, position, unit);
    uvec4 words = keys[place_of(at)];
    uvec4 more = CACHE == CACHE_F32 ? keys[place_of(at) + 1] : words;
    float scale = 1;
    if (CACHE == CACHE_Q80) {
        scale = key_scales[cache_scale(kv_row, shape.seq_len, HEAD_UNITS, position, unit)];
    }
    elements(words, more, at, scale, first, second);
}

void value_elements(uint kv_row, uint position, uint unit, out vec4 first, out vec4 second) {
    uint at = value_unit(kv_row, shape.seq_len, HEAD_UNITS, position, unit);
    uvec4 words = values[place_of(at)];
    uvec4 more = CACHE == CACHE_F32 ? values[place_of(at) + 1] : words;
    float scale = 1;
    if (CACHE == CACHE_Q80) {
        scale = value_scales[cache_scale(kv_row, shape.seq_len, HEAD_UNITS, position, unit)];
    }
    elements(words, more, at, scale, first, second);
}

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.z;
    if (row >= step_rows()) {
        return;
    }
    uint head_groups = (shape.group + HEADS - 1) / HEADS;
    uint kv_head = gl_WorkGroupID.y / head_groups;
    // Heads [first, end) of this node; `first` may lie before the node's first head, where nothing is to be done.
    int first = int(kv_head * shape.group + gl_WorkGroupID.y % head_groups * HEADS) - int(shape.first_head);
    int end = min(first + int(HEADS), min(int(kv_head * shape.group + shape.group) - int(shape.first_head),
                                          int(shape.n_heads)));
    uint seen_from = first_position(step_position(row));
    uint n_positions = step_position(row) + 1 - seen_from;
    uint part = gl_WorkGroupID.x;
    uint part_size = SPLITS != 0 ? split_size(n_positions) : n_positions;
    uint begin = seen_from + part * part_size;
    uint stop = min(begin + part_size, seen_from + n_positions);
    if (end <= 0 || first >= end || begin >= stop) {
        return;
    }

    for (uint i = lane; i < HEADS * HEAD_UNITS * 2; i += WORKGROUP) {
        int head = first + int(i / (HEAD_UNITS * 2));
        uint d = i % (HEAD_UNITS * 2) * 4;
        vec4 quad = vec4(0);
        if (head >= 0 && head < end) {
            for (uint c = 0; c < 4; c++) {
                if (d + c < shape.head_dim) {
                    quad[c] = qkv[row * shape.qkv_stride + uint(head) * shape.head_dim + d + c] * shape.scale;
                }
            }
        }
        queries[i] = quad;
    }
    uint kv_row = step_slot(row) * shape.n_kv_heads + kv_head;
    uint my_unit = lane % HEAD_UNITS;
    uint my_team = lane / HEAD_UNITS;
    const uint n_teams = WORKGROUP / HEAD_UNITS;

    float largest[HEADS];
    float weight_sum[HEADS];
    vec4 sums[HEADS * 2];
    [[unroll]] for (uint h = 0; h < HEADS; h++) {
        largest[h] = LOWEST;
        weight_sum[h] = 0;
        sums[2 * h] = vec4(0);
        sums[2 * h + 1] = vec4(0);
    }
    for (uint tile = begin; tile < stop; tile += WORKGROUP) {
        barrier(); // queries are there, the last tile's scores are read
        float score[HEADS];
        [[unroll]] for (uint h = 0; h < HEADS; h++) {
            score[h] = 0;
        }
        uint position = tile + lane;
        if (position < stop) {
            for (uint unit = 0; unit < HEAD_UNITS; unit++) {
                vec4 a, b;
                key_elements(kv_row, position, unit, a, b);
                [[unroll]] for (uint h = 0; h < HEADS; h++) {
                    uint at = (h * HEAD_UNITS + unit) * 2;
                    score[h] += dot(queries[at], a) + dot(queries[at + 1], b);
                }
            }
        }
        [[unroll]] for (uint h = 0; h < HEADS; h++) {
            score[h] = position < stop ? score[h] : LOWEST;
            scores[h * WORKGROUP + lane] = score[h];
        }
        barrier();
        for (uint i = lane; i < HEADS * 8; i += WORKGROUP) { // the largest of an eighth of a tile
            float most = LOWEST;
            for (uint p = i % 8; p < WORKGROUP; p += 8) {
                most = max(most, scores[i / 8 * WORKGROUP + p]);
            }
            slice_max[i] = most;
        }
        barrier();
        [[unroll]] for (uint h = 0; h < HEADS; h++) {
            float most = largest[h];
            for (uint i = 0; i < 8; i++) {
                most = max(most, slice_max[8 * h + i]);
            }
            float shrink = exp(largest[h] - most);
            largest[h] = most;
            weight_sum[h] *= shrink;
            sums[2 * h] *= shrink;
            sums[2 * h + 1] *= shrink;
            scores[h * WORKGROUP + lane] = exp(score[h] - most);
        }
        barrier();
        if (my_team < n_teams) {
            uint n = min(WORKGROUP, stop - tile);
            for (uint p = my_team; p < n; p += n_teams) {
                vec4 a, b;
                value_elements(kv_row, tile + p, my_unit, a, b);
                [[unroll]] for (uint h = 0; h < HEADS; h++) {
                    float weight = scores[h * WORKGROUP + p];
                    weight_sum[h] += weight;
                    sums[2 * h] += weight * a;
                    sums[2 * h + 1] += weight * b;
                }
            }
        }
    }

    [[unroll]] for (uint h = 0; h < HEADS; h++) {
        int head = first + int(h);
        barrier();
        gathered[2 * lane] = sums[2 * h];
        gathered[2 * lane + 1] = sums[2 * h + 1];
        weight_sums[lane] = weight_sum[h];
        barrier();
        float total = 0;
        for (uint team = 0; team < n_teams; team++) {
            total += weight_sums[team * HEAD_UNITS];
        }
        for (uint i = lane; i < HEAD_UNITS * 2; i += WORKGROUP) {
            vec4 sum = vec4(0);
            for (uint team = 0; team < n_teams; team++) {
                sum += gathered[team * HEAD_UNITS * 2 + i];
            }
            result[i] = SPLITS != 0 ? sum : sum / total;
        }
        barrier();
        if (head < 0 || head >= end) {
            continue;
        }
        uint n_quads = (shape.head_dim + 3) / 4;
        if (SPLITS != 0) {
            uint at = partial_at(row, uint(head), part);
            if (lane == 0) {
                out_words[at] = floatBitsToUint(largest[h]);
                out_words[at + 1] = floatBitsToUint(total);
            }
            for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
                out_words[at + 2 + d] = floatBitsToUint(result[d / 4][d % 4]);
            }
        } else if (OUT == OUT_F32) {
            for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
                uint at = row * shape.out_words + uint(head) * shape.head_dim + d;
                out_words[at] = floatBitsToUint(result[d / 4][d % 4]);
            }
        } else { // head_dim is a multiple of 32
            for (uint i = lane; i < n_quads; i += WORKGROUP) {
                store_quad(i, row, uint(head) * n_quads + i, shape.out_words, shape.n_heads * shape.head_dim);
            }
        }
    }
}
