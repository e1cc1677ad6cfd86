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

// Something that threads can join and leave at any time. It is finished when its work is, whoever did it: a thread that
// has lost its core is not waited for.
class SharedWork {
 public:
  // Called by every thread that finds the work under way; must not throw. A late thread may come after the end.
  virtual void take_part(int thread) = 0;

 protected:
  ~SharedWork() = default;
};

class ThreadPool {
 public:
  // With `pin`, thread i >= 1 stays on the i-th processor this process may use (Linux; elsewhere it has no effect);
  // the calling thread is the program's own and keeps its freedom, with the first processor left to it.
  ThreadPool(int n_threads, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // To be held around `share`: callers in several threads take turns.
  std::unique_lock<std::mutex> take_turn() { return std::unique_lock<std::mutex>(turn_); }

  // Calls work.take_part(0) and returns when that does; the other threads are invited to take part meanwhile.
  void share(SharedWork& work);

  // Returns when no thread is inside `work` any more and none will enter; call it before the work goes away.
  void retire(SharedWork& work);

  // Calls work(thread) once on every thread, the caller being thread 0, and returns when all have returned.
  // `work` must not throw.
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
  std::mutex turn_;
  std::atomic<SharedWork*> current_{nullptr};
  std::vector<std::atomic<SharedWork*>> inside_;  // what each thread may be inside of
  std::atomic<bool> stopping_{false};
  Epoch started_;
  Epoch met_;
  std::atomic<int> arrived_{0};
  std::vector<std::thread> threads_;
};

}  // namespace dllama
