// out[r][j] = activation(x[r] · gateᵀ) ∘ (x[r] · upᵀ) of expert ids[r][j]; nothing where this dispatch lacks it.
// Rows 2h and 2h + 1 of an expert are gate h and up h. A workgroup makes 32 numbers of one row and choice.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;
layout(constant_id = 2) const uint TEAM = 32;
layout(constant_id = 3) const uint ROWS = 2; // weight rows of a team at a time, even
layout(constant_id = 4) const uint OUT = 0;
layout(constant_id = 5) const uint GELU = 0;
const uint BATCH_ROWS = 1;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Ids { uint ids[]; };
layout(binding = 2) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 3) restrict readonly buffer Scales { uint scales[]; };
#ifdef INTEGER_DOT
layout(binding = 4) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 5) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 6) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 7) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#else
layout(binding = 4) restrict readonly buffer X { vec4 x[]; };
layout(binding = 5) restrict writeonly buffer Out { uint out_words[]; };
layout(binding = 6) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif

layout(push_constant) uniform Shape {
    uint hidden;    // numbers that an expert makes
    uint n_units;   // of a weight row
    uint x_stride;  // in elements of x[]
    uint out_words; // of a row
    uint k;
    uint first_expert;
    uint n_experts;
} shape;

shared float products[32];
#define STAGED(i) vec4(products[4 * (i)], products[4 * (i) + 1], products[4 * (i) + 2], products[4 * (i) + 3])
#include "matvec_rows.glsl"
#include "numbers.glsl"
#include "q80.glsl"
#include "activation.glsl"

void main() {
    uint block = gl_WorkGroupID.x;
    uint choice = gl_WorkGroupID.y;
    uint row = gl_WorkGroupID.z;
    if (row >= step_rows()) {
        return;
    }
    uint expert = ids[row * shape.k + choice] - shape.first_expert; // wraps below the first
    if (expert >= shape.n_experts) {
        return;
    }
    uint first_row = expert * 2 * shape.hidden;
    for (uint r0 = team_number() * ROWS; r0 < 64; r0 += WORKGROUP / TEAM * ROWS) {
        clear_sums();
        add_products(first_row + 64 * block + r0, first_row + 2 * shape.hidden - 1, row * shape.x_stride, 1.0);
        sum_over_team();
        if (team_lane() == 0) {
            [[unroll]] for (uint r = 0; r < ROWS; r += 2) {
                products[(r0 + r) / 2] = activation(sums[r]) * sums[r + 1];
            }
        }
    }
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < 8; i += WORKGROUP) {
        uint quad = 8 * block + i;
        if (4 * quad < shape.hidden) {
            // A quad of f32 may reach past an expert's numbers into the next expert's, hence the width.
            store_quad(i, row, choice * shape.hidden / 4 + quad, shape.out_words, (choice + 1) * shape.hidden);
        }
    }
}
