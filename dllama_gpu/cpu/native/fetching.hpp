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

}  // namespace dllama
