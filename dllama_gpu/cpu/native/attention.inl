// Flash-style attention over one chunk of the f16 cache, and its merge. Source: Dao et al., "FlashAttention" (2022).
// Needs one simd_*.hpp and rows.inl included before.

namespace {

constexpr int kCacheLine = 64;

// What is read next: the values of a chunk while it is scored, then what its caller knows of.
struct Ahead {
  Stretch now, then;

  // Fetches one more line, called once for some ten multiply-adds.
  void fetch() {
    if (now.begin >= now.end) {
      if (then.begin >= then.end) return;
      now = then;
      then = {};
    }
    prefetch(now.begin);
    now.begin += kCacheLine;
  }
};

// scores[q][p] = queries[q] . key of position begin + p, for B blocks of 16 positions from p. The chains of additions
// of Q * B vectors run side by side, which hides their latency.
template <int Q, int B>
inline void score_blocks(const AttentionArgs& args, const float* queries, int begin, int p, float* scores, Ahead& ahead) {
  const int width = args.padded_head_dim;
  const uint16_t* keys = args.k + static_cast<size_t>((begin + p) / 16) * width * 16;
  F32x16 sums[B][Q];
  DLLAMA_UNROLL
  for (int b = 0; b < B; b++) {
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) sums[b][q] = set1(0);
  }
  for (int d = 0; d < width; d++) {
    F32x16 key[B];
    DLLAMA_UNROLL
    for (int b = 0; b < B; b++) key[b] = load_f16(keys + (static_cast<size_t>(b) * width + d) * 16);
    ahead.fetch();
    if (B > 1) ahead.fetch();
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) {
      const F32x16 query = set1(queries[q * width + d]);
      DLLAMA_UNROLL
      for (int b = 0; b < B; b++) sums[b][q] = fma(query, key[b], sums[b][q]);
    }
  }
  DLLAMA_UNROLL
  for (int b = 0; b < B; b++) {
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) store(scores + q * kAttentionChunk + p + 16 * b, sums[b][q]);
  }
}

template <int Q>
inline void score_queries(const AttentionArgs& args, const float* queries, int begin, int n_positions, float* scores,
                          Ahead& ahead) {
  int p = 0;
  for (; p + 16 * (kKeyBlocks - 1) < n_positions; p += 16 * kKeyBlocks)
    score_blocks<Q, kKeyBlocks>(args, queries, begin, p, scores, ahead);
  for (; p < n_positions; p += 16) score_blocks<Q, 1>(args, queries, begin, p, scores, ahead);
}

// Turns n scores into exp(score - maximum), zero up to the next `n_padded`, a multiple of 16.
inline void soften(float* scores, int n, int n_padded, AttentionPartial& partial) {
  for (int i = n; i < n_padded; i++) scores[i] = scores[0];
  F32x16 highest = load(scores);
  for (int i = 16; i < n; i += 16) highest = max(highest, load(scores + i));
  partial.maximum = reduce_max(highest);
  F32x16 sums = set1(0);
  for (int i = 0; i < n_padded; i += 16) {
    store(scores + i, exp(sub(load(scores + i), set1(partial.maximum))));
    for (int j = i > n ? i : n; j < i + 16; j++) scores[j] = 0;
    sums = add(sums, load(scores + i));
  }
  partial.sum = reduce_add(sums);
}

template <int Q, int V>
inline void weigh_columns(const AttentionArgs& args, const float* scores, int begin, int n_positions, int column,
                          AttentionPartial* partials, Ahead& ahead) {
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
    ahead.fetch();
    if (V > 1) ahead.fetch();
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
  const auto* values = reinterpret_cast<const uint8_t*>(args.v + static_cast<size_t>(begin) * args.padded_head_dim);
  Ahead ahead{{values, values + static_cast<size_t>(longest) * args.padded_head_dim * sizeof(uint16_t)}, args.then};
  score_queries<Q>(args, queries, begin, longest, scores, ahead);
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
    weigh_columns<Q, kValueVectors>(args, scores, begin, longest, column, partials, ahead);
  for (; column < args.padded_head_dim; column += 16)
    weigh_columns<Q, 1>(args, scores, begin, longest, column, partials, ahead);
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
