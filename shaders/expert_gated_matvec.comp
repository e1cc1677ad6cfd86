#version 450
#extension GL_GOOGLE_include_directive : require
#include "expert_gated_matvec.glsl"
