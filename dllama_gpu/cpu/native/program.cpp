#include "program.hpp"

#include <algorithm>
#include <chrono>

namespace dllama {

namespace {

constexpr size_t kAlignment = 64;
// Units a thread takes at a time: few enough that a thread which lost its core for a while leaves little undone.
constexpr int kPortionsPerThread = 4;

struct alignas(kAlignment) NextUnit {
  std::atomic<int> value{0};
};

}  // namespace

void Program::add(std::unique_ptr<Op> op) {
  const size_t needed = (op->scratch_bytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (needed > scratch_bytes_) {
    scratch_bytes_ = needed;
    scratch_.assign(scratch_bytes_ * pool_->n_threads() + kAlignment, 0);
  }
  ops_.push_back(std::move(op));
}

template <class AfterOp>
void Program::run_ops(const Step& step, size_t begin, size_t end, AfterOp after_op) {
  for (size_t i = begin; i < end; i++) ops_[i]->prepare(step);
  const int n_threads = pool_->n_threads();
  const auto misalignment = reinterpret_cast<uintptr_t>(scratch_.data()) % kAlignment;
  uint8_t* scratch_start = scratch_.data() + (misalignment ? kAlignment - misalignment : 0);
  // Neighbouring ops use different counters: one is set back to zero when nobody can be taking from it any more.
  NextUnit next_unit[2];
  pool_->run([&](int thread) {
    uint8_t* scratch = scratch_start + thread * scratch_bytes_;
    for (size_t i = begin; i < end; i++) {
      const Op& op = *ops_[i];
      const int units = op.units(step);
      std::atomic<int>& next = next_unit[i % 2].value;
      const int portion = n_threads == 1 ? units : std::max(1, units / (n_threads * kPortionsPerThread));
      for (int unit; (unit = next.fetch_add(portion, std::memory_order_relaxed)) < units;)
        op.run(step, unit, std::min(unit + portion, units), scratch);
      pool_->barrier([&] { next.store(0, std::memory_order_relaxed); });
      if (thread == 0) after_op(i);
    }
  });
}

void Program::run(const Step& step, size_t begin, size_t end) {
  run_ops(step, begin, end, [](size_t) {});
}

void Program::run_timed(const Step& step, size_t begin, size_t end, double* seconds) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point last = Clock::now();
  run_ops(step, begin, end, [&](size_t op) {
    const Clock::time_point now = Clock::now();
    seconds[op] += std::chrono::duration<double>(now - last).count();
    last = now;
  });
}

}  // namespace dllama
