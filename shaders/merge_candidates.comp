#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_memory_scope_semantics : require
// The best k of a row's slices, and its log-sum-exp. A workgroup takes a row.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64;
layout(constant_id = 1) const uint LIST = 1024;
layout(constant_id = 2) const uint WINDOW = 256;

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Keys { uvec2 keys[]; };
layout(binding = 2) restrict readonly buffer Sums { vec2 sums[]; };
layout(binding = 3) restrict writeonly buffer Best { float best_values[]; };
layout(binding = 4) restrict writeonly buffer Ids { uint best_ids[]; };
layout(binding = 5) restrict writeonly buffer LogSumExp { float log_sum_exp[]; };

layout(push_constant) uniform Shape {
    uint n_slices;
    uint k;
    uint first_id;
} shape;

#include "best_list.glsl"

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.x;
    if (row >= step_logit_rows()) {
        return;
    }
    if (lane == 0) {
        n_best = 0;
    }
    barrier();
    uint begin = row * shape.n_slices * shape.k;
    uint end = begin + shape.n_slices * shape.k;
    uvec2 worst = uvec2(0);
    for (uint window = begin; window < end; window += WINDOW) {
        for (uint i = window + lane; i < min(window + WINDOW, end); i += WORKGROUP) {
            uvec2 key = keys[i];
            if (better(key, worst)) {
                best[take_place()] = key;
            }
        }
        barrier();
        uint n = n_best;
        barrier();
        if (n + WINDOW > LIST) {
            if (sort_best(shape.k) == shape.k) {
                worst = best[shape.k - 1];
            }
            barrier();
        }
    }
    sort_best(shape.k);
    for (uint i = lane; i < shape.k; i += WORKGROUP) {
        best_values[row * shape.k + i] = from_ordered(best[i].x);
        best_ids[row * shape.k + i] = shape.first_id + ~best[i].y;
    }
    if (lane == 0) {
        float largest = -3.0e38;
        for (uint i = 0; i < shape.n_slices; i++) {
            largest = max(largest, sums[row * shape.n_slices + i].x);
        }
        float sum = 0;
        for (uint i = 0; i < shape.n_slices; i++) {
            vec2 part = sums[row * shape.n_slices + i];
            sum += part.y * exp(part.x - largest);
        }
        log_sum_exp[row] = largest + log(sum);
    }
}
