#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "integer_dot.glsl"
#define SUBGROUP
#define INTEGER_DOT
#include "expert_gated_matvec.glsl"
