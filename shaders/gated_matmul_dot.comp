#version 450
#extension GL_GOOGLE_include_directive : require
#include "integer_dot.glsl"
#define INTEGER_DOT
#define GATED
#include "matmul.glsl"
