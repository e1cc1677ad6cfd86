// Ops that work row by row: embedding, rotation angles, RMS norm.

#include <cmath>
#include <cstring>

#include "fetching.hpp"
#include "ops.hpp"
#include "packing.hpp"

namespace dllama {

namespace {

class Embed : public Op {
 public:
  Embed(const RowSource& weight, const ActivationBuffer& out, float scale)
      : weight_(weight), out_(out), scale_(scale) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    for (int r = begin; r < end; r++) {
      float* out = out_.f32 + static_cast<size_t>(r) * out_.width;
      const int token = step.tokens[r];
      if (weight_.row_major)
        dequantize_row(weight_.weight.type, weight_.row_major + token * weight_.row_stride, out_.width, out);
      else
        dequantize_packed_row(weight_.weight, token, out);
      if (scale_ != 1)
        for (int i = 0; i < out_.width; i++) out[i] *= scale_;
    }
  }

 private:
  RowSource weight_;
  ActivationBuffer out_;
  float scale_;
};

class RopeAngles : public Op {
 public:
  RopeAngles(std::vector<double> frequencies, const ActivationBuffer& out, double scale)
      : frequencies_(std::move(frequencies)), out_(out), scale_(scale) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    const size_t half = frequencies_.size();
    for (int r = begin; r < end; r++) {
      float* out = out_.f32 + static_cast<size_t>(r) * out_.width;
      for (size_t i = 0; i < half; i++) {
        const double angle = step.positions[r] * frequencies_[i];
        out[i] = static_cast<float>(std::cos(angle) * scale_);
        out[half + i] = static_cast<float>(std::sin(angle) * scale_);
      }
    }
  }

 private:
  std::vector<double> frequencies_;
  ActivationBuffer out_;
  double scale_;
};

constexpr ptrdiff_t kMostFetched = 32 << 10;
constexpr ptrdiff_t kFetchedBehind = 32 * kLineBytes;

class RmsNorm : public Op {
 public:
  RmsNorm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add, const float* weight,
          const ActivationBuffer& out, float epsilon)
      : kernels_(kernels), x_(x), add_(add), weight_(weight), out_(out), epsilon_(epsilon) {}

  int units(const Step& step) const override { return out_.rows(step); }

  void list_inputs(const Step& step, const Worker& worker, FetchList& list) const override {
    const auto* weight = reinterpret_cast<const uint8_t*>(weight_);
    const int n_units = units(step);
    if (worker.owns(worker.begin_of_share(n_units), n_units))
      list.add({weight, weight + x_.width * sizeof(float)}, kMostFetched);
  }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    // The matrix behind it is on its way when the row is done.
    if (end - begin == 1) fetch(worker.then, kFetchedBehind);
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

}  // namespace

std::unique_ptr<Op> make_embed(const RowSource& weight, const ActivationBuffer& out, float scale) {
  return std::make_unique<Embed>(weight, out, scale);
}

std::unique_ptr<Op> make_rope_angles(std::vector<double> frequencies, const ActivationBuffer& out, double scale) {
  return std::make_unique<RopeAngles>(std::move(frequencies), out, scale);
}

std::unique_ptr<Op> make_rms_norm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add,
                                  const float* weight, const ActivationBuffer& out, float epsilon) {
  return std::make_unique<RmsNorm>(kernels, x, add, weight, out, epsilon);
}

}  // namespace dllama
