// Signed products of four int8 each, added up: OpSDotKHR. glslang has no extension for it yet.
#extension GL_EXT_spirv_intrinsics : require
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int packed_sdot(uint a, uint b, spirv_literal int packed_format);
#define sdot4(a, b) packed_sdot(a, b, 0)
