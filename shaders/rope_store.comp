#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// A workgroup takes a head of a row: adds its bias, divides q and k by their root mean square, rotates them by the
// row's angles, each if asked to; writes q back, and k and v to the cache at (slot, position).

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 1) const uint HALF_SPLIT = 0; // pairs are (i, i + head_dim/2), else (2i, 2i + 1)
layout(constant_id = 2) const uint ROTATES = 1;
layout(constant_id = 3) const uint BIASES = 0;
layout(constant_id = 4) const uint NORMS = 0;
layout(constant_id = 5) const uint MAX_HEAD_DIM = 128;
layout(constant_id = 6) const uint CACHE = 0;

#include "step.glsl"
layout(binding = 1) restrict buffer Qkv { float qkv[]; };
layout(binding = 2) restrict readonly buffer Angles { float angles[]; };
layout(binding = 3) restrict writeonly buffer Keys { uint keys[]; };
layout(binding = 4) restrict writeonly buffer Values { uint values[]; };
layout(binding = 5) restrict readonly buffer Vectors { float vectors[]; }; // biases of a row of qkv; norms of q, of k
layout(binding = 6) restrict writeonly buffer KeyScales { float key_scales[]; };
layout(binding = 7) restrict writeonly buffer ValueScales { float value_scales[]; };

layout(push_constant) uniform Shape {
    uint n_heads;
    uint n_kv_heads;
    uint head_dim;
    uint qkv_stride;
    uint angle_stride;
    uint seq_len; // padded
    float epsilon;
} shape;

#define N_SUMS 1
#define TEAM WORKGROUP
#include "team_sum.glsl"
#include "numbers.glsl"
#include "kv_cache.glsl"

shared float head_values[MAX_HEAD_DIM];
shared float turned[MAX_HEAD_DIM];

// Element d of the head, rotated.
float rotated(uint d, uint row) {
    if (ROTATES == 0) {
        return head_values[d];
    }
    uint n = shape.head_dim / 2;
    bool second = HALF_SPLIT != 0 ? d >= n : (d & 1u) == 1;
    uint angle = HALF_SPLIT != 0 ? d % n : d / 2;
    uint partner = HALF_SPLIT != 0 ? (second ? d - n : d + n) : d ^ 1u;
    float cosine = angles[row * shape.angle_stride + angle];
    float sine = angles[row * shape.angle_stride + n + angle];
    return head_values[d] * cosine + (second ? head_values[partner] : -head_values[partner]) * sine;
}

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint head = gl_WorkGroupID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= step_rows()) {
        return;
    }
    uint begin = row * shape.qkv_stride + head * shape.head_dim;
    bool is_value = head >= shape.n_heads + shape.n_kv_heads;
    float squares = 0;
    for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
        float value = qkv[begin + d];
        if (BIASES != 0) {
            value += vectors[head * shape.head_dim + d];
        }
        head_values[d] = value;
        squares += value * value;
    }
    if (NORMS != 0 && !is_value) {
        sums[0] = squares;
        sum_over_team();
        float scale = inversesqrt(sums[0] / float(shape.head_dim) + shape.epsilon);
        uint norm = BIASES != 0 ? (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim : 0;
        norm += head < shape.n_heads ? 0 : shape.head_dim;
        for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
            head_values[d] *= scale * vectors[norm + d];
        }
    }
    barrier();
    for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
        float value = is_value ? head_values[d] : rotated(d, row);
        if (head < shape.n_heads) {
            qkv[begin + d] = value;
        } else {
            turned[d] = value;
        }
    }
    if (head < shape.n_heads) {
        return;
    }
    barrier();
    uint kv_row = step_slot(row) * shape.n_kv_heads + (head - shape.n_heads) % shape.n_kv_heads;
    uint head_units = (shape.head_dim + 7) / 8;
    uint position = step_position(row);
    uint word_elements = CACHE == CACHE_F32 ? 1 : CACHE == CACHE_Q80 ? 4 : 2;
    for (uint i = lane; i < shape.head_dim / word_elements; i += WORKGROUP) {
        uint d = i * word_elements;
        uint word;
        if (CACHE == CACHE_F32) {
            word = floatBitsToUint(turned[d]);
        } else if (CACHE == CACHE_F16) {
            word = half_bits(turned[d]) | (half_bits(turned[d + 1]) << 16);
        } else { // head_dim is a multiple of 32
            float largest = 0;
            for (uint e = d & ~31u; e < (d & ~31u) + 32; e++) {
                largest = max(largest, abs(turned[e]));
            }
            float scale = largest / 127.0;
            float inverse = 1.0 / scale;
            inverse = scale > 0 && !isinf(inverse) ? inverse : 0.0;
            word = pack_int8(ivec4(roundEven(vec4(turned[d], turned[d + 1], turned[d + 2], turned[d + 3]) * inverse)));
            if ((d & 31u) == 0) {
                uint at = cache_scale(kv_row, shape.seq_len, head_units, position, d / 8);
                if (is_value) {
                    value_scales[at] = rounded_to_half(scale);
                } else {
                    key_scales[at] = rounded_to_half(scale);
                }
            }
        }
        uint unit_words = 8 / word_elements;
        if (is_value) {
            uint unit = value_unit(kv_row, shape.seq_len, head_units, position, d / 8);
            values[unit * unit_words + i % unit_words] = word;
        } else {
            uint unit = key_unit(kv_row, shape.seq_len, head_units, position, d / 8);
            keys[unit * unit_words + i % unit_words] = word;
        }
    }
}
