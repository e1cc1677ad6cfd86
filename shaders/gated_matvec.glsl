// out[n] = activation(x[n] · gateᵀ) ∘ (x[n] · upᵀ) for BATCH_ROWS rows n, and the
// next BATCH_ROWS for each step along z; rows 2h and 2h + 1 of the weight are gate h and up h.
// A workgroup makes 32 numbers of each row: a block, should they be stored as Q80.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 2) const uint TEAM = 32;
layout(constant_id = 3) const uint ROWS = 2; // weight rows of a team at a time, even
layout(constant_id = 4) const uint BATCH_ROWS = 1;
layout(constant_id = 5) const uint OUT = 0;
layout(constant_id = 6) const uint GELU = 0;

layout(binding = 0) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 1) restrict readonly buffer Scales { uint scales[]; };
#ifdef INTEGER_DOT
layout(binding = 2) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 3) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 4) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 5) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#else
layout(binding = 2) restrict readonly buffer X { vec4 x[]; };
layout(binding = 3) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 4) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif

layout(push_constant) uniform Shape {
    uint n_rows;    // of the weight: twice the width of out
    uint n_units;   // of a weight row
    uint x_stride;  // in elements of x[]
    uint out_words; // of a row
    uint first;     // number of a row that this dispatch begins with
} shape;

shared float products[BATCH_ROWS * 32];
#define STAGED(i) vec4(products[4 * (i)], products[4 * (i) + 1], products[4 * (i) + 2], products[4 * (i) + 3])
#include "matvec_rows.glsl"
#include "numbers.glsl"
#include "q80.glsl"
#include "activation.glsl"

void main() {
    uint first_batch = gl_WorkGroupID.z * BATCH_ROWS;
    uint block = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    for (uint row = team_number() * ROWS; row < 64; row += WORKGROUP / TEAM * ROWS) {
        clear_sums();
        add_products(64 * block + row, shape.n_rows - 1, first_batch * shape.x_stride, 1.0);
        sum_over_team();
        if (team_lane() == 0) {
            [[unroll]] for (uint r = 0; r < ROWS; r += 2) {
                [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
                    products[32 * n + (row + r) / 2] = activation(sums[r * BATCH_ROWS + n]) * sums[(r + 1) * BATCH_ROWS + n];
                }
            }
        }
    }
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < 8 * BATCH_ROWS; i += WORKGROUP) {
        uint quad = 8 * block + i % 8;
        if (4 * quad < shape.n_rows / 2) {
            store_quad(i, first_batch + i / 8, shape.first / 4 + quad, shape.out_words, shape.first + shape.n_rows / 2);
        }
    }
}
