// What happens to each head of a row before attention: biases, norms, rotation, and the write to the cache.

#include <algorithm>

#include "fetching.hpp"
#include "ops.hpp"

namespace dllama {

namespace {

void rotate_interleaved(float* head, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i++) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cosines[i] - b * sines[i];
    head[2 * i + 1] = a * sines[i] + b * cosines[i];
  }
}

void rotate_half_split(float* head, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = a * sines[i] + b * cosines[i];
  }
}

// One element of a head in every group of 16: keys lie with 16 positions side by side.
template <class T>
void scatter(const T* from, int n, T* to) {
  for (int i = 0; i < n; i++) to[static_cast<size_t>(i) * 16] = from[i];
}

class RopeStore : public Op {
 public:
  RopeStore(const KernelTable& kernels, const ActivationBuffer& qkv, const ActivationBuffer& angles,
            const KvCache& cache, int n_heads, bool half_split, const HeadPreparation& preparation)
      : kernels_(kernels),
        qkv_(qkv),
        angles_(angles),
        cache_(cache),
        n_heads_(n_heads),
        half_split_(half_split),
        preparation_(preparation) {}

  // A KV head of a row and its part of the query heads, so that a thread prepares what it attends with.
  int units(const Step& step) const override { return step.n_rows * cache_.n_kv_heads; }

  void list_inputs(const Step& step, const Worker& worker, FetchList& list) const override {
    const int n_units = units(step), end = worker.end_of_share(n_units);
    for (int unit = worker.begin_of_share(n_units); unit < end; unit++) {
      const int row = unit / cache_.n_kv_heads;
      cache_.list_place(step.slots[row], unit % cache_.n_kv_heads, step.positions[row], list);
    }
  }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    const int head_dim = cache_.head_dim, n_kv_heads = cache_.n_kv_heads;
    for (int unit = begin; unit < end; unit++) {
      const int row = unit / n_kv_heads, h = unit % n_kv_heads, at = h * head_dim;
      float* queries = qkv_.f32 + static_cast<size_t>(row) * qkv_.width;
      float *keys = queries + n_heads_ * head_dim, *values = keys + n_kv_heads * head_dim;
      for (int q = n_heads_ * h / n_kv_heads; q < n_heads_ * (h + 1) / n_kv_heads; q++)
        prepare_head(queries, q * head_dim, preparation_.q_bias, preparation_.q_norm, row);
      prepare_head(keys, at, preparation_.k_bias, preparation_.k_norm, row);
      add_bias(values, at, preparation_.v_bias);
      cache_.store(kernels_, step.slots[row], h, step.positions[row], keys + at, values + at);
    }
  }

 private:
  void add_bias(float* heads, int at, const float* bias) const {
    if (!bias) return;
    for (int i = at; i < at + cache_.head_dim; i++) heads[i] += bias[i];
  }

  // The head that begins at heads[at].
  void prepare_head(float* heads, int at, const float* bias, const float* norm, int row) const {
    add_bias(heads, at, bias);
    float* head = heads + at;
    const int half = cache_.head_dim / 2;
    if (norm) {
      const RowOutput in_place{head, {}, cache_.head_dim, 1};
      kernels_.rms_norm(head, nullptr, norm, preparation_.epsilon, cache_.head_dim, in_place, 0);
    }
    if (!angles_.f32) return;
    const float* cosines = angles_.f32 + static_cast<size_t>(row) * angles_.width;
    if (half_split_)
      rotate_half_split(head, cosines, cosines + half, half);
    else
      rotate_interleaved(head, cosines, cosines + half, half);
  }

  const KernelTable& kernels_;
  ActivationBuffer qkv_, angles_;
  KvCache cache_;
  int n_heads_;
  bool half_split_;
  HeadPreparation preparation_;
};

// A head as one Q80 row.
struct QuantizedHead {
  int8_t quants[kMaxHeadDim];
  float scales[kMaxHeadDim / kBlock], scaled_sums[kMaxHeadDim / kBlock];
  int32_t sums[kMaxHeadDim / kBlock];

  void fill(const KernelTable& kernels, const float* head, int head_dim) {
    const RowOutput out{nullptr, {head_dim, quants, scales, sums, scaled_sums}, head_dim, 1};
    kernels.store_row(head, head_dim, out, 0, 0);
  }
};

}  // namespace

void KvCache::list_place(int slot, int kv_head, int position, FetchList& list) const {
  const Place place = place_of(slot, kv_head, position);
  const auto row_bytes = static_cast<ptrdiff_t>(padded_head_dim * element_bytes());
  // The keys of 16 positions lie in one piece.
  const uint8_t* key = keys + (place.key - position % 16) * element_bytes();
  const uint8_t* value = values + place.value * element_bytes();
  list.add({key, key + 16 * row_bytes}, 16 * row_bytes);
  list.add({value, value + row_bytes}, row_bytes);
}

void KvCache::store(const KernelTable& kernels, int slot, int kv_head, int position, const float* key,
                    const float* value) const {
  const auto [head_at, key_at, value_at] = place_of(slot, kv_head, position);
  const size_t n_blocks = static_cast<size_t>(padded_head_dim) / kBlock;
  if (type == CacheType::F32) {
    scatter(key, head_dim, reinterpret_cast<float*>(keys) + key_at);
    std::copy(value, value + head_dim, reinterpret_cast<float*>(values) + value_at);
  } else if (type == CacheType::F16) {
    uint16_t halves[kMaxHeadDim];
    kernels.f32_to_f16(key, halves, head_dim);
    scatter(halves, head_dim, reinterpret_cast<uint16_t*>(keys) + key_at);
    kernels.f32_to_f16(value, reinterpret_cast<uint16_t*>(values) + value_at, head_dim);
  } else {
    QuantizedHead head;
    head.fill(kernels, key, head_dim);
    scatter(head.quants, head_dim, reinterpret_cast<int8_t*>(keys) + key_at);
    scatter(head.scales, head_dim / kBlock, key_scales + head_at / kBlock + position / 16 * n_blocks * 16 + position % 16);
    head.fill(kernels, value, head_dim);
    std::copy(head.quants, head.quants + head_dim, reinterpret_cast<int8_t*>(values) + value_at);
    std::copy(head.scales, head.scales + n_blocks, value_scales + value_at / kBlock);
  }
}

std::unique_ptr<Op> make_rope_store(const KernelTable& kernels, const ActivationBuffer& qkv,
                                    const ActivationBuffer& angles, const KvCache& cache, int n_heads, bool half_split,
                                    const HeadPreparation& preparation) {
  return std::make_unique<RopeStore>(kernels, qkv, angles, cache, n_heads, half_split, preparation);
}

}  // namespace dllama
