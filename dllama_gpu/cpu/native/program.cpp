#include "program.hpp"

#include <chrono>
#include <cmath>

#include "fetching.hpp"

namespace dllama {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kAlignment = 64;

constexpr uint64_t kClosed = 0x7FFFFFFF;  // more units than any op has

constexpr ptrdiff_t kFetchedBytes = 128 << 10;  // leaves room in the smallest second-level caches
constexpr ptrdiff_t kOpBytes = 6 * kLineBytes;  // of most ops
constexpr size_t kOpsAhead = 8;
constexpr int kFewRows = 8;                     // steps of at most this many rows wait for memory

uint32_t run_of(uint64_t next) { return static_cast<uint32_t>(next >> 32); }

uint64_t next_unit(uint32_t run, uint64_t unit) { return static_cast<uint64_t>(run) << 32 | unit; }

bool all_within(const int32_t* values, int n, int limit) {
  for (int i = 0; i < n; i++)
    if (values[i] < 0 || values[i] >= limit) return false;
  return true;
}

}  // namespace

bool is_sound(const Step& step, const Sizes& sizes) {
  const int n = step.n_rows, n_logits = step.n_logit_rows;
  if (n < 1 || n > sizes.max_rows || n_logits > sizes.max_logit_rows) return false;
  if (!all_within(step.tokens, n, sizes.vocab_size) || !all_within(step.slots, n, sizes.n_slots) ||
      !all_within(step.positions, n, sizes.seq_len) || !all_within(step.logit_rows, n_logits, n))
    return false;
  for (int i = 1; i < n_logits; i++)
    if (step.logit_rows[i - 1] >= step.logit_rows[i]) return false;
  for (int i = 0; i < n_logits; i++)
    if (!(step.temperatures[i] > 0 && std::isfinite(step.temperatures[i]))) return false;
  if (n == 1) return true;
  std::vector<bool> met(sizes.n_slots);
  for (int i = 0; i < n; i++) {
    const bool goes_on = i > 0 && step.slots[i] == step.slots[i - 1];
    if (goes_on ? step.positions[i] <= step.positions[i - 1] : met[step.slots[i]]) return false;
    met[step.slots[i]] = true;
  }
  return true;
}

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
  const int n_threads = pool_->n_threads();
  if (n_states_ != ops_.size()) {
    pool_->retire(*this);
    states_ = std::make_unique<State[]>(ops_.size());
    next_ = std::make_unique<std::atomic<uint64_t>[]>(ops_.size() * n_threads);
    n_states_ = ops_.size();
  }
  step_ = step;
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  for (size_t i = begin; i < end; i++) {
    if (i + kOpsAhead < end) fetch_line(reinterpret_cast<const uint8_t*>(ops_[i + kOpsAhead].get()));
    std::atomic<uint64_t>* next = &next_[i * n_threads];
    // A late thread of the last run may be looking: if it sees this run's units, it must see this run's number, too.
    for (int t = 0; t < n_threads; t++) next[t].store(next_unit(run, kClosed), std::memory_order_relaxed);
    ops_[i]->prepare(step_);
    const int units = ops_[i]->units(step_);
    states_[i].units.store(units, std::memory_order_release);
    states_[i].done.store(0, std::memory_order_release);
    for (int t = 0; t < n_threads; t++) next[t].store(next_unit(run, share_of(units, t)), std::memory_order_release);
  }
  begin_.store(begin, std::memory_order_relaxed);
  end_.store(end, std::memory_order_relaxed);
  run_.store(run, std::memory_order_release);
  pool_->share(*this);
}

int Program::share_of(int units, int thread) const { return first_of_share(units, thread, pool_->n_threads()); }

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
  const Worker worker = worker_of(thread, index);
  // First its own share, which always lies at the same place, so that what it has fetched ahead is what it reads; then
  // what others have not come to.
  const int n_threads = pool_->n_threads();
  for (int i = 0; i < n_threads; i++)
    if (!take_units(index, run, (thread + i) % n_threads, worker)) return false;
  const int units = state.units.load(std::memory_order_acquire);
  if (state.done.load(std::memory_order_acquire) < units) fetch_while_waiting(index, worker.then);
  while (state.done.load(std::memory_order_acquire) < units) {
    if (!is_current(index, run)) return false;
    const uint32_t seen = op_done_.value();
    if (state.done.load(std::memory_order_acquire) < units) op_done_.wait_past(seen);
  }
  return is_current(index, run);
}

