// A list of ops over memory that Python owns, run by a thread pool. Nothing here allocates or decides while a step runs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fetching.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace dllama {

// Rows of one step; see Batch in dllama_gpu/graph/batch.py.
struct Step {
  int n_rows = 0, n_logit_rows = 0;
  const int32_t *tokens = nullptr, *slots = nullptr, *positions = nullptr, *logit_rows = nullptr;
  const float* temperatures = nullptr;
};

// What the rows of a step are kept within; see Graph in dllama_gpu/graph/graph.py.
struct Sizes {
  int max_rows, max_logit_rows, vocab_size, n_slots, seq_len;
};

// Whether a step keeps what Batch promises: no op indexes memory with anything else.
bool is_sound(const Step& step, const Sizes& sizes);

// Activations of up to max_rows rows; holds all rows of a step or, compacted, those that want logits.
struct ActivationBuffer {
  int width = 0;
  bool logit_rows_only = false;
  float* f32 = nullptr;      // [rows][width], or null when the buffer is Q80 or I32
  int32_t* i32 = nullptr;    // [rows][width]
  Q80Rows q80{};             // see kernel_table.hpp

  int rows(const Step& step) const { return logit_rows_only ? step.n_logit_rows : step.n_rows; }
  RowOutput output(const Step& step) const { return {f32, q80, width, rows(step)}; }
};

// Keys [n_slots][n_kv_heads][seq_len / 16][padded_head_dim][16] and values [n_slots][n_kv_heads][seq_len]
// [padded_head_dim] of one layer; seq_len and padded_head_dim are multiples of 16. Scales of Q80 lie behind all elements,
// [...][padded_head_dim / 32][16] and [...][padded_head_dim / 32].
struct KvCache {
  CacheType type = CacheType::F16;
  uint8_t *keys = nullptr, *values = nullptr;
  float *key_scales = nullptr, *value_scales = nullptr;  // of Q80
  int n_slots = 0, n_kv_heads = 0, seq_len = 0, head_dim = 0, padded_head_dim = 0;

  size_t element_bytes() const { return type == CacheType::Q80 ? 1 : type == CacheType::F16 ? 2 : 4; }
  size_t elements() const { return static_cast<size_t>(n_slots) * n_kv_heads * seq_len * padded_head_dim; }
  AttentionArgs head(int slot, int kv_head) const {
    const size_t at = place_of(slot, kv_head, 0).head;
    const bool scaled = type == CacheType::Q80;
    return {padded_head_dim, keys + at * element_bytes(), values + at * element_bytes(),
            scaled ? key_scales + at / kBlock : nullptr, scaled ? value_scales + at / kBlock : nullptr, {}};
  }
  // Writes key and value, [head_dim] each, of a position.
  void store(const KernelTable& kernels, int slot, int kv_head, int position, const float* key,
             const float* value) const;
  // Lists where `store` writes, but for scales.
  void list_place(int slot, int kv_head, int position, FetchList& list) const;

 private:
  // The elements where a head, and in it the key and the value of a position, begin; the key's are 16 apart.
  struct Place {
    size_t head, key, value;
  };
  Place place_of(int slot, int kv_head, int position) const {
    const size_t width = static_cast<size_t>(padded_head_dim);
    const size_t head = (static_cast<size_t>(slot) * n_kv_heads + kv_head) * seq_len * width;
    return {head, head + position / 16 * width * 16 + position % 16, head + position * width};
  }
};

// As many matrices of one shape, the packed experts of a layer, each `stride` bytes behind the one before.
struct PackedExperts {
  PackedWeight first{};
  int n = 0;
  size_t stride = 0;

  PackedWeight expert(int i) const {
    PackedWeight weight = first;
    weight.data += static_cast<size_t>(i) * stride;
    return weight;
  }
};

// A matrix whose rows are read one at a time: packed, or as a file holds it.
struct RowSource {
  PackedWeight weight{};
  const uint8_t* row_major = nullptr;  // rows row_stride bytes apart; null when `weight` is packed
  size_t row_stride = 0;
};

// The first of the units that are a thread's share; thread n_threads has the end.
static inline int first_of_share(int units, int thread, int n_threads) {
  return static_cast<int>((static_cast<int64_t>(units) * thread + n_threads - 1) / n_threads);
}

