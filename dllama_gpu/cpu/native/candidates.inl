// The k best of many logits by a bounded heap; needs one simd_*.hpp and rows.inl included before.

namespace {

// Whether (value, id) ranks below (other_value, other_id): smaller, or equal with a higher id.
inline bool ranks_below(float value, int id, float other_value, int other_id) {
  return value < other_value || (value == other_value && id > other_id);
}

// A binary heap with the lowest-ranking pair on top.
struct CandidateHeap {
  float* values;
  int* ids;
  int size, capacity;

  bool below(int a, int b) const { return ranks_below(values[a], ids[a], values[b], ids[b]); }
  void swap(int a, int b) {
    const float value = values[a];
    const int id = ids[a];
    values[a] = values[b], ids[a] = ids[b];
    values[b] = value, ids[b] = id;
  }
  void push(float value, int id) {
    int i = size++;
    values[i] = value, ids[i] = id;
    for (; i > 0 && below(i, (i - 1) / 2); i = (i - 1) / 2) swap(i, (i - 1) / 2);
  }
  void replace_top(float value, int id) {
    values[0] = value, ids[0] = id;
    for (int i = 0;;) {
      int lowest = i;
      for (int child = 2 * i + 1; child <= 2 * i + 2; child++)
        if (child < size && below(child, lowest)) lowest = child;
      if (lowest == i) return;
      swap(i, lowest);
      i = lowest;
    }
  }
};

int top_candidates(const float* values, int n, int first_id, int k, float scale, float* top_values, int* top_ids,
                   float* maximum, float* exp_sum) {
  CandidateHeap heap{top_values, top_ids, 0, k};
  F32x16 highest = set1(-INFINITY);
  for (int i = 0; i < n; i += 16) {
    const int width = n - i < 16 ? n - i : 16;
    if (width == 16) {
      const F32x16 lanes = load(values + i);
      highest = max(highest, lanes);
      if (heap.size == k && !(reduce_max(lanes) > heap.values[0])) continue;
    }
    for (int j = i; j < i + width; j++) {
      if (width < 16) highest = max(highest, set1(values[j]));
      if (values[j] != values[j]) continue;  // NaN ranks nowhere
      if (heap.size < k)
        heap.push(values[j], first_id + j);
      else if (values[j] > heap.values[0])
        heap.replace_top(values[j], first_id + j);
    }
  }
  *maximum = reduce_max(highest);
  F32x16 sums = set1(0);
  int i = 0;
  for (; i + 16 <= n; i += 16) sums = add(sums, exp(mul(sub(load(values + i), set1(*maximum)), set1(scale))));
  float total = reduce_add(sums);
  for (; i < n; i++) total += exp_of((values[i] - *maximum) * scale);
  *exp_sum = total;
  return heap.size;
}

}  // namespace
