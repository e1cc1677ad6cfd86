// KV caches. A unit is 8 elements of a head (head_dim is padded to whole units): 16 bytes of halves, 32 of floats, or
// 8 of Q80, whose scales, f32, lie apart: (n_slots, n_kv_heads, seq_len, head_dim / 32). seq_len is padded to a
// multiple of 32. The includer declares CACHE.
//
// keys   (n_slots, n_kv_heads, seq_len / 32, head_units, 32): the same unit of 32 positions side by side, because
//        scores are computed with a lane for each position
// values (n_slots, n_kv_heads, seq_len, head_units): rows, because lanes then share a row
const uint CACHE_F16 = 0;
const uint CACHE_Q80 = 1;
const uint CACHE_F32 = 2;

uint key_unit(uint kv_row, uint seq_len, uint head_units, uint position, uint unit) {
    return (kv_row * seq_len + (position & ~31u)) * head_units + unit * 32 + (position & 31u);
}

uint value_unit(uint kv_row, uint seq_len, uint head_units, uint position, uint unit) {
    return (kv_row * seq_len + position) * head_units + unit;
}

uint cache_scale(uint kv_row, uint seq_len, uint head_units, uint position, uint unit) {
    return (kv_row * seq_len + position) * (head_units / 4) + unit / 4;
}
