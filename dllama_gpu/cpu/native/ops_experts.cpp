// Mixture of experts. Rows are sorted by the experts that they have chosen, so that each chosen expert's weights are
// read once for all of its rows; a unit of a matmul is a piece of one chosen expert against all of its rows.

#include <algorithm>

#include "ops.hpp"

namespace dllama {

// One (row, part) of a step is a choice. Sorted choices are numbered from 0, those of one expert side by side.
struct ExpertWork {
  int max_rows, k, first_expert, n_experts;

  int n_chosen = 0;              // experts with at least one row in this step
  std::vector<int> experts;      // [n_chosen] which they are, counted from first_expert
  std::vector<int> begins;       // [n_chosen + 1] their first sorted choice
  std::vector<int> rows;         // [sorted choice] the row that it belongs to
  std::vector<int> places;       // [row][k] the sorted choice, or -1 where another node has the expert
  std::vector<int> counts;       // [n_experts]
  std::vector<uint8_t> inputs;   // rows of the input in sorted order
  std::vector<float> products;   // [sorted choice][dim] what each expert adds, unweighted

  int most_chosen(const Step& step) const { return std::min(n_experts, step.n_rows * k); }
  size_t most_choices() const { return static_cast<size_t>(max_rows) * k; }
  int rows_of(int chosen) const { return begins[chosen + 1] - begins[chosen]; }

  void sort(const Step& step, const int32_t* ids) {
    std::fill(counts.begin(), counts.end(), 0);
    const int n = step.n_rows * k;
    for (int i = 0; i < n; i++)
      if (is_here(ids[i])) counts[ids[i] - first_expert]++;
    n_chosen = 0;
    int next = 0;
    for (int expert = 0; expert < n_experts; expert++) {
      if (counts[expert] == 0) continue;
      experts[n_chosen] = expert;
      begins[n_chosen++] = next;
      next += counts[expert];
      counts[expert] = next - counts[expert];  // from now on, where the expert's next row goes
    }
    begins[n_chosen] = next;
    for (int i = 0; i < n; i++) {
      places[i] = is_here(ids[i]) ? counts[ids[i] - first_expert]++ : -1;
      if (places[i] >= 0) rows[places[i]] = i / k;
    }
  }

 private:
  bool is_here(int id) const { return id >= first_expert && id < first_expert + n_experts; }
};

std::shared_ptr<ExpertWork> make_expert_work(int max_rows, int k, int first_expert, int n_experts) {
  auto work = std::make_shared<ExpertWork>();
  work->max_rows = max_rows;
  work->k = k;
  work->first_expert = first_expert;
  work->n_experts = n_experts;
  work->experts.resize(n_experts);
  work->begins.resize(n_experts + 1);
  work->counts.resize(n_experts);
  work->rows.resize(work->most_choices());
  work->places.resize(work->most_choices());
  return work;
}

namespace {

using MatmulKernel = void (*)(const MatmulArgs&, int, int);

MatmulKernel kernel_for(const KernelTable& kernels, bool f32, const PackedExperts& experts) {
  const int type = static_cast<int>(experts.first.type);
  return f32 ? kernels.matmul_f32[type] : kernels.matmul_q80[type];
}

int n_groups(const PackedExperts& experts) { return (experts.first.n_rows + kGroupRows - 1) / kGroupRows; }

// Rows of one width for some choices, f32 or Q80; those of one expert are a batch of their own, with its own tiles.
struct ChoiceRows {
  float* f32;
  Q80Rows q80;
  int width;

