float silu(float value) {
    return value / (1.0 + exp(-value));
}
