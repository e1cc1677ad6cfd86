#version 450
#extension GL_GOOGLE_include_directive : require
// Rotates q in place; stores rotated k, and v, in the cache at (slot, position) of each row. A lane takes a pair of q,
// or two neighbouring elements of k or v.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 1) const uint HALF_SPLIT = 0; // pairs are (i, i + head_dim/2), else (2i, 2i + 1)

#include "step.glsl"
layout(binding = 1) restrict buffer Qkv { float qkv[]; };
layout(binding = 2) restrict readonly buffer Angles { float angles[]; };
layout(binding = 3) restrict writeonly buffer Keys { uint keys[]; };
layout(binding = 4) restrict writeonly buffer Values { uint values[]; };

layout(push_constant) uniform Shape {
    uint n_heads;
    uint n_kv_heads;
    uint head_dim;
    uint qkv_stride;
    uint angle_stride;
    uint seq_len; // padded
} shape;

#include "numbers.glsl"
#include "kv_cache.glsl"

// Element d of the head that begins at `head`, rotated.
float rotated(uint head, uint d, uint row) {
    uint n = shape.head_dim / 2;
    bool second = HALF_SPLIT != 0 ? d >= n : (d & 1u) == 1;
    uint angle = HALF_SPLIT != 0 ? d % n : d / 2;
    uint partner = HALF_SPLIT != 0 ? (second ? d - n : d + n) : d ^ 1u;
    float cosine = angles[row * shape.angle_stride + angle];
    float sine = angles[row * shape.angle_stride + n + angle];
    float other = qkv[head + partner];
    return qkv[head + d] * cosine + (second ? other : -other) * sine;
}

void main() {
    uint row = gl_WorkGroupID.y;
    uint n = shape.head_dim / 2;
    uint item = gl_GlobalInvocationID.x;
    if (row >= step_rows() || item >= (shape.n_heads + 2 * shape.n_kv_heads) * n) {
        return;
    }
    uint head = item / n;
    uint i = item % n;
    uint begin = row * shape.qkv_stride + head * shape.head_dim;
    if (head < shape.n_heads) {
        uint a = HALF_SPLIT != 0 ? i : 2 * i;
        uint b = HALF_SPLIT != 0 ? i + n : 2 * i + 1;
        vec2 turned = vec2(rotated(begin, a, row), rotated(begin, b, row));
        qkv[begin + a] = turned.x;
        qkv[begin + b] = turned.y;
        return;
    }
    uint kv_head = head - shape.n_heads;
    uint head_units = (shape.head_dim + 7) / 8;
    uint position = step_position(row);
    uint unit = i / 4;
    uint word = i % 4;
    if (kv_head < shape.n_kv_heads) {
        uint kv_row = step_slot(row) * shape.n_kv_heads + kv_head;
        uint pair = half_bits(rotated(begin, 2 * i, row)) | (half_bits(rotated(begin, 2 * i + 1, row)) << 16);
        keys[4 * key_unit(kv_row, shape.seq_len, head_units, position, unit) + word] = pair;
    } else {
        uint kv_row = step_slot(row) * shape.n_kv_heads + kv_head - shape.n_kv_heads;
        uint pair = half_bits(qkv[begin + 2 * i]) | (half_bits(qkv[begin + 2 * i + 1]) << 16);
        values[4 * value_unit(kv_row, shape.seq_len, head_units, position, unit) + word] = pair;
    }
}
