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

ThreadPool::ThreadPool(int n_threads, bool pin) : n_threads_(n_threads < 1 ? 1 : n_threads), pin_(pin) {
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

void ThreadPool::run(const std::function<void(int)>& work) {
  std::lock_guard<std::mutex> lock(running_);
  work_ = &work;
  if (n_threads_ > 1) started_.advance();
  work(0);
  barrier([] {});
}

void ThreadPool::worker(int thread) {
  if (pin_) stay_on_processor(thread);
  for (uint32_t seen = 0;; seen++) {
    started_.wait_past(seen);
    if (stopping_) return;
    (*work_)(thread);
    barrier([] {});
  }
}

}  // namespace dllama
