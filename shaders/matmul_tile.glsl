// What matmuls of many rows share, however they multiply: a tile is TILE_ROWS weight rows x TILE_BATCH rows of x.
#include "step.glsl"
layout(binding = 1) restrict readonly buffer Weights { uvec4 weights[]; };
layout(binding = 2) restrict readonly buffer Scales { uint scales[]; };

layout(push_constant) uniform Shape {
    uint n_rows;    // of the weight
    uint n_units;   // of a weight row
    uint x_stride;  // in elements of x[]
    uint out_words; // of a row
    uint first;     // column of out that row 0 (of GATED: rows 0 and 1) makes
} shape;

#include "weight.glsl"

const uint UNITS = 8 / QUADS; // of 32 columns
