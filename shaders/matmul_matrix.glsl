// Matmuls of many rows on matrix units: a workgroup makes a tile of TILE_ROWS weight rows x TILE_BATCH rows of x, 32
// columns at a time as f16 through shared memory, each subgroup SUBGROUP_ROWS x SUBGROUP_BATCH of it, with sums in f32.
// While it multiplies 32 columns, it stores the next ones beside them, and those after are on their way into registers.
//
// x comes from halves_matrix.comp. Columns of quantized weights lie in shared memory in the order 0, 2, 1, 3 of each
// four, as their x does: two masks make it of four bytes, and a sum does not mind.
//
// GATED: rows 2h and 2h + 1 of the weight are gate h and up h, and out = activation(gate) · up. In shared memory the
// gates of a subgroup's rows come before its ups, so that a matrix of gates and one of ups meet number by number.
#pragma use_vulkan_memory_model
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 128; // subgroups of the tile x lanes of a subgroup
layout(constant_id = 2) const uint TILE_ROWS = 128;
layout(constant_id = 3) const uint TILE_BATCH = 128;
layout(constant_id = 4) const uint SUBGROUP_ROWS = 64;
layout(constant_id = 5) const uint SUBGROUP_BATCH = 64;
layout(constant_id = 6) const uint M = 16; // what the device multiplies at once: weight rows, rows of x, columns
layout(constant_id = 7) const uint N = 16;
layout(constant_id = 8) const uint K = 16;
layout(constant_id = 9) const uint OUT = 0;
layout(constant_id = 10) const uint LOGIT_ROWS = 0;
layout(constant_id = 11) const uint GELU = 0;

#include "matmul_tile.glsl"
layout(binding = 3) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 4) restrict writeonly buffer Out { uint out_words[]; };
#ifdef GATED
layout(binding = 5) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif
#include "halves.glsl"

// Shared memory in pieces of 8 halves: 4 a row, and one more to spare banks. Rows of weights and behind them rows of x,
// twice; in the end, numbers on their way out.
const uint PITCH = 5;
const uint X_BEGIN = TILE_ROWS * PITCH;
const uint STAGE = (TILE_ROWS + TILE_BATCH) * PITCH;
#ifdef GATED
const uint PATCH_ROWS = TILE_ROWS / 2;
#else
const uint PATCH_ROWS = TILE_ROWS;
#endif
const uint PATCH_BATCH = TILE_BATCH / SUBGROUP_BATCH * N; // a round's rows of x: a matrix of each subgroup
const uint PATCH_PITCH = PATCH_ROWS / 4 + 1;              // in quads
const uint PATCH = PATCH_BATCH * PATCH_PITCH;
shared uvec4 pool[2 * STAGE > PATCH ? 2 * STAGE : PATCH];

const uint LANE_UNITS = (TILE_ROWS * UNITS + WORKGROUP - 1) / WORKGROUP;
const uint LANE_PARTS = (TILE_BATCH * 4 + WORKGROUP - 1) / WORKGROUP;

// What this lane fetched: of the columns after the next.
uvec4 fetched_w[LANE_UNITS];
vec2 fetched_scales[LANE_UNITS];
uvec4 fetched_x[LANE_PARTS];

void fetch(uint block, uint first_row, uint first_batch, uint n_batch) {
    [[unroll]] for (uint j = 0; j < LANE_UNITS; j++) {
        uint i = gl_LocalInvocationID.x + j * WORKGROUP;
        uint unit = block * UNITS + i % UNITS;
        fetched_w[j] = uvec4(0);
        fetched_scales[j] = vec2(0);
        if (unit < shape.n_units && (TILE_ROWS * UNITS % WORKGROUP == 0 || i < TILE_ROWS * UNITS)) {
            uint at = min(first_row + i / UNITS, shape.n_rows - 1) * shape.n_units + unit;
            fetched_w[j] = weights[at];
            fetched_scales[j] = weight_scale(at);
        }
    }
    uint n_parts = shape.n_units * QUADS / 2;
    [[unroll]] for (uint j = 0; j < LANE_PARTS; j++) {
        uint i = gl_LocalInvocationID.x + j * WORKGROUP;
        uint part = 4 * block + i % 4;
        fetched_x[j] = uvec4(0);
        if (part < n_parts && (TILE_BATCH * 4 % WORKGROUP == 0 || i < TILE_BATCH * 4)) {
            fetched_x[j] = x[min(first_batch + i / 4, n_batch - 1) * shape.x_stride + part];
        }
    }
}

