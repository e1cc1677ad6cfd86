// x[r] += add[r]; out[r] = x[r] / sqrt(mean(x[r]²) + epsilon) · weight. A workgroup takes a row.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32; // a multiple of 8
layout(constant_id = 1) const uint OUT = 0;
layout(constant_id = 2) const uint ADDS = 0;
layout(constant_id = 3) const uint LOGIT_ROWS = 0;
layout(constant_id = 4) const uint GATHERS = 0; // only the rows that want logits, side by side

#include "step.glsl"
layout(binding = 1) restrict buffer X { vec4 x[]; };
layout(binding = 2) restrict readonly buffer Add { vec4 add[]; };
layout(binding = 3) restrict readonly buffer Weight { vec4 weight[]; };
layout(binding = 4) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 5) restrict writeonly buffer OutScales { vec2 out_scales[]; };

layout(push_constant) uniform Shape {
    uint width;
    uint x_stride; // in quads
    uint add_stride;
    uint out_words; // of a row
    float epsilon;
} shape;

#define N_SUMS 1
#define TEAM WORKGROUP
#include "team_sum.glsl"
shared vec4 staged[WORKGROUP];
#define STAGED(i) staged[i]
#include "numbers.glsl"
#include "q80.glsl"

void main() {
    uint out_row = gl_WorkGroupID.x;
    if (out_row >= (LOGIT_ROWS != 0 ? step_logit_rows() : step_rows())) {
        return;
    }
    uint row = GATHERS != 0 ? step_logit_row(out_row) : out_row;
    uint lane = gl_LocalInvocationID.x;
    uint n_quads = (shape.width + 3) / 4;
    float squares = 0;
    for (uint i = lane; i < n_quads; i += WORKGROUP) {
        vec4 value = x[row * shape.x_stride + i];
        if (ADDS != 0) {
            value += add[row * shape.add_stride + i];
            x[row * shape.x_stride + i] = value;
        }
        squares += dot(value, value);
    }
    sums[0] = squares;
    sum_over_team();
    float scale = inversesqrt(sums[0] / float(shape.width) + shape.epsilon);
    for (uint first = 0; first < n_quads; first += WORKGROUP) {
        uint i = first + lane;
        if (i < n_quads) {
            staged[lane] = x[row * shape.x_stride + i] * scale * weight[i];
        }
        if (OUT != OUT_F32) {
            barrier();
        }
        if (i < n_quads) {
            store_quad(lane, out_row, i, shape.out_words, shape.width);
        }
        if (OUT != OUT_F32) {
            barrier();
        }
    }
}
