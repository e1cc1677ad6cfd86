// Attention in two ops. The first covers (rows of one slot) x (KV head) x (chunk of positions), the second puts a
// row's chunks together, divides, and writes the row. Where a step of few rows has only one chunk to a row, the first
// does that, too, and spares the threads a meeting.
//
// A step of few rows is cut by chunks, so that a long context keeps all threads busy; a step of many rows has work
// enough without, and merges the chunks of a row as it goes. Both merge the same partial results in the same order.

#include <cmath>
#include <cstring>

#include "fetching.hpp"
#include "ops.hpp"

namespace dllama {

namespace {

constexpr int kSplitRows = 8;       // steps of at most this many rows are cut by chunks
constexpr ptrdiff_t kMostFetched = 64 << 10;
constexpr int kQueriesAtOnce = 16;  // queries (rows times heads of a KV group) that share a pass over the keys

// Neighbouring rows of one slot.
struct Tile {
  int row, n_rows;
  int first_chunk, end_chunk;
  int first_unit;

  int n_chunks() const { return end_chunk - first_chunk; }
};

int chunk_of(int position) { return position / kAttentionChunk; }

}  // namespace

struct AttentionWork {
  int max_rows, n_heads, padded_head_dim, max_chunks;
  std::vector<float> out;                 // [partials][padded_head_dim]
  std::vector<AttentionPartial> partials;  // split: [row][head][chunk]; else [row][head]

  static bool split(const Step& step) { return step.n_rows <= kSplitRows; }
  AttentionPartial& partial(const Step& step, int row, int head, int chunk) {
    const size_t index = static_cast<size_t>(row) * n_heads + head;
    return partials[split(step) ? index * max_chunks + chunk : index];
  }

  // Whether each row sees positions of one chunk only, so that its heads are whole when that is done, and whether they can
  // be written one by one: heads that share no block of Q80.
  static bool joins_at_once(const Step& step, const QueryHeads& heads, const ActivationBuffer& out, int head_dim) {
    if (!split(step) || (!out.f32 && head_dim % kBlock != 0)) return false;
    for (int row = 0; row < step.n_rows; row++) {
      const PositionSpan seen = heads.seen_from(step.positions[row]);
      if (chunk_of(seen.begin) != chunk_of(seen.end - 1)) return false;
    }
    return true;
  }
};

namespace {

// A head's weighted values, divided by the sum of the weights.
void divide(const AttentionPartial& whole, int head_dim, float* to) {
  for (int d = 0; d < head_dim; d++) to[d] = whole.out[d] / whole.sum;
}

}  // namespace

std::shared_ptr<AttentionWork> make_attention_work(int max_rows, int n_heads, int padded_head_dim, int seq_len) {
  auto work = std::make_shared<AttentionWork>();
  work->max_rows = max_rows;
  work->n_heads = n_heads;
  work->padded_head_dim = padded_head_dim;
  work->max_chunks = chunk_of(seq_len - 1) + 1;
  const size_t split_rows = max_rows < kSplitRows ? max_rows : kSplitRows;
  const size_t split = split_rows * work->max_chunks, whole = static_cast<size_t>(max_rows);
  const size_t count = (split > whole ? split : whole) * n_heads;
  work->out.resize(count * padded_head_dim);
  work->partials.resize(count);
  for (size_t i = 0; i < count; i++) work->partials[i] = {0, 0, work->out.data() + i * padded_head_dim};
  return work;
}

namespace {

class AttentionChunks : public Op {
 public:
  AttentionChunks(const KernelTable& kernels, const ActivationBuffer& qkv, const KvCache& cache,
                  const ActivationBuffer& out, const QueryHeads& heads, float scale,
                  std::shared_ptr<AttentionWork> work)
      : kernels_(kernels),
        attention_chunk_(kernels.attention_chunk[static_cast<int>(cache.type)]),
        qkv_(qkv),
        out_(out),
        cache_(cache),
        heads_(heads),
        rows_at_once_(heads.group < kQueriesAtOnce ? kQueriesAtOnce / heads.group : 1),
        scale_(scale),
        work_(std::move(work)) {
    tiles_.reserve(work_->max_rows);
  }

  void prepare(const Step& step) override {
    tiles_.clear();
    int unit = 0;
    for (int row = 0; row < step.n_rows;) {
      int n = 1;
      while (n < rows_at_once_ && row + n < step.n_rows && step.slots[row + n] == step.slots[row]) n++;
      int first = step.positions[row], last = 0;
      for (int i = 0; i < n; i++) {
        const PositionSpan seen = heads_.seen_from(step.positions[row + i]);
        first = seen.begin < first ? seen.begin : first;
        last = seen.end - 1 > last ? seen.end - 1 : last;
      }
      tiles_.push_back({row, n, chunk_of(first), chunk_of(last) + 1, unit});
      unit += cache_.n_kv_heads * (AttentionWork::split(step) ? tiles_.back().n_chunks() : 1);
      row += n;
    }
    n_units_ = unit;
    joins_ = AttentionWork::joins_at_once(step, heads_, out_, cache_.head_dim);
  }

