// Flash-style attention over one chunk of the f16 cache, and its merge. Source: Dao et al., "FlashAttention" (2022).
// Needs one simd_*.hpp and rows.inl included before.

namespace {

// scores[q][0..end) = queries[q] . k for positions begin..begin+end of one KV head, 16 positions at a time.
template <int Q>
inline void score_queries(const AttentionArgs& args, const float* queries, int begin, int n_positions, float* scores) {
  const int width = args.padded_head_dim;
  for (int p = 0; p < n_positions; p += 16) {
    const uint16_t* keys = args.k + static_cast<size_t>((begin + p) / 16) * width * 16;
    F32x16 sums[Q];
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) sums[q] = set1(0);
    for (int d = 0; d < width; d++) {
      const F32x16 key = load_f16(keys + d * 16);
      DLLAMA_UNROLL
      for (int q = 0; q < Q; q++) sums[q] = fma(set1(queries[q * width + d]), key, sums[q]);
    }
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) store(scores + q * kAttentionChunk + p, sums[q]);
  }
}

// Turns n scores into exp(score - maximum), zero up to the next `n_padded`.
inline void soften(float* scores, int n, int n_padded, AttentionPartial& partial) {
  float highest = scores[0];
  for (int i = 1; i < n; i++) highest = scores[i] > highest ? scores[i] : highest;
  for (int i = n; i < n_padded; i++) scores[i] = highest;
  F32x16 sums = set1(0);
  for (int i = 0; i < n; i += 16) {
    store(scores + i, exp(sub(load(scores + i), set1(highest))));
    const int rest = n - i;
    for (int j = rest < 0 ? 0 : rest; j < 16; j++) scores[i + j] = 0;
    sums = add(sums, load(scores + i));
  }
  for (int i = n; i < n_padded; i++) scores[i] = 0;
  partial.maximum = highest;
  partial.sum = reduce_add(sums);
}

template <int Q, int V>
inline void weigh_columns(const AttentionArgs& args, const float* scores, int begin, int n_positions, int column,
                          AttentionPartial* partials) {
  F32x16 sums[Q][V];
  DLLAMA_UNROLL
  for (int q = 0; q < Q; q++) {
    DLLAMA_UNROLL
    for (int i = 0; i < V; i++) sums[q][i] = set1(0);
  }
  const uint16_t* values = args.v + static_cast<size_t>(begin) * args.padded_head_dim + column;
  for (int p = 0; p < n_positions; p++, values += args.padded_head_dim) {
    F32x16 value[V];
    DLLAMA_UNROLL
    for (int i = 0; i < V; i++) value[i] = load_f16(values + 16 * i);
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) {
      const F32x16 weight = set1(scores[q * kAttentionChunk + p]);
      DLLAMA_UNROLL
      for (int i = 0; i < V; i++) sums[q][i] = fma(weight, value[i], sums[q][i]);
    }
  }
  DLLAMA_UNROLL
  for (int q = 0; q < Q; q++) {
    DLLAMA_UNROLL
    for (int i = 0; i < V; i++) store(partials[q].out + column + 16 * i, sums[q][i]);
  }
}

template <int Q>
inline void attend_queries(const AttentionArgs& args, const float* queries, int begin, const int* ends, float* scores,
                           AttentionPartial* partials) {
  int longest = 0;
  for (int q = 0; q < Q; q++) longest = ends[q] - begin > longest ? ends[q] - begin : longest;
  const int n_padded = (longest + 15) / 16 * 16;
  score_queries<Q>(args, queries, begin, longest, scores);
  for (int q = 0; q < Q; q++) {
    const int n = ends[q] - begin;
    if (n > 0) {
      soften(scores + q * kAttentionChunk, n, n_padded, partials[q]);
    } else {
      partials[q].maximum = -INFINITY;
      partials[q].sum = 0;
      for (int i = 0; i < n_padded; i++) scores[q * kAttentionChunk + i] = 0;
    }
  }
  int column = 0;
  for (; column + 16 * kValueVectors <= args.padded_head_dim; column += 16 * kValueVectors)
    weigh_columns<Q, kValueVectors>(args, scores, begin, longest, column, partials);
  for (; column < args.padded_head_dim; column += 16)
    weigh_columns<Q, 1>(args, scores, begin, longest, column, partials);
}

void attention_chunk(const AttentionArgs& args, const float* queries, int n_queries, int begin, const int* ends,
                     float* scores, AttentionPartial* partials) {
  int q = 0;
  for (; q + 4 <= n_queries; q += 4)
    attend_queries<4>(args, queries + q * args.padded_head_dim, begin, ends + q, scores, partials + q);
  const float* rest = queries + q * args.padded_head_dim;
  switch (n_queries - q) {
    case 3:
      return attend_queries<3>(args, rest, begin, ends + q, scores, partials + q);
    case 2:
      return attend_queries<2>(args, rest, begin, ends + q, scores, partials + q);
    case 1:
      return attend_queries<1>(args, rest, begin, ends + q, scores, partials + q);
  }
}

void attention_merge(AttentionPartial& into, const AttentionPartial& later, int padded_head_dim) {
  if (later.sum == 0) return;
  const float maximum = into.maximum > later.maximum ? into.maximum : later.maximum;
  const float keep = into.sum == 0 ? 0.0f : exp_of(into.maximum - maximum);
  const float gain = exp_of(later.maximum - maximum);
  for (int i = 0; i < padded_head_dim; i += 16) {
    const F32x16 kept = mul(load(into.out + i), set1(keep));
    store(into.out + i, fma(load(later.out + i), set1(gain), kept));
  }
  into.sum = into.sum * keep + later.sum * gain;
  into.maximum = maximum;
}

}  // namespace