// Runs what is left of the share of thread `owner`. False when the run is over, which it is not while units are missing
// that this thread has taken.
bool Program::take_units(size_t index, uint32_t run, int owner, const Worker& worker) {
  State& state = states_[index];
  const int n_threads = pool_->n_threads();
  std::atomic<uint64_t>& next = next_[index * n_threads + owner];
  int units = 0, taken = 0;
  for (uint64_t seen = next.load(std::memory_order_acquire);;) {
    if (run_of(seen) != run) return false;
    units = state.units.load(std::memory_order_acquire);
    const int first = static_cast<int>(seen & 0xFFFFFFFFu), left = share_of(units, owner + 1) - first;
    if (left <= 0) break;
    // Large portions first, because memory streams best from front to back, and small ones towards the end, so that all
    // threads finish together.
    const int end = first + (n_threads == 1 ? left : (left + 1) / 2);
    if (!next.compare_exchange_weak(seen, next_unit(run, end), std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    run_units(index, units, first, end, worker);
    taken += end - first;
    seen = next.load(std::memory_order_acquire);
  }
  // Once for all portions: a processor lets all loads end before it adds, and memory stands still.
  if (taken > 0 && state.done.fetch_add(taken, std::memory_order_acq_rel) + taken == units) op_done_.advance();
  return true;
}

// Runs units that the thread has taken. In the second half of its own share of an op that memory streams weights into, it
// fetches what lies behind.
void Program::run_units(size_t index, int units, int begin, int end, const Worker& worker) const {
  const bool streams = step_.n_rows <= kFewRows && ops_[index]->reads().begin != nullptr;
  const int half = worker.second_half(units);
  if (!(streams && worker.owns(begin, units) && begin <= half && half < end)) {
    ops_[index]->run(step_, begin, end, worker);
    return;
  }
  if (begin < half) ops_[index]->run(step_, begin, half, worker);
  run_and_fetch(index, half, end, worker);
}

bool Program::is_current(size_t index, uint32_t run) const {
  return run_of(next_[index * pool_->n_threads()].load(std::memory_order_acquire)) == run;
}

// While memory streams weights into an op, fetches the little that the small ops behind it read, and the ops themselves:
// each would wait for it.
void Program::run_and_fetch(size_t index, int begin, int end, const Worker& worker) const {
  FetchList list;
  const size_t end_of_run = end_.load(std::memory_order_relaxed);
  for (size_t i = index + 1; i < end_of_run; i++) {
    const auto* op = reinterpret_cast<const uint8_t*>(ops_[i].get());
    list.add({op, op + kOpBytes}, kOpBytes);
    if (ops_[i]->reads().begin != nullptr) break;
    ops_[i]->list_inputs(step_, worker, list);
  }
  for (int unit = begin; unit < end; unit++) {
    list.fetch_lines((list.n_lines() + end - unit - 1) / (end - unit));
    ops_[index]->run(step_, unit, unit + 1, worker);
  }
}

// While others finish the op, fetches what this thread reads next; stops when the op is done.
void Program::fetch_while_waiting(size_t index, Stretch stretch) const {
  const State& state = states_[index];
  for (const uint8_t* line = stretch.begin; line < stretch.end; line += kLineBytes) {
    if (state.done.load(std::memory_order_acquire) >= state.units.load(std::memory_order_acquire)) return;
    fetch_line(line);
  }
}

Worker Program::worker_of(int thread, size_t index) {
  const auto misalignment = reinterpret_cast<uintptr_t>(scratch_.data()) % kAlignment;
  uint8_t* scratch = scratch_.data() + (misalignment ? kAlignment - misalignment : 0) + thread * scratch_bytes_;
  const Stretch following = ops_[index]->following();
  const ptrdiff_t n_lines = (following.end - following.begin) / kLineBytes;
  const uint8_t* begin = following.begin + n_lines * thread / pool_->n_threads() * kLineBytes;
  const ptrdiff_t left = following.end - begin;
  return {thread, pool_->n_threads(), scratch, {begin, begin + (left < kFetchedBytes ? left : kFetchedBytes)}};
}

}  // namespace dllama
