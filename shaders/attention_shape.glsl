// What both halves of attention know.
layout(push_constant) uniform Shape {
    uint n_heads;
    uint n_kv_heads;
    uint group;      // query heads of a KV head
    uint first_head; // of the node, counted inside its first group
    uint head_dim;
    uint qkv_stride; // in floats
    uint seq_len;    // padded
    uint n_splits;   // parts that a row's positions are cut into at most
    uint min_split;  // positions a part has at least, a multiple of 32
    uint out_words;  // of a row
    float scale;
    uint window; // positions that are seen at most
} shape;

// The first position that a row at `position` sees.
uint first_position(uint position) {
    return position + 1 - min(position + 1, shape.window);
}

// Positions of a part of a row that attends to n_positions.
uint split_size(uint n_positions) {
    uint size = (n_positions + shape.n_splits - 1) / shape.n_splits;
    return max(shape.min_split, (size + 31u) & ~31u);
}

// Part results, f32: for (row, head, split) head_dim + 2 numbers: largest score, sum of weights, weighted values.
uint partial_at(uint row, uint head, uint part) {
    return ((row * shape.n_heads + head) * shape.n_splits + part) * (shape.head_dim + 2);
}
