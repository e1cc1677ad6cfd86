// The router's choice of experts; needs one simd_*.hpp, rows.inl and candidates.inl included before.

namespace {

void top_experts(const float* logits, int n, int k, bool normalize, int* ids, float* weights) {
  bool finite = true;
  for (int i = 0; i < n; i++) finite &= logits[i] - logits[i] == 0;
  // The best of those that rank below the last one found. What is no number ranks lowest, so that ids are in range.
  float last_value = INFINITY;
  int last_id = -1;
  for (int j = 0; j < k; j++) {
    float best_value = -INFINITY;
    int best_id = n;
    for (int i = 0; i < n; i++) {
      const float value = logits[i] == logits[i] ? logits[i] : -INFINITY;
      if (ranks_below(value, i, last_value, last_id) && ranks_below(best_value, best_id, value, i)) {
        best_value = value;
        best_id = i;
      }
    }
    ids[j] = last_id = best_id;
    weights[j] = last_value = best_value;
  }
  if (!finite) {
    for (int j = 0; j < k; j++) weights[j] = NAN;
    return;
  }
  const float maximum = weights[0];
  float total = 0;
  if (!normalize)
    for (int i = 0; i < n; i++) total += exp_of(logits[i] - maximum);
  for (int j = 0; j < k; j++) {
    weights[j] = exp_of(weights[j] - maximum);
    if (normalize) total += weights[j];
  }
  for (int j = 0; j < k; j++) weights[j] /= total;
}

}  // namespace
