// Matmuls of many rows on matrix units: a workgroup makes a tile of 64 weight rows x TILE_BATCH rows of x, 32 columns at
// a time as f16 through shared memory, each subgroup SUBGROUP_ROWS x SUBGROUP_BATCH of it, with sums in f32.
//
// x is packed Q80 for quantized weights and f32 for F16 and BF16. GATED: as in matmul.glsl.
#pragma use_vulkan_memory_model
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 128; // subgroups of the tile x lanes of a subgroup
layout(constant_id = 2) const uint TILE_BATCH = 64;
layout(constant_id = 3) const uint SUBGROUP_ROWS = 32;
layout(constant_id = 4) const uint SUBGROUP_BATCH = 32;
layout(constant_id = 5) const uint M = 16; // what the device multiplies at once: weight rows, rows of x, columns
layout(constant_id = 6) const uint N = 16;
layout(constant_id = 7) const uint K = 16;
layout(constant_id = 8) const uint OUT = 0;
layout(constant_id = 9) const uint LOGIT_ROWS = 0;
layout(constant_id = 10) const uint GELU = 0;

#include "matmul_tile.glsl"
layout(binding = 3) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 4) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 5) restrict writeonly buffer Out { uint out_words[]; };
#ifdef GATED
layout(binding = 6) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif

const uint TILE_ROWS = 64;
const uint PITCH = 10;                // quads from one row to the next: 32 columns and room to spare banks
const uint SUMS_PITCH = TILE_ROWS + 4;
const bool PACKED_X = TYPE >= Q40;
const float X_SCALE = 0.0625;         // f16 ends at 65504; activations may be larger, and need no smaller steps
const float LARGEST = 65504.0;

shared f16vec4 tile_w[TILE_ROWS * PITCH];
shared f16vec4 tile_x[TILE_BATCH * PITCH];
shared float tile_sums[TILE_BATCH * SUMS_PITCH];

#ifdef GATED
// The numbers that main() leaves in every other place of a row of sums.
#define STAGED_AT(at) vec4(tile_sums[at], tile_sums[(at) + 2], tile_sums[(at) + 4], tile_sums[(at) + 6])
#define STAGED(i) STAGED_AT((i) / 8 * SUMS_PITCH + (i) % 8 * 8)
#include "gated_tile.glsl"
#endif

f16vec4 halves(vec4 values) {
    return f16vec4(clamp(values, -LARGEST, LARGEST));
}

void load_block(uint block, uint first_row, uint first_batch, uint n_batch) {
    for (uint i = gl_LocalInvocationID.x; i < TILE_ROWS * UNITS; i += WORKGROUP) {
        uint r = i / UNITS;
        uint unit = block * UNITS + i % UNITS;
        uvec4 w = uvec4(0);
        vec2 scale = vec2(0);
        if (unit < shape.n_units) {
            uint at = min(first_row + r, shape.n_rows - 1) * shape.n_units + unit;
            w = weights[at];
            scale = weight_scale(at);
        }
        [[unroll]] for (uint k = 0; k < QUADS; k++) {
            tile_w[r * PITCH + i % UNITS * QUADS + k] = halves(weight_quad(w, k) * scale.x + scale.y);
        }
    }
    const uint parts = PACKED_X ? 2 : 8;
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * parts; i += WORKGROUP) {
        uint part = i % parts;
        uint batch_row = min(first_batch + i / parts, n_batch - 1);
        uint to = i / parts * PITCH;
        if (PACKED_X) {
            uvec4 quants = x[batch_row * shape.x_stride + 2 * block + part];
            float scale = x_scales[batch_row * (shape.x_stride / 2) + block].x * X_SCALE;
            [[unroll]] for (uint k = 0; k < 4; k++) {
                tile_x[to + 4 * part + k] = halves(int8_values(quants[k]) * scale);
            }
        } else {
            uint quad = 8 * block + part;
            vec4 values = quad < shape.n_units * QUADS
                ? uintBitsToFloat(x[batch_row * shape.x_stride + quad]) : vec4(0);
            tile_x[to + part] = halves(values * X_SCALE);
        }
    }
}

void main() {
    uint n_batch = LOGIT_ROWS != 0 ? step_logit_rows() : step_rows();
    uint first_batch = gl_WorkGroupID.x * TILE_BATCH;
    uint first_row = gl_WorkGroupID.y * TILE_ROWS;
    if (first_batch >= n_batch) {
        return;
    }
    const uint row_parts = SUBGROUP_ROWS / M;
    const uint batch_parts = SUBGROUP_BATCH / N;
    uint row = gl_SubgroupID % (TILE_ROWS / SUBGROUP_ROWS) * SUBGROUP_ROWS;
    uint batch = gl_SubgroupID / (TILE_ROWS / SUBGROUP_ROWS) * SUBGROUP_BATCH;

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[row_parts * batch_parts];
    [[unroll]] for (uint i = 0; i < row_parts * batch_parts; i++) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    }
    uint n_blocks = (shape.n_units + UNITS - 1) / UNITS;
    for (uint block = 0; block < n_blocks; block++) {
        barrier();
        load_block(block, first_row, first_batch, n_batch);
        barrier();
        [[unroll]] for (uint k = 0; k < 32; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> w[row_parts];
            [[unroll]] for (uint r = 0; r < row_parts; r++) {
                coopMatLoad(w[r], tile_w, (row + r * M) * PITCH + k / 4, PITCH, gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint n = 0; n < batch_parts; n++) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> columns;
                coopMatLoad(columns, tile_x, (batch + n * N) * PITCH + k / 4, PITCH,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < row_parts; r++) {
                    sums[n * row_parts + r] = coopMatMulAdd(w[r], columns, sums[n * row_parts + r]);
                }
            }
        }
    }
    [[unroll]] for (uint n = 0; n < batch_parts; n++) {
        [[unroll]] for (uint r = 0; r < row_parts; r++) {
            coopMatStore(sums[n * row_parts + r], tile_sums, (batch + n * N) * SUMS_PITCH + row + r * M, SUMS_PITCH,
                         gl_CooperativeMatrixLayoutColumnMajor);
        }
    }
    barrier();
#ifdef GATED
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * TILE_ROWS / 2; i += WORKGROUP) {
        uint at = i / (TILE_ROWS / 2) * SUMS_PITCH + i % (TILE_ROWS / 2) * 2;
        tile_sums[at] = activation(tile_sums[at] / X_SCALE) * (tile_sums[at + 1] / X_SCALE);
    }
    barrier();
    store_tile(first_row, first_batch, n_batch);
#else
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * TILE_ROWS; i += WORKGROUP) {
        uint n = first_batch + i / TILE_ROWS;
        uint r = first_row + i % TILE_ROWS;
        if (n < n_batch && r < shape.n_rows) {
            float sum = tile_sums[i / TILE_ROWS * SUMS_PITCH + i % TILE_ROWS] / X_SCALE;
            out_words[n * shape.out_words + shape.first + r] = floatBitsToUint(sum);
        }
    }
#endif
}