// The thread that runs some units.
struct Worker {
  int thread, n_threads;
  uint8_t* scratch;  // scratch_bytes() of the op, 64-byte aligned
  Stretch then;      // the beginning of its share of what the next op that reads much will read; may be empty

  // Its share of an op's units.
  int begin_of_share(int units) const { return first_of_share(units, thread, n_threads); }
  int end_of_share(int units) const { return first_of_share(units, thread + 1, n_threads); }
  bool owns(int unit, int units) const { return begin_of_share(units) <= unit && unit < end_of_share(units); }
  // Where the second half of its share begins; a share of one unit is all second half.
  int second_half(int units) const {
    const int first = begin_of_share(units), n = end_of_share(units) - first;
    return n == 1 ? first : first + (n + 1) / 2;
  }
};

// One op. Its work is cut into units that threads take in any order; a unit's result must not depend on which thread
// runs it or on how many there are.
class Op {
 public:
  virtual ~Op() = default;
  // Called by one thread before the step.
  virtual void prepare(const Step&) {}
  virtual int units(const Step& step) const = 0;
  virtual void run(const Step& step, int begin, int end, const Worker& worker) const = 0;
  virtual size_t scratch_bytes() const { return 0; }
  // Lists what a thread's share of the step will read, or change in part, unless an earlier op of the step leaves it in the
  // caches anyway; far less than they hold. Called after prepare, while an earlier op runs, and for steps of few rows.
  virtual void list_inputs(const Step&, const Worker&, FetchList&) const {}
  // The large memory that it reads from front to back, if any.
  virtual Stretch reads() const { return {}; }

  // What the next op that reads much will read.
  Stretch following() const { return following_; }
  void set_following(Stretch following) { following_ = following; }

 private:
  Stretch following_;
};

// Runs ops one after the other, each when all units of the one before are done. Threads take part when they can: one
// that was pushed off its core holds up at most the units it has taken.
class Program final : public SharedWork {
 public:
  Program(std::shared_ptr<ThreadPool> pool, const KernelTable& kernels, const Sizes& sizes)
      : pool_(std::move(pool)), kernels_(kernels), sizes_(sizes) {}
  ~Program() { pool_->retire(*this); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const KernelTable& kernels() const { return kernels_; }
  const Sizes& sizes() const { return sizes_; }
  void add(std::unique_ptr<Op> op);

  // Runs ops [begin, end) of a sound step.
  void run(const Step& step, size_t begin, size_t end);
  // The same; also adds the seconds each op took on the calling thread, waiting included, to seconds[op].
  void run_timed(const Step& step, size_t begin, size_t end, double* seconds);
  size_t n_ops() const { return ops_.size(); }
  bool streams_weights(size_t op) const { return ops_.at(op)->reads().begin != nullptr; }

  void take_part(int thread) override;

 private:
  // Where an op stands in a run.
  struct State {
    std::atomic<int> units{0};  // changes only while `next_` says that nothing is left
    std::atomic<int> done{0};
  };

  void start(const Step& step, size_t begin, size_t end);
  bool finish_op(size_t index, uint32_t run, int thread);
  bool take_units(size_t index, uint32_t run, int owner, const Worker& worker);
  bool is_current(size_t index, uint32_t run) const;
  void run_units(size_t index, int units, int begin, int end, const Worker& worker) const;
  void run_and_fetch(size_t index, int begin, int end, const Worker& worker) const;
  void fetch_while_waiting(size_t index, Stretch stretch) const;
  Worker worker_of(int thread, size_t index);
  // The first unit of a thread's share.
  int share_of(int units, int thread) const;

  std::shared_ptr<ThreadPool> pool_;
  const KernelTable& kernels_;
  const Sizes sizes_;
  std::vector<std::unique_ptr<Op>> ops_;
  std::unique_ptr<State[]> states_;
  // [op][thread] The first unit of a thread's share that nobody has taken, with the number of the run in the upper half.
  std::unique_ptr<std::atomic<uint64_t>[]> next_;
  size_t n_states_ = 0;
  Step step_;
  std::atomic<uint32_t> run_{0};
  std::atomic<size_t> begin_{0}, end_{0};
  double* seconds_ = nullptr;  // of the calling thread, where it wants them
  Epoch op_done_;
  size_t scratch_bytes_ = 0;
  std::vector<uint8_t> scratch_;  // [threads][scratch_bytes_], plus alignment
};

}  // namespace dllama
