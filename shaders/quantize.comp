#version 450
#extension GL_GOOGLE_include_directive : require
// out[r] = x[r] as Q80, or as f32 rounded to it. A lane takes a quad.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32; // a multiple of 8
layout(constant_id = 1) const uint OUT = 1;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer X { vec4 x[]; };
layout(binding = 2) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 3) restrict writeonly buffer OutScales { vec2 out_scales[]; };

layout(push_constant) uniform Shape {
    uint width;
    uint x_stride; // in quads
    uint out_words; // of a row
} shape;

shared vec4 staged[WORKGROUP];
#define STAGED(i) staged[i]
#include "numbers.glsl"
#include "q80.glsl"

void main() {
    uint row = gl_WorkGroupID.y;
    uint i = gl_GlobalInvocationID.x;
    uint lane = gl_LocalInvocationID.x;
    bool mine = row < step_rows() && 4 * i < shape.width;
    if (mine) {
        staged[lane] = x[row * shape.x_stride + i];
    }
    barrier();
    if (mine) {
        store_quad(lane, row, i, shape.out_words, shape.width);
    }
}
