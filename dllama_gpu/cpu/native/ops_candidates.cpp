// The k best logits of each row, and its log-sum-exp.

#include <algorithm>
#include <cmath>

#include "ops.hpp"

namespace dllama {

namespace {

constexpr int kUnitLogits = 512;  // and of a survey

}  // namespace

struct CandidateWork {
  int n_units;
  std::unique_ptr<LogitSurvey[]> surveys;  // [rows][units]

  LogitSurvey* of(int row) { return surveys.get() + static_cast<size_t>(row) * n_units; }
};

std::shared_ptr<CandidateWork> make_candidate_work(int max_rows, int vocab_size) {
  auto work = std::make_shared<CandidateWork>();
  work->n_units = (vocab_size + kUnitLogits - 1) / kUnitLogits;
  // Not cleared: only rows that want logits take memory.
  work->surveys.reset(new LogitSurvey[static_cast<size_t>(max_rows) * work->n_units]);
  return work;
}

namespace {

// A unit is a piece of the vocabulary in all rows. Where the Matmul that makes the logits comes right before, the survey
// runs it, too, a group of 16 logits at a time: it takes few instructions, and memory goes on streaming weights meanwhile.
class CandidateSurvey : public Op {
 public:
  CandidateSurvey(const KernelTable& kernels, const ActivationBuffer& logits, std::shared_ptr<CandidateWork> work,
                  std::unique_ptr<Op> matmul)
      : kernels_(kernels), logits_(logits), work_(std::move(work)), matmul_(std::move(matmul)) {}

  int units(const Step& step) const override { return step.n_logit_rows ? work_->n_units : 0; }
  Stretch reads() const override { return matmul_ ? matmul_->reads() : Stretch{}; }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    for (int unit = begin; unit < end; unit++) {
      const int first = unit * kUnitLogits, past = std::min(first + kUnitLogits, logits_.width);
      for (int at = first; at < past; at += kGroupRows) {
        if (matmul_) matmul_->run(step, at / kGroupRows, at / kGroupRows + 1, worker);
        const int n = std::min(kGroupRows, past - at);
        for (int row = 0; row < step.n_logit_rows; row++)
          kernels_.survey_logits(logits_.f32 + static_cast<size_t>(row) * logits_.width + at, n,
                                 1.0f / step.temperatures[row], at == first, work_->of(row)[unit]);
      }
    }
  }

 private:
  const KernelTable& kernels_;
  ActivationBuffer logits_;
  std::shared_ptr<CandidateWork> work_;
  std::unique_ptr<Op> matmul_;
};

class CandidateSearch : public Op {
 public:
  CandidateSearch(const KernelTable& kernels, const ActivationBuffer& logits, const ActivationBuffer& values,
                  const ActivationBuffer& ids, const ActivationBuffer& log_sum_exp, int first_id,
                  std::shared_ptr<CandidateWork> work)
      : kernels_(kernels),
        logits_(logits),
        values_(values),
        ids_(ids),
        log_sum_exp_(log_sum_exp),
        first_id_(first_id),
        work_(std::move(work)) {}

  int units(const Step& step) const override { return step.n_logit_rows; }
  size_t scratch_bytes() const override { return sizeof(Ranked) * values_.width; }

  void run(const Step& step, int begin, int end, const Worker& worker) const override {
    const int k = values_.width;
    auto* ranked = reinterpret_cast<Ranked*>(worker.scratch);
    for (int row = begin; row < end; row++) {
      float* values = values_.f32 + static_cast<size_t>(row) * k;
      int* ids = ids_.i32 + static_cast<size_t>(row) * k;
      CandidateHeap best{values, ids, 0, k};
      log_sum_exp_.f32[row] =
          kernels_.search_logits(logits_.f32 + static_cast<size_t>(row) * logits_.width, logits_.width, first_id_,
                                 1.0f / step.temperatures[row], work_->of(row), kUnitLogits, best);
      for (int i = 0; i < best.size; i++) ranked[i] = {values[i], ids[i]};
      std::sort(ranked, ranked + best.size, [](const Ranked& a, const Ranked& b) {
        return a.value > b.value || (a.value == b.value && a.id < b.id);
      });
      // Rows with fewer comparable logits than k (NaN) are filled up with what a sampler never takes.
      for (int i = 0; i < k; i++) {
        values[i] = i < best.size ? ranked[i].value : -INFINITY;
        ids[i] = i < best.size ? ranked[i].id : -1;
      }
    }
  }

 private:
  struct Ranked {
    float value;
    int id;
  };

  const KernelTable& kernels_;
  ActivationBuffer logits_, values_, ids_, log_sum_exp_;
  int first_id_;
  std::shared_ptr<CandidateWork> work_;
};

}  // namespace

std::unique_ptr<Op> make_candidate_survey(const KernelTable& kernels, const ActivationBuffer& logits,
                                          std::shared_ptr<CandidateWork> work, std::unique_ptr<Op> matmul) {
  return std::make_unique<CandidateSurvey>(kernels, logits, std::move(work), std::move(matmul));
}

std::unique_ptr<Op> make_candidate_search(const KernelTable& kernels, const ActivationBuffer& logits,
                                          const ActivationBuffer& values, const ActivationBuffer& ids,
                                          const ActivationBuffer& log_sum_exp, int first_id,
                                          std::shared_ptr<CandidateWork> work) {
  return std::make_unique<CandidateSearch>(kernels, logits, values, ids, log_sum_exp, first_id, std::move(work));
}

}  // namespace dllama
