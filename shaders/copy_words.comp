// target[i] = source[i] of 32-bit words: how data reaches memory that the CPU cannot see, and a measure of bandwidth.
#version 450

layout(constant_id = 0) const uint GROUP = 64;
layout(local_size_x_id = 0) in;

layout(set = 0, binding = 0) readonly buffer Source { uint source[]; };
layout(set = 0, binding = 1) writeonly buffer Target { uint target[]; };
layout(push_constant) uniform Push { uint n_words; };

void main() {
  const uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = gl_GlobalInvocationID.x; i < n_words; i += stride) target[i] = source[i];
}
