// Fetching memory into the caches before it is read. An address may lie anywhere: none faults.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

#include "kernel_table.hpp"

namespace dllama {

constexpr ptrdiff_t kLineBytes = 64;

// Into all caches.
static inline void fetch_line(const uint8_t* p) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(p, 0, 3);
#elif defined(_M_X64)
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
#else
  (void)p;
#endif
}

// Into all but the first, for what is not read soon.
static inline void fetch_line_early(const uint8_t* p) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(p, 0, 2);
#elif defined(_M_X64)
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
#else
  (void)p;
#endif
}

// The first `at_most` bytes of it.
static inline void fetch(Stretch stretch, ptrdiff_t at_most) {
  const uint8_t* end = stretch.end - stretch.begin < at_most ? stretch.end : stretch.begin + at_most;
  for (const uint8_t* line = stretch.begin; line < end; line += kLineBytes) fetch_line(line);
}

// What is fetched a few lines at a time: of what is asked of it at once, a processor drops a part.
class FetchList {
 public:
  // At most so many bytes of it, and nothing where the list is full.
  void add(Stretch stretch, ptrdiff_t at_most) {
    if (stretch.begin >= stretch.end || n_ == kMost) return;
    const uint8_t* begin = stretch.begin - reinterpret_cast<uintptr_t>(stretch.begin) % kLineBytes;
    const uint8_t* end = stretch.end - stretch.begin < at_most ? stretch.end : stretch.begin + at_most;
    stretches_[n_++] = {begin, end};
    n_lines_ += (end - begin + kLineBytes - 1) / kLineBytes;
  }

  ptrdiff_t n_lines() const { return n_lines_; }

  void fetch_lines(ptrdiff_t n) {
    for (; n > 0 && n_lines_ > 0; n--, n_lines_--) {
      Stretch& now = stretches_[at_];
      fetch_line_early(now.begin);
      now.begin += kLineBytes;
      if (now.begin >= now.end) at_++;
    }
  }

 private:
  static constexpr int kMost = 160;  // the new keys and values of 8 rows with 8 heads, and some more

  Stretch stretches_[kMost];
  int n_ = 0, at_ = 0;
  ptrdiff_t n_lines_ = 0;
};

}  // namespace dllama
