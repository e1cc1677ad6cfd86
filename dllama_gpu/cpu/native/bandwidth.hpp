// How fast memory can be read, as a bound for everything that reads weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "thread_pool.hpp"

namespace dllama {

// Bytes per second of one pass over `words`, all threads of the pool reading.
double read_rate(ThreadPool& pool, const uint64_t* words, size_t n_words);

}  // namespace dllama
