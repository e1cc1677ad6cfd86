#include "bandwidth.hpp"

#include <atomic>
#include <chrono>

namespace dllama {

namespace {

constexpr size_t kStride = 16;              // words: two cache lines, and sums enough that no load waits for another
constexpr size_t kPiece = size_t{1} << 17;  // words, 1 MiB: long enough for the prefetcher, short enough to share out

uint64_t xor_of(const uint64_t* words, size_t n_words) {
  uint64_t sums[kStride] = {};
  size_t i = 0;
  for (; i + kStride <= n_words; i += kStride)
    for (size_t j = 0; j < kStride; j++) sums[j] ^= words[i + j];
  for (; i < n_words; i++) sums[0] ^= words[i];
  for (size_t j = 1; j < kStride; j++) sums[0] ^= sums[j];
  return sums[0];
}

}  // namespace

double read_rate(ThreadPool& pool, const uint64_t* words, size_t n_words) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point start;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> sum{0};  // keeps the compiler from leaving the loads out
  pool.run([&](int) {
    pool.barrier([&] { start = Clock::now(); });  // waking the threads is no reading
    uint64_t own = 0;
    for (size_t i; (i = next.fetch_add(kPiece)) < n_words;)
      own ^= xor_of(words + i, n_words - i < kPiece ? n_words - i : kPiece);
    sum.fetch_xor(own);
  });
  const std::chrono::duration<double> seconds = Clock::now() - start;
  return static_cast<double>(n_words * sizeof *words) / seconds.count();
}

}  // namespace dllama
