// KV caches of halves, head_dim padded to a multiple of 8 (head_units of 16 bytes), seq_len to a multiple of 32.
//
// keys   (n_slots, n_kv_heads, seq_len / 32, head_units, 32): the same unit of 32 positions side by side, because
//        scores are computed with a lane for each position
// values (n_slots, n_kv_heads, seq_len, head_units): rows, because lanes then share a row
uint key_unit(uint kv_row, uint seq_len, uint head_units, uint position, uint unit) {
    return (kv_row * seq_len + (position & ~31u)) * head_units + unit * 32 + (position & 31u);
}

uint value_unit(uint kv_row, uint seq_len, uint head_units, uint position, uint unit) {
    return (kv_row * seq_len + position) * head_units + unit;
}
