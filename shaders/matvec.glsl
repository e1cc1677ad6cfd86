// out[n][out_column + r] = x[n] · weight row r, for BATCH_ROWS rows n, and the next BATCH_ROWS for each step along z.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 2) const uint TEAM = 32;
layout(constant_id = 3) const uint ROWS = 2; // weight rows of a team
layout(constant_id = 4) const uint BATCH_ROWS = 1;

layout(binding = 0) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 1) restrict readonly buffer Scales { uint scales[]; };
#ifdef INTEGER_DOT
layout(binding = 2) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 3) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 4) restrict writeonly buffer Out { float y[]; };
#else
layout(binding = 2) restrict readonly buffer X { vec4 x[]; };
layout(binding = 3) restrict writeonly buffer Out { float y[]; };
#endif

layout(push_constant) uniform Shape {
    uint n_rows;     // of the weight
    uint n_units;    // of a weight row
    uint x_stride;   // in elements of x[]
    uint out_stride; // in floats
    uint out_column;
} shape;

#include "matvec_rows.glsl"

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint first_row = (group * (WORKGROUP / TEAM) + team_number()) * ROWS;
    clear_sums();
    uint first_batch = gl_WorkGroupID.z * BATCH_ROWS;
    add_products(first_row, shape.n_rows - 1, first_batch * shape.x_stride, 1.0);
    sum_over_team();
    if (team_lane() == 0) {
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            if (first_row + r < shape.n_rows) {
                [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
                    uint at = (first_batch + n) * shape.out_stride + shape.out_column + first_row + r;
                    y[at] = sums[r * BATCH_ROWS + n];
                }
            }
        }
    }
}
