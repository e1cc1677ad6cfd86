// Flash-style attention over one chunk of the cache, and its merge. Source: Dao et al., "FlashAttention" (2022).
// Needs one simd_*.hpp and rows.inl included before.

namespace {

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
    fetch_line_early(now.begin);
    now.begin += dllama::kLineBytes;
  }
};

// How 16 elements of a cache are read; scales of Q80 are applied to sums of keys and to each value.
struct F16Cache {
  static constexpr size_t kBytes = 2;
  static constexpr bool kHasScales = false;
  static F32x16 read(const uint8_t* data, size_t at) { return load_f16(reinterpret_cast<const uint16_t*>(data) + at); }
};
struct F32Cache {
  static constexpr size_t kBytes = 4;
  static constexpr bool kHasScales = false;
  static F32x16 read(const uint8_t* data, size_t at) { return load(reinterpret_cast<const float*>(data) + at); }
};
struct Q80Cache {
  static constexpr size_t kBytes = 1;
  static constexpr bool kHasScales = true;
  static F32x16 read(const uint8_t* data, size_t at) { return load_i8(reinterpret_cast<const int8_t*>(data) + at); }
};

// Adds the products of elements [d, end) of the queries and of B blocks of 16 keys to their sums. The chains of
// additions of Q * B vectors run side by side, which hides their latency.
template <class Cache, int Q, int B>
inline void multiply_keys(const AttentionArgs& args, const float* queries, size_t keys, int d, int end,
                          F32x16 (&sums)[B][Q], Ahead& ahead) {
  const int width = args.padded_head_dim;
  for (; d < end; d++) {
    F32x16 key[B];
    DLLAMA_UNROLL
    for (int b = 0; b < B; b++) key[b] = Cache::read(args.k, keys + (static_cast<size_t>(b) * width + d) * 16);
    ahead.fetch();
    if (B > 1) ahead.fetch();
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) {
      const F32x16 query = set1(queries[q * width + d]);
      DLLAMA_UNROLL
      for (int b = 0; b < B; b++) sums[b][q] = fma(query, key[b], sums[b][q]);
    }
  }
}

template <int Q, int B>
inline void clear(F32x16 (&sums)[B][Q]) {
  DLLAMA_UNROLL
  for (int b = 0; b < B; b++) {
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) sums[b][q] = set1(0);
  }
}

// scores[q][p] = queries[q] . key of position begin + p, for B blocks of 16 positions from p.
template <class Cache, int Q, int B>
inline void score_blocks(const AttentionArgs& args, const float* queries, int begin, int p, float* scores,
                         Ahead& ahead) {
  const int width = args.padded_head_dim;
  const size_t first = static_cast<size_t>((begin + p) / 16), keys = first * width * 16;
  F32x16 sums[B][Q];
  clear(sums);
  if constexpr (Cache::kHasScales) {
    const int n_blocks = width / kBlock;
    for (int block = 0; block < n_blocks; block++) {
      F32x16 products[B][Q];
      clear(products);
      multiply_keys<Cache>(args, queries, keys, block * kBlock, (block + 1) * kBlock, products, ahead);
      DLLAMA_UNROLL
      for (int b = 0; b < B; b++) {
        const F32x16 scale = load(args.k_scales + ((first + b) * n_blocks + block) * 16);
        DLLAMA_UNROLL
        for (int q = 0; q < Q; q++) sums[b][q] = fma(products[b][q], scale, sums[b][q]);
      }
    }
  } else {
    multiply_keys<Cache>(args, queries, keys, 0, width, sums, ahead);
  }
  DLLAMA_UNROLL
  for (int b = 0; b < B; b++) {
    DLLAMA_UNROLL
    for (int q = 0; q < Q; q++) store(scores + q * kAttentionChunk + p + 16 * b, sums[b][q]);
  }
}

// Scores of positions [first, end) of the chunk that starts at begin; first is a multiple of 16.
template <class Cache, int Q>
inline void score_queries(const AttentionArgs& args, const float* queries, int begin, int first, int end,
                          float* scores, Ahead& ahead) {
  int p = first;
  for (; p + 16 * (kKeyBlocks - 1) < end; p += 16 * kKeyBlocks)
    score_blocks<Cache, Q, kKeyBlocks>(args, queries, begin, p, scores, ahead);
  for (; p < end; p += 16) score_blocks<Cache, Q, 1>(args, queries, begin, p, scores, ahead);
}

inline void fill(float* row, int begin, int end, float value) {
  for (int i = begin; i < end; i++) row[i] = value;
}

// What is seen of no position.
inline void become_empty(AttentionPartial& partial, int padded_head_dim) {
  partial.maximum = -INFINITY;
  partial.sum = 0;
  fill(partial.out, 0, padded_head_dim, 0);
}