  static size_t bytes(const ActivationBuffer& like, int width, size_t n_rows) {
    const size_t blocks = n_rows * (width / kBlock);
    return like.f32 ? n_rows * width * sizeof(float) : blocks * (kBlock + 3 * sizeof(float));
  }
  static ChoiceRows in_memory(const ActivationBuffer& like, int width, size_t n_rows, uint8_t* memory) {
    if (like.f32) return {reinterpret_cast<float*>(memory), {}, width};
    const size_t n = n_rows * width, n_blocks = n / kBlock;
    auto* numbers = memory + n;
    return {nullptr,
            {width, reinterpret_cast<int8_t*>(memory), reinterpret_cast<float*>(numbers),
             reinterpret_cast<int32_t*>(numbers + 4 * n_blocks), reinterpret_cast<float*>(numbers + 8 * n_blocks)},
            width};
  }
  // A buffer [rows][k * width] as k times as many rows.
  static ChoiceRows in_buffer(const ActivationBuffer& buffer, int width) {
    ChoiceRows rows{buffer.f32, buffer.q80, width};
    rows.q80.width = width;
    return rows;
  }

  ChoiceRows from(int row) const {
    ChoiceRows rest = *this;
    if (f32) {
      rest.f32 += static_cast<size_t>(row) * width;
      return rest;
    }
    const size_t blocks = static_cast<size_t>(row) * (width / kBlock);
    rest.q80.quants += blocks * kBlock;
    rest.q80.scales += blocks;
    rest.q80.sums_times_minus8 += blocks;
    rest.q80.scaled_sums += blocks;
    return rest;
  }
  MatmulArgs times(const PackedWeight& weight, int n_rows, float* out, size_t out_stride, int first_weight_row) const {
    return {weight, f32, static_cast<size_t>(width), q80, n_rows, out, out_stride, first_weight_row};
  }
  RowOutput output(int n_rows) const { return {f32, q80, width, n_rows}; }
};

class TopExperts : public Op {
 public:
  TopExperts(const KernelTable& kernels, const ActivationBuffer& logits, const ActivationBuffer& ids,
             const ActivationBuffer& weights, bool normalize)
      : kernels_(kernels), logits_(logits), ids_(ids), weights_(weights), normalize_(normalize) {}

  int units(const Step& step) const override { return step.n_rows; }

  void run(const Step&, int begin, int end, const Worker&) const override {
    for (int r = begin; r < end; r++) {
      const size_t at = static_cast<size_t>(r) * ids_.width;
      kernels_.top_experts(logits_.f32 + static_cast<size_t>(r) * logits_.width, logits_.width, ids_.width, normalize_,
                           ids_.i32 + at, weights_.f32 + at);
    }
  }

 private:
  const KernelTable& kernels_;
  ActivationBuffer logits_, ids_, weights_;
  bool normalize_;
};

class ExpertSort : public Op {
 public:
  ExpertSort(const ActivationBuffer& ids, std::shared_ptr<ExpertWork> work) : ids_(ids), work_(std::move(work)) {}

  int units(const Step&) const override { return 1; }
  void run(const Step& step, int, int, const Worker&) const override { work_->sort(step, ids_.i32); }

 private:
  ActivationBuffer ids_;
  std::shared_ptr<ExpertWork> work_;
};

// Copies input rows into sorted order. A single row needs no copy: all of its experts read it where it is.
class ExpertInputs : public Op {
 public:
  ExpertInputs(const ActivationBuffer& x, std::shared_ptr<ExpertWork> work) : x_(x), work_(std::move(work)) {
    const size_t bytes = ChoiceRows::bytes(x, x.width, work_->most_choices());
    if (work_->inputs.size() < bytes) work_->inputs.resize(bytes);
  }

  int units(const Step& step) const override { return step.n_rows == 1 ? 0 : work_->most_chosen(step); }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    const ChoiceRows all = ChoiceRows::in_memory(x_, x_.width, work_->most_choices(), work_->inputs.data());
    for (int chosen = begin; chosen < std::min(end, work_->n_chosen); chosen++) {
      const ChoiceRows rows = all.from(work_->begins[chosen]);
      const int n = work_->rows_of(chosen);
      for (int i = 0; i < n; i++) copy(step, work_->rows[work_->begins[chosen] + i], rows, i, n);
    }
  }

