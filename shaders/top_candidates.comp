#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_memory_scope_semantics : require
// The best k logits of one slice of a row, best first, and the slice's log-sum-exp as (largest, sum).
// The list fills up, is sorted and cut to k; from then on only better logits enter.

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64;
layout(constant_id = 1) const uint LIST = 1024; // at least k + WINDOW
layout(constant_id = 2) const uint WINDOW = 256; // logits between two looks at the list

#include "step.glsl"
layout(binding = 1) restrict readonly buffer Logits { float logits[]; };
layout(binding = 2) restrict writeonly buffer Keys { uvec2 keys[]; }; // (rows, n_slices, k)
layout(binding = 3) restrict writeonly buffer Sums { vec2 sums[]; };  // (rows, n_slices)

layout(push_constant) uniform Shape {
    uint n_logits;
    uint stride;
    uint slice_size;
    uint k;
} shape;

#include "best_list.glsl"
shared vec2 lane_sums[WORKGROUP];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= step_logit_rows()) {
        return;
    }
    uint begin = gl_WorkGroupID.x * shape.slice_size;
    uint end = min(begin + shape.slice_size, shape.n_logits);
    float temperature = step_temperature(row);
    if (lane == 0) {
        n_best = 0;
    }
    barrier();
    uvec2 worst = uvec2(0);
    float largest = -3.0e38;
    float sum = 0;
    for (uint window = begin; window < end; window += WINDOW) {
        for (uint i = window + lane; i < min(window + WINDOW, end); i += WORKGROUP) {
            float logit = logits[row * shape.stride + i];
            uvec2 key = uvec2(ordered(logit), ~i);
            if (better(key, worst)) {
                best[take_place()] = key;
            }
            float tempered = logit / temperature;
            if (tempered > largest) {
                sum *= exp(largest - tempered);
                largest = tempered;
            }
            sum += exp(tempered - largest);
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
    uint n = sort_best(shape.k);
    uint slice = row * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    for (uint i = lane; i < shape.k; i += WORKGROUP) {
        keys[slice * shape.k + i] = i < n ? best[i] : uvec2(0);
    }
    lane_sums[lane] = vec2(largest, sum);
    barrier();
    if (lane == 0) {
        for (uint i = 1; i < WORKGROUP; i++) {
            vec2 other = lane_sums[i];
            float most = max(largest, other.x);
            sum = sum * exp(largest - most) + other.y * exp(other.x - most);
            largest = most;
        }
        sums[slice] = vec2(largest, sum);
    }
}
