// Matmul and the gated pair of matmuls of SwiGLU and GeGLU. A unit is one group of 16 weight rows (32 for the pair, whose output may
// be quantized in blocks of 32) against all rows of the step.

#include "ops.hpp"

namespace dllama {

namespace {

using MatmulKernel = void (*)(const MatmulArgs&, int, int);

MatmulKernel kernel_for(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& weight) {
  const int type = static_cast<int>(weight.type);
  return x.f32 ? kernels.matmul_f32[type] : kernels.matmul_q80[type];
}

int n_groups(const PackedWeight& weight) { return (weight.n_rows + kGroupRows - 1) / kGroupRows; }

Stretch stretch_of(const PackedWeight& weight) {
  return {weight.data, weight.data + n_groups(weight) * weight.group_stride};
}

class Matmul : public Op {
 public:
  Matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& weight, const ActivationBuffer& out,
         int out_column)
      : kernel_(kernel_for(kernels, x, weight)), x_(x), weight_(weight), out_(out), out_column_(out_column) {}

  int units(const Step& step) const override { return out_.rows(step) ? n_groups(weight_) : 0; }
  Stretch reads() const override { return stretch_of(weight_); }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    const auto width = static_cast<size_t>(out_.width);
    kernel_({weight_, x_.f32, static_cast<size_t>(x_.width), x_.q80, out_.rows(step), out_.f32 + out_column_, width, 0},
            begin, end);
  }

 private:
  MatmulKernel kernel_;
  ActivationBuffer x_;
  PackedWeight weight_;
  ActivationBuffer out_;
  int out_column_;
};

class GatedMatmul : public Op {
 public:
  GatedMatmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& gate, const PackedWeight& up,
              const ActivationBuffer& out, bool gelu, int max_rows)
      : kernels_(kernels),
        activate_(gelu ? kernels.gelu_mul : kernels.silu_mul),
        gate_kernel_(kernel_for(kernels, x, gate)),
        up_kernel_(kernel_for(kernels, x, up)),
        x_(x),
        gate_(gate),
        up_(up),
        out_(out),
        max_rows_(max_rows) {}

  int units(const Step& step) const override {
    return out_.rows(step) ? (n_groups(gate_) + kUnitGroups - 1) / kUnitGroups : 0;
  }

  size_t scratch_bytes() const override { return 2 * sizeof(float) * kUnitColumns * max_rows_; }
  Stretch reads() const override { return stretch_of(gate_); }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    auto* gates = reinterpret_cast<float*>(worker.scratch);  // [rows][32], then the same for up
    float* ups = gates + static_cast<size_t>(kUnitColumns) * max_rows_;
    const RowOutput out = out_.output(step);
    for (int unit = begin; unit < end; unit++) {
      const int column = unit * kUnitColumns, first = unit * kUnitGroups;
      const int last = first + kUnitGroups < n_groups(gate_) ? first + kUnitGroups : n_groups(gate_);
      // Groups of both lie in turns.
      for (int group = first; group < last; group++) {
        gate_kernel_(args(gate_, gates, column, out.n_rows), group, group + 1);
        up_kernel_(args(up_, ups, column, out.n_rows), group, group + 1);
      }
      const int n = gate_.n_rows - column < kUnitColumns ? gate_.n_rows - column : kUnitColumns;
      for (int r = 0; r < out.n_rows; r++) {
        float* row = gates + static_cast<size_t>(r) * kUnitColumns;
        activate_(row, ups + static_cast<size_t>(r) * kUnitColumns, n);
        kernels_.store_row(row, n, out, r, column);
      }
    }
  }

 private:
  static constexpr int kUnitGroups = 2;
  static constexpr int kUnitColumns = kUnitGroups * kGroupRows;

  MatmulArgs args(const PackedWeight& weight, float* out, int column, int n_rows) const {
    return {weight, x_.f32, static_cast<size_t>(x_.width), x_.q80, n_rows, out, kUnitColumns, column};
  }

  const KernelTable& kernels_;
  void (*activate_)(float*, const float*, int);
  MatmulKernel gate_kernel_, up_kernel_;
  ActivationBuffer x_;
  PackedWeight gate_, up_;
  ActivationBuffer out_;
  int max_rows_;
};

}  // namespace

std::unique_ptr<Op> make_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& weight,
                                const ActivationBuffer& out, int out_column) {
  return std::make_unique<Matmul>(kernels, x, weight, out, out_column);
}

std::unique_ptr<Op> make_gated_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& gate,
                                      const PackedWeight& up, const ActivationBuffer& out, bool gelu, int max_rows) {
  return std::make_unique<GatedMatmul>(kernels, x, gate, up, out, gelu, max_rows);
}

}  // namespace dllama