 private:
  void copy(const Step& step, int row, const ChoiceRows& to, int to_row, int to_rows) const {
    if (x_.f32) {
      std::copy_n(x_.f32 + static_cast<size_t>(row) * x_.width, x_.width, to.f32 + static_cast<size_t>(to_row) * x_.width);
      return;
    }
    for (int b = 0; b < x_.width / kBlock; b++) {
      const size_t i = q80_index(x_.q80, row, b, step.n_rows), j = q80_index(to.q80, to_row, b, to_rows);
      std::copy_n(x_.q80.quants + i * kBlock, kBlock, to.q80.quants + j * kBlock);
      to.q80.scales[j] = x_.q80.scales[i];
      to.q80.sums_times_minus8[j] = x_.q80.sums_times_minus8[i];
      to.q80.scaled_sums[j] = x_.q80.scaled_sums[i];
    }
  }

  ActivationBuffer x_;
  std::shared_ptr<ExpertWork> work_;
};

class ExpertGatedMatmul : public Op {
 public:
  ExpertGatedMatmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedExperts& gate,
                    const PackedExperts& up, const ActivationBuffer& out, bool gelu, std::shared_ptr<ExpertWork> work)
      : kernels_(kernels),
        activate_(gelu ? kernels.gelu_mul : kernels.silu_mul),
        gate_kernel_(kernel_for(kernels, x.f32, gate)),
        up_kernel_(kernel_for(kernels, x.f32, up)),
        x_(x),
        gate_(gate),
        up_(up),
        out_(out),
        work_(std::move(work)) {}

  int units(const Step& step) const override { return work_->most_chosen(step) * pieces(); }

  size_t scratch_bytes() const override { return 2 * sizeof(float) * kUnitColumns * work_->max_rows; }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    auto* gates = reinterpret_cast<float*>(worker.scratch);  // [rows][32], then the same for up
    float* ups = gates + static_cast<size_t>(kUnitColumns) * work_->max_rows;
    const int hidden = gate_.first.n_rows;
    const ChoiceRows outputs = ChoiceRows::in_buffer(out_, hidden);
    for (int unit = begin; unit < end && unit / pieces() < work_->n_chosen; unit++) {
      const int chosen = unit / pieces(), first = unit % pieces() * kUnitGroups, column = first * kGroupRows;
      const int last = std::min(first + kUnitGroups, n_groups(gate_)), n = std::min(hidden - column, kUnitColumns);
      const int expert = work_->experts[chosen], n_rows = work_->rows_of(chosen);
      const ChoiceRows x = inputs(step).from(step.n_rows == 1 ? 0 : work_->begins[chosen]);
      gate_kernel_(x.times(gate_.expert(expert), n_rows, gates, kUnitColumns, column), first, last);
      up_kernel_(x.times(up_.expert(expert), n_rows, ups, kUnitColumns, column), first, last);
      const RowOutput out = outputs.from(work_->begins[chosen]).output(n_rows);
      for (int r = 0; r < n_rows; r++) {
        float* row = gates + static_cast<size_t>(r) * kUnitColumns;
        activate_(row, ups + static_cast<size_t>(r) * kUnitColumns, n);
        kernels_.store_row(row, n, out, r, column);
      }
    }
  }

 private:
  static constexpr int kUnitGroups = 2;
  static constexpr int kUnitColumns = kUnitGroups * kGroupRows;

  int pieces() const { return (n_groups(gate_) + kUnitGroups - 1) / kUnitGroups; }
  ChoiceRows inputs(const Step& step) const {
    if (step.n_rows == 1) return ChoiceRows::in_buffer(x_, x_.width);
    return ChoiceRows::in_memory(x_, x_.width, work_->most_choices(), work_->inputs.data());
  }

  const KernelTable& kernels_;
  void (*activate_)(float*, const float*, int);
  MatmulKernel gate_kernel_, up_kernel_;
  ActivationBuffer x_;
  PackedExperts gate_, up_;
  ActivationBuffer out_;
  std::shared_ptr<ExpertWork> work_;
};

