// The rows of one step, written by the host before each submit; see dllama_gpu/vulkan/step.py.
// step_words[0] = (n_rows, n_logit_rows, 0, 0); row i: step_words[2 + 2i] = (token, slot, position, 0);
// i-th row that wants logits: step_words[3 + 2i] = (row, temperature as f32, 0, 0).
layout(binding = 0) restrict readonly buffer Step {
    uvec4 step_words[];
};

uint step_rows() { return step_words[0].x; }
uint step_logit_rows() { return step_words[0].y; }
uint step_token(uint row) { return step_words[2 + 2 * row].x; }
uint step_slot(uint row) { return step_words[2 + 2 * row].y; }
uint step_position(uint row) { return step_words[2 + 2 * row].z; }
uint step_logit_row(uint i) { return step_words[3 + 2 * i].x; }
float step_temperature(uint i) { return uintBitsToFloat(step_words[3 + 2 * i].y); }
