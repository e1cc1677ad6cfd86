#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// out[r] = weight[token of row r] · scale, for tokens whose rows this dispatch has. A lane takes a unit.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 32;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 2) restrict readonly buffer Scales { uint scales[]; };
layout(binding = 3) restrict writeonly buffer Out { float y[]; };

layout(push_constant) uniform Shape {
    uint first_row; // of the whole weight
    uint n_rows;
    uint n_units; // of a weight row
    uint width;
    uint out_stride;
    float scale;
} shape;

#include "weight.glsl"

void main() {
    uint unit = gl_GlobalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= step_rows() || unit >= shape.n_units) {
        return;
    }
    uint weight_row = step_token(row) - shape.first_row; // wraps below the first
    if (weight_row >= shape.n_rows) {
        return;
    }
    uint at = weight_row * shape.n_units + unit;
    uvec4 w = weights[at];
    vec2 scale = weight_scale(at) * shape.scale;
    [[unroll]] for (uint k = 0; k < QUADS; k++) {
        vec4 values = weight_quad(w, k) * scale.x + scale.y;
        uint column = 4 * (unit * QUADS + k);
        for (uint c = 0; c < 4; c++) {
            if (column + c < shape.width) {
                y[row * shape.out_stride + column + c] = values[c];
            }
        }
    }
}