// Quad k of a unit of weights; 0x6400 is 1024, whose last bit counts ones. scale.y: what the middle of the quants means.
f16vec4 weight_halves(uvec4 w, uint k, f16vec2 scale) {
    if (NIBBLES) {
        uint word = k < 4 ? w[k] : w[k - 4] >> 4;
        f16vec4 quants = bytes_as_halves(word, 0x000f000fu, 0x64006400u) - float16_t(1032.0);
        return TYPE == Q40 ? quants * scale.x : fma(quants, f16vec4(scale.x), f16vec4(scale.y));
    }
    if (TYPE == Q80) {
        return (bytes_as_halves(w[k] ^ 0x80808080u, 0x00ff00ffu, 0x64006400u) - float16_t(1152.0)) * scale.x;
    }
    return f16vec4(clamp(weight_quad(w, k), -LARGEST, LARGEST));
}

void store(uint stage) {
    [[unroll]] for (uint j = 0; j < LANE_UNITS; j++) {
        uint i = gl_LocalInvocationID.x + j * WORKGROUP;
        if (TILE_ROWS * UNITS % WORKGROUP != 0 && i >= TILE_ROWS * UNITS) {
            break;
        }
        uint r = i / UNITS;
#ifdef GATED
        r = r / SUBGROUP_ROWS * SUBGROUP_ROWS + r % 2 * (SUBGROUP_ROWS / 2) + r % SUBGROUP_ROWS / 2;
#endif
        uint to = stage + r * PITCH + i % UNITS * (4 / UNITS);
        if (TYPE == F16) {
            pool[to] = fetched_w[j];
            continue;
        }
        vec2 scale = fetched_scales[j];
        if (TYPE == Q41) {
            scale.y += 8 * scale.x; // halves near zero are the finer ones
        }
        // Products with any quant stay below LARGEST.
        const float most = TYPE == Q80 ? 511.0 : TYPE == Q41 ? 4000.0 : 8188.0;
        f16vec2 clamped = f16vec2(clamp(scale, vec2(-most, -32000.0), vec2(most, 32000.0)));
        [[unroll]] for (uint k = 0; k < QUADS; k += 2) {
            pool[to + k / 2] = packed_halves(weight_halves(fetched_w[j], k, clamped),
                                             weight_halves(fetched_w[j], k + 1, clamped));
        }
    }
    [[unroll]] for (uint j = 0; j < LANE_PARTS; j++) {
        uint i = gl_LocalInvocationID.x + j * WORKGROUP;
        if (TILE_BATCH * 4 % WORKGROUP != 0 && i >= TILE_BATCH * 4) {
            break;
        }
        pool[stage + X_BEGIN + i / 4 * PITCH + i % 4] = fetched_x[j];
    }
}

#ifdef GATED
#define STAGED(i) uintBitsToFloat(pool[(i) / (PATCH_ROWS / 4) * PATCH_PITCH + (i) % (PATCH_ROWS / 4)])
#include "q80.glsl"
#include "activation.glsl"
#endif