  int units(const Step&) const override { return n_units_; }

  // The keys with which the share begins; the others and the values are fetched while it is computed.
  void list_inputs(const Step& step, const Worker& worker, FetchList& list) const override {
    const int unit = worker.begin_of_share(n_units_);
    if (!AttentionWork::split(step) || !worker.owns(unit, n_units_)) return;
    size_t at = 0;
    while (at + 1 < tiles_.size() && tiles_[at + 1].first_unit <= unit) at++;
    list.add(keys_of_unit(step, tiles_[at], unit - tiles_[at].first_unit), kMostFetched);
  }

  size_t scratch_bytes() const override {
    const size_t queries = max_queries();
    // Queries, scores, and one partial result a query for chunks that are merged at once.
    return queries * (sizeof(float) * (2 * cache_.padded_head_dim + kAttentionChunk) + 2 * sizeof(AttentionPartial) +
                      2 * sizeof(PositionSpan)) + 256;
  }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    // Of its own share a thread runs the units behind these, too, most likely.
    const int last = worker.owns(begin, n_units_) ? worker.end_of_share(n_units_) : end;
    size_t at = 0;
    for (int unit = begin; unit < end; unit++) {
      while (at + 1 < tiles_.size() && tiles_[at + 1].first_unit <= unit) at++;
      const Tile& tile = tiles_[at];
      const int local = unit - tile.first_unit;
      if (AttentionWork::split(step)) {
        const int chunk = tile.first_chunk + local % tile.n_chunks();
        attend(step, tile, local / tile.n_chunks(), chunk, chunk + 1,
               unit + 1 < last ? keys_of_unit(step, tile, local + 1) : worker.then, worker.scratch);
      } else {
        attend(step, tile, local, tile.first_chunk, tile.end_chunk, {}, worker.scratch);
      }
    }
  }

 private:
  size_t max_queries() const { return static_cast<size_t>(rows_at_once_) * heads_.group; }

  // Keys that a unit of `tile` reads first; those of another tile are not looked for.
  Stretch keys_of_unit(const Step& step, const Tile& tile, int local) const {
    const int kv_head = local / tile.n_chunks(), begin = (tile.first_chunk + local % tile.n_chunks()) * kAttentionChunk;
    if (kv_head >= cache_.n_kv_heads) return {};
    const int past = step.positions[tile.row + tile.n_rows - 1] + 1 - begin;
    const auto n = static_cast<size_t>(past < kAttentionChunk ? past : kAttentionChunk);
    const size_t position_bytes = cache_.padded_head_dim * cache_.element_bytes();
    const uint8_t* keys = cache_.head(step.slots[tile.row], kv_head).k + static_cast<size_t>(begin) * position_bytes;
    return {keys, keys + n * position_bytes};
  }

  void attend(const Step& step, const Tile& tile, int kv_head, int first_chunk, int end_chunk, Stretch then,
              uint8_t* scratch) const {
    // The query heads that read this KV head: all of its group, but for the first and last group of a node.
    const int group_start = kv_head * heads_.group - heads_.first;
    const int first_head = group_start < 0 ? 0 : group_start;
    const int end_head = group_start + heads_.group < heads_.n ? group_start + heads_.group : heads_.n;
    const int n_heads = end_head - first_head;
    if (n_heads <= 0) return;
    const int width = cache_.padded_head_dim, n_queries = tile.n_rows * n_heads;
    auto* queries = reinterpret_cast<float*>(scratch);
    float* scores = queries + max_queries() * width;
    float* later_out = scores + max_queries() * kAttentionChunk;
    auto* partials = reinterpret_cast<AttentionPartial*>(later_out + max_queries() * width);
    AttentionPartial* later = partials + max_queries();
    auto* spans = reinterpret_cast<PositionSpan*>(later + max_queries());
    PositionSpan* chunk_spans = spans + max_queries();

    for (int q = 0; q < n_queries; q++) {
      const int row = tile.row + q / n_heads, head = first_head + q % n_heads;
      const float* from = qkv_.f32 + static_cast<size_t>(row) * qkv_.width + head * cache_.head_dim;
      for (int d = 0; d < cache_.head_dim; d++) queries[q * width + d] = from[d] * scale_;
      for (int d = cache_.head_dim; d < width; d++) queries[q * width + d] = 0;
      spans[q] = heads_.seen_from(step.positions[row]);
      later[q] = {0, 0, later_out + static_cast<size_t>(q) * width};
    }
    const int slot = step.slots[tile.row];
    AttentionArgs args = cache_.head(slot, kv_head);
    args.then = then;
    for (int chunk = first_chunk; chunk < end_chunk; chunk++) {
      const int begin = chunk * kAttentionChunk, limit = begin + kAttentionChunk;
      for (int q = 0; q < n_queries; q++) {
        chunk_spans[q] = {spans[q].begin, spans[q].end < limit ? spans[q].end : limit};
        partials[q] = chunk == first_chunk
                          ? work_->partial(step, tile.row + q / n_heads, first_head + q % n_heads, chunk)
                          : later[q];
      }
      attention_chunk_(args, queries, n_queries, begin, chunk_spans, scores, partials);
      for (int q = 0; q < n_queries; q++) {
        AttentionPartial& into =
            work_->partial(step, tile.row + q / n_heads, first_head + q % n_heads, first_chunk);
        if (chunk == first_chunk)
          into = partials[q];
        else
          kernels_.attention_merge(into, partials[q], width);
      }
    }
    if (!joins_) return;
    // Rows of one slot may have gaps between them, and their windows lie in several chunks: each row in one of them.
    for (int q = 0; q < n_queries; q++)
      if (chunk_of(spans[q].begin) == first_chunk)
        write(step, tile.row + q / n_heads, first_head + q % n_heads, first_chunk);
  }

