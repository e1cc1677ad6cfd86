// The end of a matmul of gate and up: STAGED holds TILE_ROWS / 2 numbers of each row of the tile, one row after the other.
#include "q80.glsl"
#include "activation.glsl"

void store_tile(uint first_row, uint first_batch, uint n_batch) {
    const uint row_quads = TILE_ROWS / 8;
    for (uint i = gl_LocalInvocationID.x; i < TILE_BATCH * row_quads; i += WORKGROUP) {
        uint n = first_batch + i / row_quads;
        uint quad = first_row / 8 + i % row_quads;
        if (n < n_batch && 4 * quad < shape.n_rows / 2) {
            store_quad(i, n, shape.first / 4 + quad, shape.out_words, shape.first + shape.n_rows / 2);
        }
    }
}
