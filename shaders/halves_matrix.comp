#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// halves[r] = x[r] as f16, X_SCALE times: what matmul_matrix.glsl multiplies with. A lane takes 8 columns.
//
// PACKED: x is Q80, and its columns go out in the order 0, 2, 1, 3 of each four.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64;
layout(constant_id = 1) const uint PACKED = 1;
layout(constant_id = 2) const uint LOGIT_ROWS = 0;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer X { uvec2 x[]; };
layout(binding = 2) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 3) restrict writeonly buffer Halves { uvec4 halves[]; };

layout(push_constant) uniform Shape {
    uint n_parts;  // of 8 columns of a row
    uint x_stride; // in elements of x[]
    uint stride;   // in elements of halves[]
} shape;

#include "halves.glsl"

void main() {
    uint row = gl_WorkGroupID.y;
    uint part = gl_GlobalInvocationID.x;
    if (row >= (LOGIT_ROWS != 0 ? step_logit_rows() : step_rows()) || part >= shape.n_parts) {
        return;
    }
    f16vec4 first, second;
    if (PACKED != 0) {
        uvec2 quants = x[row * shape.x_stride + part] ^ 0x80808080u;
        float16_t scale = float16_t(min(x_scales[(row * shape.x_stride + part) / 4].x, LARGEST / 8));
        // 0x5400 is 64, whose last bit counts sixteenths: quants times X_SCALE, exactly.
        first = (bytes_as_halves(quants.x, 0x00ff00ffu, 0x54005400u) - float16_t(72.0)) * scale;
        second = (bytes_as_halves(quants.y, 0x00ff00ffu, 0x54005400u) - float16_t(72.0)) * scale;
    } else {
        uint at = row * shape.x_stride + 4 * part;
        first = f16vec4(clamp(uintBitsToFloat(uvec4(x[at], x[at + 1])) * X_SCALE, -LARGEST, LARGEST));
        second = f16vec4(clamp(uintBitsToFloat(uvec4(x[at + 2], x[at + 3])) * X_SCALE, -LARGEST, LARGEST));
    }
    halves[row * shape.stride + part] = packed_halves(first, second);
}
