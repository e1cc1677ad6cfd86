#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
// The k experts with the largest logits of each row, and their softmax over all experts. A workgroup takes a row.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64;
layout(constant_id = 1) const uint LIST = 128; // a power of two, at least the number of experts
layout(constant_id = 2) const uint NORMALIZES = 0; // the k weights add up to 1

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Logits { float logits[]; };
layout(binding = 2) restrict writeonly buffer Ids { uint ids[]; };
layout(binding = 3) restrict writeonly buffer Weights { float weights[]; };

layout(push_constant) uniform Shape {
    uint n_experts;
    uint stride;
    uint k;
    uint weight_stride;
} shape;

#include "best_list.glsl"
#define N_SUMS 1
#define TEAM WORKGROUP
#include "team_sum.glsl"

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.x;
    if (row >= step_rows()) {
        return;
    }
    for (uint i = lane; i < shape.n_experts; i += WORKGROUP) {
        best[i] = uvec2(ordered(logits[row * shape.stride + i]), ~i);
    }
    if (lane == 0) {
        n_best = shape.n_experts;
    }
    barrier();
    sort_best(shape.n_experts);
    float largest = from_ordered(best[0].x);
    float sum = 0;
    for (uint i = lane; i < (NORMALIZES != 0 ? shape.k : shape.n_experts); i += WORKGROUP) {
        sum += exp(from_ordered(best[i].x) - largest);
    }
    sums[0] = sum;
    sum_over_team();
    for (uint i = lane; i < shape.k; i += WORKGROUP) {
        ids[row * shape.k + i] = min(~best[i].y, shape.n_experts - 1);
        weights[row * shape.weight_stride + i] = exp(from_ordered(best[i].x) - largest) / sums[0];
    }
}
