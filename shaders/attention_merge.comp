#version 450
#extension GL_GOOGLE_include_directive : require
// Adds up what attention found in the parts of a row's positions. A workgroup takes a head of a row.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64;
layout(constant_id = 1) const uint OUT = 0;
layout(constant_id = 2) const uint HEAD_UNITS = 8; // head_dim / 8, rounded up

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Partials { float partials[]; };
layout(binding = 2) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 3) restrict writeonly buffer OutScales { vec2 out_scales[]; };

#include "attention_shape.glsl"
#include "numbers.glsl"

shared float merged[HEAD_UNITS * 8 + 24]; // whole blocks of 32
#define STAGED(i) vec4(merged[4 * (i)], merged[4 * (i) + 1], merged[4 * (i) + 2], merged[4 * (i) + 3])
#include "q80.glsl"

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint head = gl_WorkGroupID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= step_rows()) {
        return;
    }
    uint n_positions = step_position(row) + 1 - first_position(step_position(row));
    uint part_size = split_size(n_positions);
    uint n_parts = (n_positions + part_size - 1) / part_size;
    float largest = -3.0e38;
    for (uint part = 0; part < n_parts; part++) {
        largest = max(largest, partials[partial_at(row, head, part)]);
    }
    float total = 0;
    for (uint part = 0; part < n_parts; part++) {
        uint at = partial_at(row, head, part);
        total += exp(partials[at] - largest) * partials[at + 1];
    }
    for (uint d = lane; d < shape.head_dim; d += WORKGROUP) {
        float sum = 0;
        for (uint part = 0; part < n_parts; part++) {
            uint at = partial_at(row, head, part);
            sum += exp(partials[at] - largest) * partials[at + 2 + d];
        }
        if (OUT == OUT_F32) {
            out_words[row * shape.out_words + head * shape.head_dim + d] = floatBitsToUint(sum / total);
        } else {
            merged[d] = sum / total;
        }
    }
    if (OUT != OUT_F32) { // head_dim is a multiple of 32
        barrier();
        uint n_quads = shape.head_dim / 4;
        for (uint i = lane; i < n_quads; i += WORKGROUP) {
            store_quad(i, row, head * n_quads + i, shape.out_words, shape.n_heads * shape.head_dim);
        }
    }
}
