// Ops that work row by row: embedding, rotation angles, RMS norm, rotation with the cache write.

#include <cmath>
#include <cstring>

#include "ops.hpp"
#include "packing.hpp"

namespace dllama {

namespace {

class Embed : public Op {
 public:
  Embed(const RowSource& weight, const ActivationBuffer& out) : weight_(weight), out_(out) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step& step, int begin, int end, uint8_t*) const override {
    for (int r = begin; r < end; r++) {
      float* out = out_.f32 + static_cast<size_t>(r) * out_.width;
      const int token = step.tokens[r];
      if (weight_.row_major)
        dequantize_row(weight_.weight.type, weight_.row_major + token * weight_.row_stride, out_.width, out);
      else
        dequantize_packed_row(weight_.weight, token, out);
    }
  }

 private:
  RowSource weight_;
  ActivationBuffer out_;
};

class RopeAngles : public Op {
 public:
  RopeAngles(std::vector<double> frequencies, const ActivationBuffer& out)
      : frequencies_(std::move(frequencies)), out_(out) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step& step, int begin, int end, uint8_t*) const override {
    const size_t half = frequencies_.size();
    for (int r = begin; r < end; r++) {
      float* out = out_.f32 + static_cast<size_t>(r) * out_.width;
      for (size_t i = 0; i < half; i++) {
        const double angle = step.positions[r] * frequencies_[i];
        out[i] = static_cast<float>(std::cos(angle));
        out[half + i] = static_cast<float>(std::sin(angle));
      }
    }
  }

 private:
  std::vector<double> frequencies_;
  ActivationBuffer out_;
};

class RmsNorm : public Op {
 public:
  RmsNorm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add, const float* weight,
          const ActivationBuffer& out, float epsilon)
      : kernels_(kernels), x_(x), add_(add), weight_(weight), out_(out), epsilon_(epsilon) {}

  int units(const Step& step) const override { return out_.rows(step); }

  void run(const Step& step, int begin, int end, uint8_t*) const override {
    const RowOutput out = out_.output(step);
    for (int r = begin; r < end; r++) {
      const bool gathers = out_.logit_rows_only && !x_.logit_rows_only;
      const size_t at = static_cast<size_t>(gathers ? step.logit_rows[r] : r) * x_.width;
      kernels_.rms_norm(x_.f32 + at, add_.f32 ? add_.f32 + at : nullptr, weight_, epsilon_, x_.width, out, r);
    }
  }

 private:
  const KernelTable& kernels_;
  ActivationBuffer x_, add_;
  const float* weight_;
  ActivationBuffer out_;
  float epsilon_;
};

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

class RopeStore : public Op {
 public:
  RopeStore(const KernelTable& kernels, const ActivationBuffer& qkv, const ActivationBuffer& angles,
            const KvCache& cache, int n_heads, bool half_split)
      : kernels_(kernels), qkv_(qkv), angles_(angles), cache_(cache), n_heads_(n_heads), half_split_(half_split) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step& step, int begin, int end, uint8_t*) const override {
    const int head_dim = cache_.head_dim, half = head_dim / 2;
    uint16_t halves[kMaxHeadDim];
    for (int r = begin; r < end; r++) {
      float* heads = qkv_.f32 + static_cast<size_t>(r) * qkv_.width;
      const float* cosines = angles_.f32 + static_cast<size_t>(r) * angles_.width;
      for (int h = 0; h < n_heads_ + cache_.n_kv_heads; h++) {
        float* head = heads + h * head_dim;
        if (half_split_)
          rotate_half_split(head, cosines, cosines + half, half);
        else
          rotate_interleaved(head, cosines, cosines + half, half);
      }
      const int slot = step.slots[r], position = step.positions[r];
      for (int h = 0; h < cache_.n_kv_heads; h++) {
        const float* key = heads + (n_heads_ + h) * head_dim;
        kernels_.f32_to_f16(key, halves, head_dim);
        uint16_t* keys = cache_.head_keys(slot, h) + static_cast<size_t>(position / 16) * cache_.padded_head_dim * 16;
        for (int d = 0; d < head_dim; d++) keys[d * 16 + position % 16] = halves[d];
        const float* value = key + cache_.n_kv_heads * head_dim;
        kernels_.f32_to_f16(
            value, cache_.head_values(slot, h) + static_cast<size_t>(position) * cache_.padded_head_dim, head_dim);
      }
    }
  }

 private:
  const KernelTable& kernels_;
  ActivationBuffer qkv_, angles_;
  KvCache cache_;
  int n_heads_;
  bool half_split_;
};

}  // namespace

std::unique_ptr<Op> make_embed(const RowSource& weight, const ActivationBuffer& out) {
  return std::make_unique<Embed>(weight, out);
}

std::unique_ptr<Op> make_rope_angles(std::vector<double> frequencies, const ActivationBuffer& out) {
  return std::make_unique<RopeAngles>(std::move(frequencies), out);
}

std::unique_ptr<Op> make_rms_norm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add,
                                  const float* weight, const ActivationBuffer& out, float epsilon) {
  return std::make_unique<RmsNorm>(kernels, x, add, weight, out, epsilon);
}

std::unique_ptr<Op> make_rope_store(const KernelTable& kernels, const ActivationBuffer& qkv,
                                    const ActivationBuffer& angles, const KvCache& cache, int n_heads,
                                    bool half_split) {
  return std::make_unique<RopeStore>(kernels, qkv, angles, cache, n_heads, half_split);
}

}  // namespace dllama
