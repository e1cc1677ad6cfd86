#version 450
#extension GL_GOOGLE_include_directive : require
// out[r] = activation(gate[r]) ∘ up[r], for gate and up of different number formats. A lane takes a quad.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32; // a multiple of 8
layout(constant_id = 1) const uint OUT = 0;
layout(constant_id = 2) const uint GELU = 0;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Gate { vec4 gate[]; };
layout(binding = 2) restrict readonly buffer Up { vec4 up[]; };
layout(binding = 3) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 4) restrict writeonly buffer OutScales { vec2 out_scales[]; };

layout(push_constant) uniform Shape {
    uint width;
    uint stride; // of gate and up, in quads
    uint out_words; // of a row
} shape;

shared vec4 staged[WORKGROUP];
#define STAGED(i) staged[i]
#include "numbers.glsl"
#include "q80.glsl"
#include "activation.glsl"

void main() {
    uint row = gl_WorkGroupID.y;
    uint i = gl_GlobalInvocationID.x;
    uint lane = gl_LocalInvocationID.x;
    bool mine = row < step_rows() && 4 * i < shape.width;
    if (mine) {
        vec4 g = gate[row * shape.stride + i];
        staged[lane] = vec4(activation(g.x), activation(g.y), activation(g.z), activation(g.w)) * up[row * shape.stride + i];
    }
    barrier();
    if (mine) {
        store_quad(lane, row, i, shape.out_words, shape.width);
    }
}