// Turns each query's scores [seen.begin, seen.end) into exp(score - maximum), and those around them from `first` to `end`,
// both multiples of 16, into zero. The queries' chains of operations run side by side.
template <int Q>
inline void soften(float* scores, const PositionSpan (&seen)[Q], int first, int end, AttentionPartial* partials) {
  F32x16 maxima[Q], sums[Q];
  for (int q = 0; q < Q; q++) {
    float* row = scores + q * kAttentionChunk;
    fill(row, first, seen[q].begin, row[seen[q].begin]);
    fill(row, seen[q].end, end, row[seen[q].begin]);
    maxima[q] = load(row + first);
    sums[q] = set1(0);
  }
  for (int i = first + 16; i < end; i += 16)
    for (int q = 0; q < Q; q++) maxima[q] = max(maxima[q], load(scores + q * kAttentionChunk + i));
  for (int q = 0; q < Q; q++) {
    partials[q].maximum = reduce_max(maxima[q]);
    maxima[q] = set1(partials[q].maximum);
  }
  for (int i = first; i < end; i += 16)
    for (int q = 0; q < Q; q++) {
      float* at = scores + q * kAttentionChunk + i;
      store(at, exp(sub(load(at), maxima[q])));
    }
  for (int q = 0; q < Q; q++) {
    float* row = scores + q * kAttentionChunk;
    fill(row, first, seen[q].begin, 0);
    fill(row, seen[q].end, end, 0);
  }
  for (int i = first; i < end; i += 16)
    for (int q = 0; q < Q; q++) sums[q] = add(sums[q], load(scores + q * kAttentionChunk + i));
  for (int q = 0; q < Q; q++) partials[q].sum = reduce_add(sums[q]);
}

template <class Cache, int Q, int V>
inline void weigh_columns(const AttentionArgs& args, const float* scores, int begin, int first, int end, int column,
                          AttentionPartial* partials, Ahead& ahead) {
  F32x16 sums[Q][V];
  DLLAMA_UNROLL
  for (int q = 0; q < Q; q++) {
    DLLAMA_UNROLL
    for (int i = 0; i < V; i++) sums[q][i] = set1(0);
  }
  const auto width = static_cast<size_t>(args.padded_head_dim);
  size_t at = static_cast<size_t>(begin + first) * width + column;  // the position's values, from this column on
  for (int p = first; p < end; p++, at += width) {
    F32x16 value[V];
    DLLAMA_UNROLL
    for (int i = 0; i < V; i++) {
      value[i] = Cache::read(args.v, at + 16 * i);
      if constexpr (Cache::kHasScales) value[i] = mul(value[i], set1(args.v_scales[(at + 16 * i) / kBlock]));
    }
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

template <class Cache, int Q>
inline void attend_queries(const AttentionArgs& args, const float* queries, int begin, const PositionSpan* spans,
                           float* scores, AttentionPartial* partials) {
  // What any of the queries sees, counted from begin.
  int first = kAttentionChunk, end = 0;
  for (int q = 0; q < Q; q++) {
    first = spans[q].begin - begin < first ? spans[q].begin - begin : first;
    end = spans[q].end - begin > end ? spans[q].end - begin : end;
  }
  first = first < 0 ? 0 : first / 16 * 16;
  if (first >= end) {
    for (int q = 0; q < Q; q++) become_empty(partials[q], args.padded_head_dim);
    return;
  }
  const int padded_end = (end + 15) / 16 * 16;
  const size_t row_bytes = static_cast<size_t>(args.padded_head_dim) * Cache::kBytes;
  Ahead ahead{{args.v + static_cast<size_t>(begin + first) * row_bytes, args.v + static_cast<size_t>(begin + end) * row_bytes},
              args.then};
  score_queries<Cache, Q>(args, queries, begin, first, end, scores, ahead);
  PositionSpan seen[Q];
  bool sees[Q];
  for (int q = 0; q < Q; q++) {
    seen[q] = {spans[q].begin > begin ? spans[q].begin - begin : 0, spans[q].end - begin};
    sees[q] = seen[q].begin < seen[q].end;
    if (!sees[q]) seen[q] = {first, first + 1};  // something that can be computed with
  }
  soften(scores, seen, first, padded_end, partials);
  int column = 0;
  for (; column + 16 * kValueVectors <= args.padded_head_dim; column += 16 * kValueVectors)
    weigh_columns<Cache, Q, kValueVectors>(args, scores, begin, first, end, column, partials, ahead);
  for (; column < args.padded_head_dim; column += 16)
    weigh_columns<Cache, Q, 1>(args, scores, begin, first, end, column, partials, ahead);
  for (int q = 0; q < Q; q++)
    if (!sees[q]) become_empty(partials[q], args.padded_head_dim);
}

template <class Cache>
void attention_chunk(const AttentionArgs& args, const float* queries, int n_queries, int begin,
                     const PositionSpan* spans, float* scores, AttentionPartial* partials) {
  int q = 0;
  for (; q + 4 <= n_queries; q += 4)
    attend_queries<Cache, 4>(args, queries + q * args.padded_head_dim, begin, spans + q, scores, partials + q);
  const float* rest = queries + q * args.padded_head_dim;
  switch (n_queries - q) {
    case 3:
      return attend_queries<Cache, 3>(args, rest, begin, spans + q, scores, partials + q);
    case 2:
      return attend_queries<Cache, 2>(args, rest, begin, spans + q, scores, partials + q);
    case 1:
      return attend_queries<Cache, 1>(args, rest, begin, spans + q, scores, partials + q);
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
