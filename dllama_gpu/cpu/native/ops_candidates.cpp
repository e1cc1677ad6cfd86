// The k best logits of each row, and its log-sum-exp.

#include <algorithm>
#include <cmath>

#include "ops.hpp"

namespace dllama {

namespace {

// Logits one unit looks through: long, because each starts anew.
constexpr int kStretch = 16384;

}  // namespace

struct CandidateWork {
  int k, n_stretches;
  // [rows][stretches]
  std::vector<float> maxima, exp_sums;
  std::vector<int> counts;
  // [rows][stretches][k]
  std::vector<float> values;
  std::vector<int> ids;
  mutable std::vector<std::pair<float, int>> merged;  // [rows][stretches * k]
};

std::shared_ptr<CandidateWork> make_candidate_work(int max_rows, int vocab_size, int k) {
  auto work = std::make_shared<CandidateWork>();
  work->k = k;
  work->n_stretches = (vocab_size + kStretch - 1) / kStretch;
  const size_t stretches = static_cast<size_t>(max_rows) * work->n_stretches;
  work->maxima.resize(stretches);
  work->exp_sums.resize(stretches);
  work->counts.resize(stretches);
  work->values.resize(stretches * k);
  work->ids.resize(stretches * k);
  work->merged.resize(stretches * k);
  return work;
}

namespace {

class CandidateSearch : public Op {
 public:
  CandidateSearch(const KernelTable& kernels, const ActivationBuffer& logits, int first_id,
                  std::shared_ptr<CandidateWork> work)
      : kernels_(kernels), logits_(logits), first_id_(first_id), work_(std::move(work)) {}

  int units(const Step& step) const override { return step.n_logit_rows * work_->n_stretches; }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    CandidateWork& work = *work_;
    for (int unit = begin; unit < end; unit++) {
      const int row = unit / work.n_stretches, first = unit % work.n_stretches * kStretch;
      const float* values = logits_.f32 + static_cast<size_t>(row) * logits_.width + first;
      const size_t at = static_cast<size_t>(unit) * work.k;
      work.counts[unit] = kernels_.top_candidates(
          values, std::min(kStretch, logits_.width - first), first_id_ + first, work.k, 1.0f / step.temperatures[row],
          &work.values[at], &work.ids[at], &work.maxima[unit], &work.exp_sums[unit]);
    }
  }

 private:
  const KernelTable& kernels_;
  ActivationBuffer logits_;
  int first_id_;
  std::shared_ptr<CandidateWork> work_;
};

class CandidateJoin : public Op {
 public:
  CandidateJoin(const ActivationBuffer& values, const ActivationBuffer& ids, const ActivationBuffer& log_sum_exp,
                std::shared_ptr<CandidateWork> work)
      : values_(values), ids_(ids), log_sum_exp_(log_sum_exp), work_(std::move(work)) {}

  int units(const Step& step) const override { return step.n_logit_rows; }

  void run(const Step& step, int begin, int end, const Worker&) const override {
    const CandidateWork& work = *work_;
    for (int row = begin; row < end; row++) {
      const size_t first = static_cast<size_t>(row) * work.n_stretches;
      auto* merged = work.merged.data() + first * work.k;
      size_t n = 0;
      float maximum = -INFINITY;
      for (int s = 0; s < work.n_stretches; s++) {
        maximum = std::max(maximum, work.maxima[first + s]);
        const size_t at = (first + s) * work.k;
        for (int i = 0; i < work.counts[first + s]; i++) merged[n++] = {work.values[at + i], work.ids[at + i]};
      }
      double sum = 0;
      const double scale = 1.0 / step.temperatures[row];
      for (int s = 0; s < work.n_stretches; s++)
        sum += work.exp_sums[first + s] * std::exp((work.maxima[first + s] - maximum) * scale);
      log_sum_exp_.f32[row] = static_cast<float>(maximum * scale + std::log(sum));

      const auto higher = [](const std::pair<float, int>& a, const std::pair<float, int>& b) {
        return a.first > b.first || (a.first == b.first && a.second < b.second);
      };
      const size_t k = std::min(n, static_cast<size_t>(work.k));
      std::partial_sort(merged, merged + k, merged + n, higher);
      for (size_t i = 0; i < static_cast<size_t>(work.k); i++) {
        // Rows with fewer comparable logits than k (NaN) are filled up with what a sampler never takes.
        values_.f32[static_cast<size_t>(row) * work.k + i] = i < k ? merged[i].first : -INFINITY;
        ids_.i32[static_cast<size_t>(row) * work.k + i] = i < k ? merged[i].second : -1;
      }
    }
  }

 private:
  ActivationBuffer values_, ids_, log_sum_exp_;
  std::shared_ptr<CandidateWork> work_;
};

}  // namespace

std::unique_ptr<Op> make_candidate_search(const KernelTable& kernels, const ActivationBuffer& logits, int first_id,
                                          std::shared_ptr<CandidateWork> work) {
  return std::make_unique<CandidateSearch>(kernels, logits, first_id, std::move(work));
}

std::unique_ptr<Op> make_candidate_join(const ActivationBuffer& values, const ActivationBuffer& ids,
                                        const ActivationBuffer& log_sum_exp, std::shared_ptr<CandidateWork> work) {
  return std::make_unique<CandidateJoin>(values, ids, log_sum_exp, std::move(work));
}

}  // namespace dllama
