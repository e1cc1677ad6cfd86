// What happens to a gate; the includer declares GELU.
// silu(x) = x · sigmoid(x); gelu(x) in its tanh approximation, as 1 + tanh(u) = 2 · sigmoid(2u).
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
float activation(float x) {
    float u = GELU != 0 ? 1.5957691216057308 * (x + 0.044715 * x * x * x) : x;
    return x / (1.0 + exp(-u));
}