  void write(const Step& step, int row, int head, int chunk) const {
    float whole[kMaxHeadDim];
    divide(work_->partial(step, row, head, chunk), cache_.head_dim, whole);
    kernels_.store_row(whole, cache_.head_dim, out_.output(step), row, head * cache_.head_dim);
  }

  const KernelTable& kernels_;
  void (*attention_chunk_)(const AttentionArgs&, const float*, int, int, const PositionSpan*, float*,
                           AttentionPartial*);
  ActivationBuffer qkv_, out_;
  KvCache cache_;
  QueryHeads heads_;
  int rows_at_once_;
  float scale_;
  std::shared_ptr<AttentionWork> work_;
  std::vector<Tile> tiles_;
  int n_units_ = 0;
  bool joins_ = false;
};

class AttentionJoin : public Op {
 public:
  AttentionJoin(const KernelTable& kernels, const KvCache& cache, const QueryHeads& heads, const ActivationBuffer& out,
                std::shared_ptr<AttentionWork> work)
      : kernels_(kernels), cache_(cache), heads_(heads), out_(out), work_(std::move(work)) {}

  int units(const Step& step) const override {
    return AttentionWork::joins_at_once(step, heads_, out_, cache_.head_dim) ? 0 : step.n_rows;
  }
  size_t scratch_bytes() const override { return sizeof(float) * (static_cast<size_t>(out_.width) + 16); }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    auto* joined = reinterpret_cast<float*>(worker.scratch);
    for (int row = begin; row < end; row++) {
      const PositionSpan seen = heads_.seen_from(step.positions[row]);
      const int first = AttentionWork::split(step) ? chunk_of(seen.begin) : 0;
      const int last = AttentionWork::split(step) ? chunk_of(seen.end - 1) : 0;
      for (int head = 0; head < heads_.n; head++) {
        AttentionPartial& whole = work_->partial(step, row, head, first);
        for (int chunk = first + 1; chunk <= last; chunk++)
          kernels_.attention_merge(whole, work_->partial(step, row, head, chunk), cache_.padded_head_dim);
        divide(whole, cache_.head_dim, joined + static_cast<size_t>(head) * cache_.head_dim);
      }
      kernels_.store_row(joined, out_.width, out_.output(step), row, 0);
    }
  }

 private:
  const KernelTable& kernels_;
  KvCache cache_;
  QueryHeads heads_;
  ActivationBuffer out_;
  std::shared_ptr<AttentionWork> work_;
};

}  // namespace

std::unique_ptr<Op> make_attention_chunks(const KernelTable& kernels, const ActivationBuffer& qkv, const KvCache& cache,
                                          const ActivationBuffer& out, const QueryHeads& heads, float scale,
                                          std::shared_ptr<AttentionWork> work) {
  return std::make_unique<AttentionChunks>(kernels, qkv, cache, out, heads, scale, std::move(work));
}

std::unique_ptr<Op> make_attention_join(const KernelTable& kernels, const KvCache& cache, const QueryHeads& heads,
                                        const ActivationBuffer& out, std::shared_ptr<AttentionWork> work) {
  return std::make_unique<AttentionJoin>(kernels, cache, heads, out, std::move(work));
}

}  // namespace dllama
