// The k best of many logits by a bounded heap, and their log-sum-exp; needs one simd_*.hpp and rows.inl included before.

namespace {

// The highest of no logits. Not minus infinity, whose difference with itself is no number.
constexpr float kLowest = -3.4028235e38f;

// Whether (value, id) ranks below (other_value, other_id): smaller, or equal with a higher id.
inline bool ranks_below(float value, int id, float other_value, int other_id) {
  return value < other_value || (value == other_value && id > other_id);
}

inline bool ranks_below(const CandidateHeap& heap, int a, int b) {
  return ranks_below(heap.values[a], heap.ids[a], heap.values[b], heap.ids[b]);
}

inline void swap(CandidateHeap& heap, int a, int b) {
  const float value = heap.values[a];
  const int id = heap.ids[a];
  heap.values[a] = heap.values[b], heap.ids[a] = heap.ids[b];
  heap.values[b] = value, heap.ids[b] = id;
}

inline void push(CandidateHeap& heap, float value, int id) {
  int i = heap.size++;
  heap.values[i] = value, heap.ids[i] = id;
  for (; i > 0 && ranks_below(heap, i, (i - 1) / 2); i = (i - 1) / 2) swap(heap, i, (i - 1) / 2);
}

inline void replace_top(CandidateHeap& heap, float value, int id) {
  heap.values[0] = value, heap.ids[0] = id;
  for (int i = 0;;) {
    int lowest = i;
    for (int child = 2 * i + 1; child <= 2 * i + 2; child++)
      if (child < heap.size && ranks_below(heap, child, lowest)) lowest = child;
    if (lowest == i) return;
    swap(heap, i, lowest);
    i = lowest;
  }
}

inline void add_candidate(CandidateHeap& heap, float value, int id) {
  if (heap.size < heap.capacity)
    push(heap, value, id);
  else if (ranks_below(heap.values[0], heap.ids[0], value, id))
    replace_top(heap, value, id);
}

// In few instructions, and without a branch that depends on the logits: it runs while memory streams the head's weights,
// and whatever keeps the processor from looking ahead holds that up.
void survey_logits(const float* logits, int n, float scale, bool begins, LogitSurvey& survey) {
  float padded[16];
  if (n < 16) {
    for (int i = 0; i < 16; i++) padded[i] = i < n ? logits[i] : -INFINITY;
    logits = padded;
  }
  const F32x16 values = load(logits);
  const F32x16 highest = begins ? set1(kLowest) : load(survey.maxima);
  const F32x16 sums = begins ? set1(0) : load(survey.exp_sums);
  // The higher of value and maximum has exp(0), the lower this.
  const F32x16 lower = exp(mul(sub(set1(0), abs(sub(values, highest))), set1(scale)));
  store(survey.exp_sums, pick_greater(values, highest, fma(sums, lower, set1(1)), add(sums, lower)));
  // If a value is NaN, the maximum is NaN from then on (ARM), or what it was (all others).
  store(survey.maxima, max(values, highest));
}

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

// A value that at least k of the logits reach and few others do: the k-th largest of up to 512 maxima. -infinity where
// there are fewer than k.
inline float lower_bound(const LogitSurvey* surveys, int n_surveys, int k) {
  constexpr int kMost = 32;
  float maxima[16 * kMost];
  const int n = n_surveys < kMost ? n_surveys : kMost;
  if (k > 16 * n) return -INFINITY;
  for (int i = 0; i < n_surveys; i++) {
    const F32x16 before = i < kMost ? set1(kLowest) : load(maxima + i % kMost * 16), these = load(surveys[i].maxima);
    store(maxima + i % kMost * 16, pick_greater(these, before, these, before));  // not NaN
  }
  const float bound = kth_largest(maxima, 16 * n, k);
  return bound > kLowest ? bound : -INFINITY;
}

// log(sum(exp(v * scale))) of all logits; NaN where one is.
inline float log_sum_exp(const LogitSurvey* surveys, int n_surveys, float scale) {
  F32x16 lanes = set1(kLowest), sums = set1(0);
  for (int i = 0; i < n_surveys; i++) lanes = max(load(surveys[i].maxima), lanes);
  const float highest = reduce_max(lanes);
  for (int i = 0; i < n_surveys; i++) {
    const F32x16 weights = exp(mul(sub(load(surveys[i].maxima), set1(highest)), set1(scale)));
    sums = fma(load(surveys[i].exp_sums), weights, sums);
  }
  const double sum = reduce_add(sums);
  if (sum != sum) return NAN;
  const double most = highest > kLowest ? highest : -INFINITY;
  return static_cast<float>(most * scale + std::log(sum));
}

float search_logits(const float* logits, int n, int first_id, float scale, const LogitSurvey* surveys, int surveyed,
                    CandidateHeap& best) {
  constexpr int kLook = 64;  // logits that are looked at together first
  const int n_surveys = (n + surveyed - 1) / surveyed;
  float bound = lower_bound(surveys, n_surveys, best.capacity);
  for (int s = 0; s < n_surveys; s++) {
    // With a NaN this is NaN (ARM), which is not below the bound, or the highest of the others (all others); below, too.
    if (reduce_max(load(surveys[s].maxima)) < bound) continue;
    const int past = n - s * surveyed < surveyed ? n : (s + 1) * surveyed;
    for (int begin = s * surveyed; begin < past; begin += kLook) {
      const int end = past - begin < kLook ? past : begin + kLook;
      if (end - begin == kLook) {
        F32x16 lanes = set1(-INFINITY);
        for (int i = begin; i < end; i += 16) lanes = max(load(logits + i), lanes);
        if (reduce_max(lanes) < bound) continue;
      }
      for (int i = begin; i < end; i++)
        if (logits[i] >= bound) add_candidate(best, logits[i], first_id + i);  // NaN ranks nowhere
    }
    if (best.size == best.capacity) bound = best.values[0];
  }
  return log_sum_exp(surveys, n_surveys, scale);
}

}  // namespace