void main() {
    uint n_batch = LOGIT_ROWS != 0 ? step_logit_rows() : step_rows();
    uint first_batch = gl_WorkGroupID.x * TILE_BATCH;
    uint first_row = gl_WorkGroupID.y * TILE_ROWS;
    if (first_batch >= n_batch) {
        return;
    }
    const uint row_parts = SUBGROUP_ROWS / M;
    const uint batch_parts = SUBGROUP_BATCH / N;
    uint batch_number = gl_SubgroupID / (TILE_ROWS / SUBGROUP_ROWS);
    uint row = gl_SubgroupID % (TILE_ROWS / SUBGROUP_ROWS) * SUBGROUP_ROWS;
    uint batch = batch_number * SUBGROUP_BATCH;

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[row_parts * batch_parts];
    [[unroll]] for (uint i = 0; i < row_parts * batch_parts; i++) {
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    }
    uint n_blocks = (shape.n_units + UNITS - 1) / UNITS;
    fetch(0, first_row, first_batch, n_batch);
    store(0);
    fetch(1, first_row, first_batch, n_batch);
    for (uint block = 0; block < n_blocks; block++) {
        uint stage = block % 2 * STAGE;
        barrier();
        store(STAGE - stage);
        fetch(block + 2, first_row, first_batch, n_batch);
        [[unroll]] for (uint k = 0; k < 32; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> w[row_parts];
            [[unroll]] for (uint r = 0; r < row_parts; r++) {
                coopMatLoad(w[r], pool, stage + (row + r * M) * PITCH + k / 8, PITCH,
                            gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint n = 0; n < batch_parts; n++) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> columns;
                coopMatLoad(columns, pool, stage + X_BEGIN + (batch + n * N) * PITCH + k / 8, PITCH,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < row_parts; r++) {
                    sums[n * row_parts + r] = coopMatMulAdd(w[r], columns, sums[n * row_parts + r]);
                }
            }
        }
    }
    [[unroll]] for (uint n = 0; n < batch_parts; n++) {
        barrier();
#ifdef GATED
        [[unroll]] for (uint r = 0; r < row_parts / 2; r++) {
            uint gate = n * row_parts + r;
            [[unroll]] for (uint i = 0; i < sums[gate].length(); i++) {
                sums[gate][i] = activation(sums[gate][i] / X_SCALE) * (sums[gate + row_parts / 2][i] / X_SCALE);
            }
            coopMatStore(sums[gate], pool, batch_number * N * PATCH_PITCH + (row / 2 + r * M) / 4, PATCH_PITCH,
                         gl_CooperativeMatrixLayoutColumnMajor);
        }
        barrier();
        const uint row_quads = PATCH_ROWS / 4;
        for (uint i = gl_LocalInvocationID.x; i < PATCH_BATCH * row_quads; i += WORKGROUP) {
            uint from = i / row_quads;
            uint to = first_batch + from / N * SUBGROUP_BATCH + n * N + from % N;
            uint quad = first_row / 8 + i % row_quads;
            if (to < n_batch && 4 * quad < shape.n_rows / 2) {
                store_quad(i, to, shape.first / 4 + quad, shape.out_words, shape.first + shape.n_rows / 2);
            }
        }
#else
        [[unroll]] for (uint r = 0; r < row_parts; r++) {
            coopMatStore(sums[n * row_parts + r], pool, batch_number * N * PATCH_PITCH + (row + r * M) / 4, PATCH_PITCH,
                         gl_CooperativeMatrixLayoutColumnMajor);
        }
        barrier();
        for (uint i = gl_LocalInvocationID.x; i < PATCH_BATCH * PATCH_ROWS; i += WORKGROUP) {
            uint from = i / PATCH_ROWS;
            uint number = i % PATCH_ROWS;
            uint to = first_batch + from / N * SUBGROUP_BATCH + n * N + from % N;
            if (to < n_batch && first_row + number < shape.n_rows) {
                float sum = uintBitsToFloat(pool[from * PATCH_PITCH + number / 4][number % 4]) / X_SCALE;
                out_words[to * shape.out_words + shape.first + first_row + number] = floatBitsToUint(sum);
            }
        }
#endif
    }
}
