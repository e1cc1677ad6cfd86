// Matmuls of many rows: a workgroup makes a tile of TILE_ROWS weight rows x TILE_BATCH rows of x, 32 columns at a time
// through shared memory, each lane LANE_ROWS x LANE_BATCH of it.
//
// GATED: rows 2h and 2h + 1 of the weight are gate h and up h, and out = activation(gate) · up; a tile of 64 weight rows
// is then one block of 32 numbers, should they be stored as Q80.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WORKGROUP = 64; // TILE_ROWS / LANE_ROWS * TILE_BATCH / LANE_BATCH
layout(constant_id = 2) const uint TILE_ROWS = 64;
layout(constant_id = 3) const uint TILE_BATCH = 32;
layout(constant_id = 4) const uint LANE_ROWS = 8; // even
layout(constant_id = 5) const uint LANE_BATCH = 4;
layout(constant_id = 6) const uint OUT = 0;
layout(constant_id = 7) const uint LOGIT_ROWS = 0;
layout(constant_id = 8) const uint GELU = 0;

#include "matmul_tile.glsl"
#ifdef INTEGER_DOT
layout(binding = 3) restrict readonly buffer X { uvec4 x[]; };
layout(binding = 4) restrict readonly buffer XScales { vec2 x_scales[]; };
layout(binding = 5) restrict writeonly buffer Out { uint out_words[]; };
#ifdef GATED
layout(binding = 6) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif
#else
layout(binding = 3) restrict readonly buffer X { vec4 x[]; };
layout(binding = 4) restrict writeonly buffer Out { uint out_words[]; };
#ifdef GATED
layout(binding = 5) restrict writeonly buffer OutScales { vec2 out_scales[]; };
#endif
#endif

const uint ROWS_PITCH = TILE_ROWS + 1; // one more: lanes that store a column then hit different banks
const uint BATCH_PITCH = TILE_BATCH + 1;
#ifdef INTEGER_DOT
const uint DEPTH = 8; // words of 4 columns
const uint BATCH_BEGIN = DEPTH * ROWS_PITCH;
const uint ROW_SCALES = BATCH_BEGIN + DEPTH * BATCH_PITCH; // 2 x TILE_ROWS: scale and minimum
const uint BATCH_SCALES = ROW_SCALES + 2 * TILE_ROWS;      // 2 x TILE_BATCH: d and d · sum
const uint POOL = BATCH_SCALES + 2 * TILE_BATCH;
#else
const uint DEPTH = 32; // columns
const uint BATCH_BEGIN = DEPTH * ROWS_PITCH;
const uint POOL = BATCH_BEGIN + DEPTH * BATCH_PITCH;
#endif
#ifdef GATED
const uint RESULTS = TILE_ROWS / 2 * TILE_BATCH;
shared uint pool[POOL > RESULTS ? POOL : RESULTS];
#define STAGED(i) uintBitsToFloat(uvec4(pool[4 * (i)], pool[4 * (i) + 1], pool[4 * (i) + 2], pool[4 * (i) + 3]))
#include "gated_tile.glsl"
#else
shared uint pool[POOL];
#endif

const uint LANES_OF_ROWS = TILE_ROWS / LANE_ROWS;

float sums[LANE_ROWS * LANE_BATCH];

#ifdef INTEGER_DOT
void load_block(uint block, uint first_row, uint first_batch, uint n_batch) {
    for (uint i = gl_LocalInvocationID.x; i < TILE_ROWS * UNITS; i += WORKGROUP) {
        uint r = i / UNITS;
        uint unit = block * UNITS + i % UNITS;
        uint at = min(first_row + r, shape.n_rows - 1) * shape.n_units + unit;
        uvec4 w = weights[at];
        if (NIBBLES) {
            [[unroll]] for (uint k = 0; k < 4; k++) {
                pool[k * ROWS_PITCH + r] = w[k] & 0x0f0f0f0fu;
                pool[(k + 4) * ROWS_PITCH + r] = (w[k] >> 4) & 0x0f0f0f0fu;
            }
        } else {
            [[unroll]] for (uint k = 0; k < 4; k++) {
                pool[(i % UNITS * 4 + k) * ROWS_PITCH + r] = w[k];
            }
        }
        if (i % UNITS == 0) {
            vec2 scale = weight_scale(at);
            pool[ROW_SCALES + r] = floatBitsToUint(scale.x);
            // What the sum of x's quants counts with: nibbles stand for value - 8, or for value · scale + minimum.
            float minimum = TYPE == Q40 ? -8 * scale.x : TYPE == Q41 ? scale.y : 0;
            pool[ROW_SCALES + TILE_ROWS + r] = floatBitsToUint(minimum);
        }
    }
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * 2; i += WORKGROUP) {
        uint n = i / 2;
        uint batch_row = min(first_batch + n, n_batch - 1);
        uvec4 quants = x[batch_row * shape.x_stride + 2 * block + i % 2];
        [[unroll]] for (uint k = 0; k < 4; k++) {
            pool[BATCH_BEGIN + (i % 2 * 4 + k) * BATCH_PITCH + n] = quants[k];
        }
        if (i % 2 == 0) {
            vec2 scale = x_scales[batch_row * (shape.x_stride / 2) + block];
            pool[BATCH_SCALES + n] = floatBitsToUint(scale.x);
            pool[BATCH_SCALES + TILE_BATCH + n] = floatBitsToUint(scale.y);
        }
    }
}

