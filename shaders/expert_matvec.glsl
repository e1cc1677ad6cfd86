// out[r] = sum over j of weights[r][j] · (x[r][j] · down of expert ids[r][j]), over the experts of this dispatch.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 2) const uint TEAM = 32;
layout(constant_id = 3) const uint ROWS = 2; // weight rows of a team
layout(constant_id = 4) const uint ADDS = 0; // to what another dispatch has left in out
const uint BATCH_ROWS = 1;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Ids { uint ids[]; };
layout(binding = 2) restrict readonly buffer Choices { float choice_weights[]; };
layout(binding = 3) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 4) restrict readonly buffer Scales { uint scales[]; };
#ifdef INTEGER_DOT
layout(binding = 5) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 6) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 7) restrict buffer Out { float y[]; };
#else
layout(binding = 5) restrict readonly buffer X { vec4 x[]; };
layout(binding = 6) restrict buffer Out { float y[]; };
#endif

layout(push_constant) uniform Shape {
    uint n_rows;     // of an expert
    uint n_units;    // of a weight row
    uint x_stride;   // in elements of x[]
    uint out_stride; // in floats
    uint k;
    uint weight_stride;
    uint first_expert;
    uint n_experts;
} shape;

#include "matvec_rows.glsl"

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= step_rows()) {
        return;
    }
    uint first_row = (gl_WorkGroupID.x * (WORKGROUP / TEAM) + team_number()) * ROWS;
    clear_sums();
    for (uint choice = 0; choice < shape.k; choice++) {
        uint expert = ids[row * shape.k + choice] - shape.first_expert; // wraps below the first
        if (expert < shape.n_experts) {
            float factor = choice_weights[row * shape.weight_stride + choice];
            uint x_begin = row * shape.x_stride + choice * (shape.x_stride / shape.k);
            uint begin = expert * shape.n_rows;
            add_products(begin + first_row, begin + shape.n_rows - 1, x_begin, factor);
        }
    }
    sum_over_team();
    if (team_lane() == 0) {
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            if (first_row + r < shape.n_rows) {
                uint at = row * shape.out_stride + first_row + r;
                y[at] = sums[r] + (ADDS != 0 ? y[at] : 0);
            }
        }
    }
}
