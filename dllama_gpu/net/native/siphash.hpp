// SipHash-2-4 with 128 bits of output, a keyed hash (message authentication code).
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012); 128-bit output: its reference code's note.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace dllama::net {

using MacKey = std::array<uint8_t, 16>;
using Mac = std::array<uint8_t, 16>;

// The hash of the bytes given in any number of pieces.
class SipHash {
 public:
  explicit SipHash(const MacKey& key);
  void update(const uint8_t* data, size_t size);
  Mac finish();

 private:
  void word(uint64_t value);

  uint64_t v0_, v1_, v2_, v3_;
  std::array<uint8_t, 8> tail_{};  // bytes that do not fill a word yet
  size_t n_tail_ = 0;
  uint64_t n_bytes_ = 0;
};

// Takes the same time wherever they differ.
bool equal(const Mac& a, const Mac& b);

}  // namespace dllama::net
