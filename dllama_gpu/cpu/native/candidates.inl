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

// Reorders the values, none of which is NaN. Source: Hoare, "Algorithm 65: Find" (1961). Not std::nth_element: the linker
// would keep one copy of it, compiled for any of the instruction sets, and use it for all.
inline float kth_largest(float* values, int n, int k) {
  for (int low = 0, high = n - 1; low < high;) {
    const float pivot = values[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (values[i] > pivot) i++;
      while (values[j] < pivot) j--;
      if (i > j) break;
      const float value = values[i];
      values[i++] = values[j];
      values[j--] = value;
    }
    if (k - 1 <= j)
      high = j;
    else if (k - 1 >= i)
      low = i;
    else
      break;
  }
  return values[k - 1];
}

// A value that at least k of n values reach and few others do; -infinity when n is too small for it to pay. Found in the
// maxima of many pieces: the k-th largest of those.
inline float lower_bound(const float* values, int n, int k) {
  constexpr int kPieces = 16, kMaxima = kPieces * 16;
  const int n_vectors = n / 16;
  if (k > kMaxima / 2 || n_vectors < 2 * kPieces) return -INFINITY;
  float maxima[kMaxima];
  for (int piece = 0; piece < kPieces; piece++) {
    F32x16 highest = set1(-INFINITY);
    for (int i = n_vectors * piece / kPieces; i < n_vectors * (piece + 1) / kPieces; i++)
      highest = max(load(values + 16 * i), highest);
    store(maxima + 16 * piece, highest);
  }
  for (float& maximum : maxima)
    if (maximum != maximum) maximum = -INFINITY;
  return kth_largest(maxima, kMaxima, k);
}

int top_candidates(const float* values, int n, int first_id, int k, float scale, float* top_values, int* top_ids,
                   float* maximum, float* exp_sum) {
  constexpr int kLook = 64;  // values that are looked at together first
  CandidateHeap heap{top_values, top_ids, 0, k};
  const float bound = lower_bound(values, n, k);
  float highest = -INFINITY;
  for (int begin = 0; begin < n; begin += kLook) {
    const int end = n - begin < kLook ? n : begin + kLook;
    if (end - begin == kLook) {
      // If a value is NaN, the maximum with it is NaN from then on, which is not below the bound (ARM), or the second
      // operand, which is what was highest so far (all others).
      F32x16 lanes = set1(-INFINITY);
      for (int i = begin; i < end; i += 16) lanes = max(load(values + i), lanes);
      if (reduce_max(lanes) < bound) continue;
    }
    for (int i = begin; i < end; i++) {
      const float value = values[i];
      if (!(value >= bound)) continue;  // NaN ranks nowhere
      highest = value > highest ? value : highest;
      if (heap.size < k)
        heap.push(value, first_id + i);
      else if (value > heap.values[0])
        heap.replace_top(value, first_id + i);
    }
  }
  *maximum = highest;
  F32x16 sums = set1(0);
  int i = 0;
  for (; i + 16 <= n; i += 16) sums = add(sums, exp(mul(sub(load(values + i), set1(*maximum)), set1(scale))));
  float total = reduce_add(sums);
  for (; i < n; i++) total += exp_of((values[i] - *maximum) * scale);
  *exp_sum = total;
  return heap.size;
}

}  // namespace
