#include "program.hpp"

#include <algorithm>
#include <chrono>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace dllama {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kAlignment = 64;

constexpr uint64_t kClosed = 0x7FFFFFFF;  // more units than any op has

constexpr size_t kLineBytes = 64, kPieceBytes = 4096;

void fetch(const uint8_t* p) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(p, 0, 2);
#elif defined(_M_X64)
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
#else
  (void)p;
#endif
}

uint32_t run_of(uint64_t taken) { return static_cast<uint32_t>(taken >> 32); }

}  // namespace

void Program::add(std::unique_ptr<Op> op) {
  pool_->retire(*this);
  const size_t needed = (op->scratch_bytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (needed > scratch_bytes_) {
    scratch_bytes_ = needed;
    scratch_.assign(scratch_bytes_ * pool_->n_threads() + kAlignment, 0);
  }
  const Stretch reads = op->reads();
  if (reads.begin != nullptr)
    for (auto earlier = ops_.rbegin(); earlier != ops_.rend() && (*earlier)->reads().begin == nullptr; ++earlier)
      (*earlier)->set_following(reads);
  ops_.push_back(std::move(op));
}

void Program::run(const Step& step, size_t begin, size_t end) {
  const auto turn = pool_->take_turn();
  seconds_ = nullptr;
  start(step, begin, end);
}

void Program::run_timed(const Step& step, size_t begin, size_t end, double* seconds) {
  const auto turn = pool_->take_turn();
  seconds_ = seconds;
  start(step, begin, end);
}

void Program::start(const Step& step, size_t begin, size_t end) {
  if (n_states_ != ops_.size()) {
    pool_->retire(*this);
    states_ = std::make_unique<State[]>(ops_.size());
    n_states_ = ops_.size();
  }
  step_ = step;
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  for (size_t i = begin; i < end; i++) {
    // A late thread of the last run may be looking: it must not see that run's number beside this run's units.
    const uint64_t this_run = static_cast<uint64_t>(run) << 32;
    states_[i].taken.store(this_run | kClosed, std::memory_order_seq_cst);
    ops_[i]->prepare(step_);
    states_[i].units.store(ops_[i]->units(step_), std::memory_order_seq_cst);
    states_[i].done.store(0, std::memory_order_seq_cst);
    states_[i].taken.store(this_run, std::memory_order_seq_cst);
  }
  begin_.store(begin, std::memory_order_relaxed);
  end_.store(end, std::memory_order_relaxed);
  run_.store(run, std::memory_order_release);
  pool_->share(*this);
}

void Program::take_part(int thread) {
  const uint32_t run = run_.load(std::memory_order_acquire);
  const size_t begin = begin_.load(std::memory_order_relaxed), end = end_.load(std::memory_order_relaxed);
  Clock::time_point last = Clock::now();
  for (size_t i = begin; i < end; i++) {
    if (!finish_op(i, run, thread)) return;
    if (thread == 0 && seconds_) {
      const Clock::time_point now = Clock::now();
      seconds_[i] += std::chrono::duration<double>(now - last).count();
      last = now;
    }
  }
}

// Takes units until none is left and waits for those that others have taken. False when the run is over, which a late
// thread learns here; it then touches nothing of the op.
bool Program::finish_op(size_t index, uint32_t run, int thread) {
  State& state = states_[index];
  int units;
  for (uint64_t taken = state.taken.load(std::memory_order_acquire);;) {
    if (run_of(taken) != run) return false;
    units = state.units.load(std::memory_order_acquire);
    const int first = static_cast<int>(taken & 0xFFFFFFFFu);
    if (first >= units) break;
    // A thread takes its share of what is left: a large one first, because memory streams best from front to back, and
    // small ones towards the end, so that all threads finish together.
    const int portion = (units - first) / pool_->n_threads();
    const int end = std::min(first + std::max(1, portion), units);
    if (!state.taken.compare_exchange_weak(taken, static_cast<uint64_t>(run) << 32 | static_cast<uint32_t>(end),
                                           std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    ops_[index]->run(step_, first, end, scratch_of(thread));
    if (state.done.fetch_add(end - first, std::memory_order_acq_rel) + end - first == units) op_done_.advance();
    taken = state.taken.load(std::memory_order_acquire);
  }
  if (state.done.load(std::memory_order_acquire) < units) fetch_following(index, units, thread);
  while (state.done.load(std::memory_order_acquire) < units) {
    if (run_of(state.taken.load(std::memory_order_acquire)) != run) return false;
    const uint32_t seen = op_done_.value();
    if (state.done.load(std::memory_order_acquire) < units) op_done_.wait_past(seen);
  }
  return true;
}

// While others finish the op, fetches weights that come next, each thread other pieces; stops when the op is done.
void Program::fetch_following(size_t index, int units, int thread) {
  const Stretch following = ops_[index]->following();
  const size_t n_bytes = following.end - following.begin, stride = kPieceBytes * pool_->n_threads();
  for (size_t piece = kPieceBytes * thread; piece < n_bytes; piece += stride) {
    const size_t end = std::min(piece + kPieceBytes, n_bytes);
    for (size_t at = piece; at < end; at += kLineBytes) {
      if (states_[index].done.load(std::memory_order_acquire) >= units) return;
      fetch(following.begin + at);
    }
  }
}

uint8_t* Program::scratch_of(int thread) {
  const auto misalignment = reinterpret_cast<uintptr_t>(scratch_.data()) % kAlignment;
  uint8_t* start = scratch_.data() + (misalignment ? kAlignment - misalignment : 0);
  return start + thread * scratch_bytes_;
}

}  // namespace dllama
