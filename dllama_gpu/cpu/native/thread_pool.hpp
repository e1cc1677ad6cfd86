// Threads that run one function together, and the barrier they meet at.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dllama {

// A counter that threads wait on: they spin for a moment, then sleep. The spin covers the usual wait of a few
// microseconds; the sleep gives the core away, so that a thread which was pushed off its own core can go on there.
class Epoch {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void advance();
  void wait_past(uint32_t seen);

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class ThreadPool {
 public:
  // With `pin`, thread i stays on the i-th processor this process may use (Linux; elsewhere it has no effect).
  ThreadPool(int n_threads, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // Calls work(thread) once on every thread, the caller being thread 0, and returns when all have returned.
  // `work` must not throw. Calls from several threads take turns.
  void run(const std::function<void(int)>& work);

  // Inside `run`: returns when every thread has come here. The last to come calls `on_last` first.
  template <class F>
  void barrier(F on_last) {
    const uint32_t seen = met_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < n_threads_) {
      met_.wait_past(seen);
      return;
    }
    arrived_.store(0, std::memory_order_relaxed);
    on_last();
    met_.advance();
  }

 private:
  void worker(int thread);

  const int n_threads_;
  const bool pin_;
  std::mutex running_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<bool> stopping_{false};
  Epoch started_;
  Epoch met_;
  std::atomic<int> arrived_{0};
  std::vector<std::thread> threads_;
};

}  // namespace dllama
