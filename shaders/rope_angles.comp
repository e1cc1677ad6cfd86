#version 450
#extension GL_GOOGLE_include_directive : require
// out[r] = cos(position · f) · scale for every frequency f, then sin(position · f) · scale.
//
// A frequency is given in turns a position, as a 64-bit fraction (low word, high word): the product modulo 2^32 is
// then exact to 2^-32 of a turn at any position, where a float would have lost it. Built-in sine and cosine promise
// 2^-11 only, hence the polynomials.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Frequencies { uvec2 frequencies[]; };
layout(binding = 2) restrict writeonly buffer Out { float angles[]; };

layout(push_constant) uniform Shape {
    uint n_frequencies;
    uint out_stride;
    float scale;
} shape;

void main() {
    uint i = gl_GlobalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= step_rows() || i >= shape.n_frequencies) {
        return;
    }
    uint position = step_position(row);
    uvec2 frequency = frequencies[i];
    uint carried, low;
    umulExtended(frequency.x, position, carried, low);
    uint turn = frequency.y * position + carried;

    uint quadrant = (turn + 0x20000000u) >> 30;
    float x = float(int(turn - (quadrant << 30))) * 1.4629180792671596e-9; // 2 pi / 2^32: -pi/4 .. pi/4
    float s = x * x;
    float sine = x + x * s * (-1.6666667e-1 + s * (8.3333333e-3 + s * (-1.9841270e-4 + s * 2.7557319e-6)));
    float cosine = 1 - s * (0.5 - s * (4.1666667e-2 - s * (1.3888889e-3 - s * (2.4801587e-5 - s * 2.7557319e-7))));
    vec2 turned = (quadrant & 1u) == 0 ? vec2(cosine, sine) : vec2(-sine, cosine);
    turned = ((quadrant & 2u) == 0 ? turned : -turned) * shape.scale;
    angles[row * shape.out_stride + i] = turned.x;
    angles[row * shape.out_stride + shape.n_frequencies + i] = turned.y;
}
