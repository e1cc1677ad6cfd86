#version 450
#extension GL_GOOGLE_include_directive : require
#define GATED
#include "matmul_matrix.glsl"
