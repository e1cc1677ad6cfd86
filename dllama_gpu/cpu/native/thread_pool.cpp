#include "thread_pool.hpp"

#include <chrono>

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace dllama {

namespace {

constexpr std::chrono::microseconds kSpin{50};

void pause() {
#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

void stay_on_processor(int index) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed) || index-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
#else
  (void)index;
#endif
}

}  // namespace

void Epoch::advance() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  // The lock makes sure that nobody stands between looking at the value and falling asleep.
  { std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_all();
}

void Epoch::wait_past(uint32_t seen) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; i++) {
      if (value() != seen) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

ThreadPool::ThreadPool(int n_threads, bool pin) : n_threads_(n_threads < 1 ? 1 : n_threads), pin_(pin), inside_(n_threads_) {
  try {
    for (int i = 1; i < n_threads_; i++) threads_.emplace_back(&ThreadPool::worker, this, i);
  } catch (...) {
    stopping_ = true;
    started_.advance();
    for (std::thread& thread : threads_) thread.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  started_.advance();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::share(SharedWork& work) {
  current_.store(&work, std::memory_order_seq_cst);
  if (n_threads_ > 1) started_.advance();
  work.take_part(0);
}

void ThreadPool::retire(SharedWork& work) {
  SharedWork* expected = &work;
  current_.compare_exchange_strong(expected, nullptr, std::memory_order_seq_cst);
  // A worker says where it goes before it looks at current_ once more, so nobody can enter after this.
  for (const std::atomic<SharedWork*>& inside : inside_)
    while (inside.load(std::memory_order_seq_cst) == &work) std::this_thread::yield();
}

namespace {

// Every thread calls the function once, and the caller waits for them all.
class Everyone final : public SharedWork {
 public:
  Everyone(ThreadPool& pool, const std::function<void(int)>& work) : pool_(pool), work_(work), called_(pool.n_threads()) {}

  void take_part(int thread) override {
    // A worker that comes back after the end finds that it has been here.
    if (called_[thread].exchange(true)) return;
    work_(thread);
    pool_.barrier([] {});
  }

 private:
  ThreadPool& pool_;
  const std::function<void(int)>& work_;
  std::vector<std::atomic<bool>> called_;
};

}  // namespace

void ThreadPool::run(const std::function<void(int)>& work) {
  const auto turn = take_turn();
  Everyone everyone(*this, work);
  share(everyone);
  retire(everyone);
}

void ThreadPool::worker(int thread) {
  if (pin_) stay_on_processor(thread);
  for (uint32_t seen = 0;;) {
    started_.wait_past(seen);
    seen = started_.value();
    if (stopping_) return;
    SharedWork* work = current_.load(std::memory_order_seq_cst);
    inside_[thread].store(work, std::memory_order_seq_cst);
    if (work && current_.load(std::memory_order_seq_cst) == work) work->take_part(thread);
    inside_[thread].store(nullptr, std::memory_order_seq_cst);
  }
}

}  // namespace dllama
