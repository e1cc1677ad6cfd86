// The products of a team's ROWS weight rows with BATCH_ROWS rows of x. The lanes of a team share the columns: lane l
// takes units l, l + TEAM, ..., so that neighbouring lanes read neighbouring 16 bytes. The sum over the team is
// sums[r * BATCH_ROWS + n].
//
// The includer declares the bindings `weights`, `scales`, `x` (and `x_scales`), the constants and `shape`.
#define N_SUMS (ROWS * BATCH_ROWS)
#include "team_sum.glsl"
#include "weight.glsl"

void clear_sums() {
    [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
        sums[i] = 0;
    }
}

// Adds a lane's share of `factor` times the products, from row `first_row` of the weight on. Rows past `last_row` are
// computed from that. The rows of x begin at element `x_begin`.
void add_products(uint first_row, uint last_row, uint x_begin, float factor) {
    uint n_units = shape.n_units;
    for (uint unit = team_lane(); unit < n_units; unit += TEAM) {
        uvec4 w[ROWS];
        vec2 scale[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            uint at = min(first_row + r, last_row) * n_units + unit;
            w[r] = weights[at];
            scale[r] = weight_scale(at) * factor;
        }
#ifdef INTEGER_DOT
        [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
            if (NIBBLES) {
                uvec4 low = x[x_begin + n * shape.x_stride + 2 * unit];
                uvec4 high = x[x_begin + n * shape.x_stride + 2 * unit + 1];
                vec2 x_scale = x_scales[x_begin / 2 + n * (shape.x_stride / 2) + unit];
                [[unroll]] for (uint r = 0; r < ROWS; r++) {
                    int sum = 0;
                    [[unroll]] for (uint i = 0; i < 4; i++) {
                        sum += sdot4(w[r][i] & 0x0f0f0f0fu, low[i]);
                        sum += sdot4((w[r][i] >> 4) & 0x0f0f0f0fu, high[i]);
                    }
                    float product = scale[r].x * (x_scale.x * float(sum) - (TYPE == Q40 ? 8 * x_scale.y : 0));
                    sums[r * BATCH_ROWS + n] += product + (TYPE == Q41 ? scale[r].y * x_scale.y : 0);
                }
            } else {
                uvec4 quants = x[x_begin + n * shape.x_stride + unit];
                float x_scale = x_scales[x_begin / 2 + n * (shape.x_stride / 2) + unit / 2].x;
                [[unroll]] for (uint r = 0; r < ROWS; r++) {
                    int sum = 0;
                    [[unroll]] for (uint i = 0; i < 4; i++) {
                        sum += sdot4(w[r][i], quants[i]);
                    }
                    sums[r * BATCH_ROWS + n] += scale[r].x * x_scale * float(sum);
                }
            }
        }
#else
        float partial[N_SUMS];
        float x_sum[BATCH_ROWS];
        [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
            partial[i] = 0;
        }
        [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
            x_sum[n] = 0;
        }
        [[unroll]] for (uint k = 0; k < QUADS; k++) {
            vec4 quad[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                quad[r] = weight_quad(w[r], k);
            }
            [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
                vec4 x_quad = x[x_begin + n * shape.x_stride + unit * QUADS + k];
                [[unroll]] for (uint r = 0; r < ROWS; r++) {
                    partial[r * BATCH_ROWS + n] += dot(quad[r], x_quad);
                }
                if (TYPE == Q41) {
                    x_sum[n] += dot(x_quad, vec4(1));
                }
            }
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            [[unroll]] for (uint n = 0; n < BATCH_ROWS; n++) {
                uint i = r * BATCH_ROWS + n;
                sums[i] += scale[r].x * partial[i] + (TYPE == Q41 ? scale[r].y * x_sum[n] : 0);
            }
        }
#endif
    }
}