class ExpertMatmul : public Op {
 public:
  ExpertMatmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedExperts& down,
               std::shared_ptr<ExpertWork> work)
      : kernel_(kernel_for(kernels, x.f32, down)), x_(x), down_(down), work_(std::move(work)) {
    const size_t n = work_->most_choices() * down.first.n_rows;
    if (work_->products.size() < n) work_->products.resize(n);
  }

  int units(const Step& step) const override { return work_->most_chosen(step) * n_groups(down_); }

  void run(const Step&, int begin, int end, const Worker&) const override {
    const size_t dim = down_.first.n_rows;
    const ChoiceRows inputs = ChoiceRows::in_buffer(x_, down_.first.n_columns);
    const int groups = n_groups(down_);
    for (int unit = begin; unit < end && unit / groups < work_->n_chosen;) {
      const int chosen = unit / groups, first = unit % groups, last = std::min(groups, first + end - unit);
      const int start = work_->begins[chosen];
      const PackedWeight weight = down_.expert(work_->experts[chosen]);
      float* out = work_->products.data() + start * dim;
      kernel_(inputs.from(start).times(weight, work_->rows_of(chosen), out, dim, 0), first, last);
      unit += last - first;
    }
  }

 private:
  MatmulKernel kernel_;
  ActivationBuffer x_;
  PackedExperts down_;
  std::shared_ptr<ExpertWork> work_;
};

class ExpertSum : public Op {
 public:
  ExpertSum(const ActivationBuffer& weights, const ActivationBuffer& out, std::shared_ptr<ExpertWork> work)
      : weights_(weights), out_(out), work_(std::move(work)) {}

  int units(const Step& step) const override { return step.n_rows * pieces(); }

  void run(const Step&, int begin, int end, const Worker&) const override {
    const auto dim = static_cast<size_t>(out_.width);
    for (int unit = begin; unit < end; unit++) {
      const int row = unit / pieces(), first = unit % pieces() * kColumns, last = std::min(first + kColumns, out_.width);
      float* out = out_.f32 + row * dim;
      std::fill(out + first, out + last, 0.0f);
      for (int j = 0; j < work_->k; j++) {
        const size_t choice = static_cast<size_t>(row) * work_->k + j;
        if (work_->places[choice] < 0) continue;
        const float* product = work_->products.data() + work_->places[choice] * dim;
        const float weight = weights_.f32[choice];
        for (int i = first; i < last; i++) out[i] += weight * product[i];
      }
    }
  }

 private:
  static constexpr int kColumns = 512;

  int pieces() const { return (out_.width + kColumns - 1) / kColumns; }

  ActivationBuffer weights_, out_;
  std::shared_ptr<ExpertWork> work_;
};

}  // namespace

std::unique_ptr<Op> make_top_experts(const KernelTable& kernels, const ActivationBuffer& logits,
                                     const ActivationBuffer& ids, const ActivationBuffer& weights, bool normalize) {
  return std::make_unique<TopExperts>(kernels, logits, ids, weights, normalize);
}

std::unique_ptr<Op> make_expert_sort(const ActivationBuffer& ids, std::shared_ptr<ExpertWork> work) {
  return std::make_unique<ExpertSort>(ids, std::move(work));
}

std::unique_ptr<Op> make_expert_inputs(const ActivationBuffer& x, std::shared_ptr<ExpertWork> work) {
  return std::make_unique<ExpertInputs>(x, std::move(work));
}

std::unique_ptr<Op> make_expert_gated_matmul(const KernelTable& kernels, const ActivationBuffer& x,
                                             const PackedExperts& gate, const PackedExperts& up,
                                             const ActivationBuffer& out, bool gelu, std::shared_ptr<ExpertWork> work) {
  return std::make_unique<ExpertGatedMatmul>(kernels, x, gate, up, out, gelu, std::move(work));
}

std::unique_ptr<Op> make_expert_matmul(const KernelTable& kernels, const ActivationBuffer& x,
                                       const PackedExperts& down, std::shared_ptr<ExpertWork> work) {
  return std::make_unique<ExpertMatmul>(kernels, x, down, std::move(work));
}

std::unique_ptr<Op> make_expert_sum(const ActivationBuffer& weights, const ActivationBuffer& out,
                                    std::shared_ptr<ExpertWork> work) {
  return std::make_unique<ExpertSum>(weights, out, std::move(work));
}

}  // namespace dllama