void multiply_block(uint row, uint batch) {
    int dots[LANE_ROWS * LANE_BATCH];
    [[unroll]] for (uint i = 0; i < LANE_ROWS * LANE_BATCH; i++) {
        dots[i] = 0;
    }
    [[unroll]] for (uint k = 0; k < DEPTH; k++) {
        uint a[LANE_ROWS];
        [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
            a[r] = pool[k * ROWS_PITCH + row + r];
        }
        [[unroll]] for (uint n = 0; n < LANE_BATCH; n++) {
            uint b = pool[BATCH_BEGIN + k * BATCH_PITCH + batch + n];
            [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
                dots[n * LANE_ROWS + r] += sdot4(a[r], b);
            }
        }
    }
    [[unroll]] for (uint n = 0; n < LANE_BATCH; n++) {
        float d = uintBitsToFloat(pool[BATCH_SCALES + batch + n]);
        float d_sum = uintBitsToFloat(pool[BATCH_SCALES + TILE_BATCH + batch + n]);
        [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
            float scale = uintBitsToFloat(pool[ROW_SCALES + row + r]);
            float minimum = uintBitsToFloat(pool[ROW_SCALES + TILE_ROWS + row + r]);
            sums[n * LANE_ROWS + r] += scale * d * float(dots[n * LANE_ROWS + r]) + minimum * d_sum;
        }
    }
}
#else
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
            vec4 quad = weight_quad(w, k) * scale.x + scale.y;
            uint column = 4 * (i % UNITS * QUADS + k);
            [[unroll]] for (uint c = 0; c < 4; c++) {
                pool[(column + c) * ROWS_PITCH + r] = floatBitsToUint(quad[c]);
            }
        }
    }
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * 8; i += WORKGROUP) {
        uint n = i / 8;
        uint batch_row = min(first_batch + n, n_batch - 1);
        uint quad = 8 * block + i % 8;
        vec4 values = quad < shape.n_units * QUADS ? x[batch_row * shape.x_stride + quad] : vec4(0);
        [[unroll]] for (uint c = 0; c < 4; c++) {
            pool[BATCH_BEGIN + (i % 8 * 4 + c) * BATCH_PITCH + n] = floatBitsToUint(values[c]);
        }
    }
}

void multiply_block(uint row, uint batch) {
    for (uint k = 0; k < DEPTH; k++) {
        float a[LANE_ROWS];
        [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
            a[r] = uintBitsToFloat(pool[k * ROWS_PITCH + row + r]);
        }
        [[unroll]] for (uint n = 0; n < LANE_BATCH; n++) {
            float b = uintBitsToFloat(pool[BATCH_BEGIN + k * BATCH_PITCH + batch + n]);
            [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
                sums[n * LANE_ROWS + r] += a[r] * b;
            }
        }
    }
}
#endif

void main() {
    uint n_batch = LOGIT_ROWS != 0 ? step_logit_rows() : step_rows();
    uint first_batch = gl_WorkGroupID.x * TILE_BATCH;
    uint first_row = gl_WorkGroupID.y * TILE_ROWS;
    if (first_batch >= n_batch) {
        return;
    }
    uint lane = gl_LocalInvocationID.x;
    uint row = lane % LANES_OF_ROWS * LANE_ROWS;
    uint batch = lane / LANES_OF_ROWS * LANE_BATCH;
    [[unroll]] for (uint i = 0; i < LANE_ROWS * LANE_BATCH; i++) {
        sums[i] = 0;
    }
    uint n_blocks = (shape.n_units + UNITS - 1) / UNITS;
    for (uint block = 0; block < n_blocks; block++) {
        barrier();
        load_block(block, first_row, first_batch, n_batch);
        barrier();
        multiply_block(row, batch);
    }
#ifdef GATED
    barrier();
    [[unroll]] for (uint n = 0; n < LANE_BATCH; n++) {
        [[unroll]] for (uint r = 0; r < LANE_ROWS; r += 2) {
            float product = activation(sums[n * LANE_ROWS + r]) * sums[n * LANE_ROWS + r + 1];
            pool[(batch + n) * (TILE_ROWS / 2) + (row + r) / 2] = floatBitsToUint(product);
        }
    }
    barrier();
    store_tile(first_row, first_batch, n_batch);
#else
    [[unroll]] for (uint n = 0; n < LANE_BATCH; n++) {
        [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
            if (first_batch + batch + n < n_batch && first_row + row + r < shape.n_rows) {
                uint at = (first_batch + batch + n) * shape.out_words + shape.first + first_row + row + r;
                out_words[at] = floatBitsToUint(sums[n * LANE_ROWS + r]);
            }
        }
    }
#endif
}
