#include "siphash.hpp"

#include "little_endian.hpp"

namespace dllama::net {

namespace {

uint64_t rotate_left(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

void round(uint64_t& v0, uint64_t& v1, uint64_t& v2, uint64_t& v3) {
  v0 += v1;
  v1 = rotate_left(v1, 13) ^ v0;
  v0 = rotate_left(v0, 32);
  v2 += v3;
  v3 = rotate_left(v3, 16) ^ v2;
  v0 += v3;
  v3 = rotate_left(v3, 21) ^ v0;
  v2 += v1;
  v1 = rotate_left(v1, 17) ^ v2;
  v2 = rotate_left(v2, 32);
}

}  // namespace

SipHash::SipHash(const MacKey& key) {
  const uint64_t k0 = load_little<uint64_t>(key.data()), k1 = load_little<uint64_t>(key.data() + 8);
  v0_ = k0 ^ 0x736f6d6570736575;
  v1_ = k1 ^ 0x646f72616e646f6d ^ 0xee;
  v2_ = k0 ^ 0x6c7967656e657261;
  v3_ = k1 ^ 0x7465646279746573;
}

void SipHash::word(uint64_t value) {
  v3_ ^= value;
  round(v0_, v1_, v2_, v3_);
  round(v0_, v1_, v2_, v3_);
  v0_ ^= value;
}

void SipHash::update(const uint8_t* data, size_t size) {
  n_bytes_ += size;
  while (size > 0 && n_tail_ > 0) {
    tail_[n_tail_++] = *data++;
    size--;
    if (n_tail_ == 8) {
      word(load_little<uint64_t>(tail_.data()));
      n_tail_ = 0;
    }
  }
  for (; size >= 8; data += 8, size -= 8) word(load_little<uint64_t>(data));
  while (size-- > 0) tail_[n_tail_++] = *data++;
}

Mac SipHash::finish() {
  uint64_t last = n_bytes_ << 56;
  for (size_t i = 0; i < n_tail_; i++) last |= static_cast<uint64_t>(tail_[i]) << (8 * i);
  word(last);
  Mac mac;
  v2_ ^= 0xee;
  for (int i = 0; i < 4; i++) round(v0_, v1_, v2_, v3_);
  store_little(mac.data(), v0_ ^ v1_ ^ v2_ ^ v3_);
  v1_ ^= 0xdd;
  for (int i = 0; i < 4; i++) round(v0_, v1_, v2_, v3_);
  store_little(mac.data() + 8, v0_ ^ v1_ ^ v2_ ^ v3_);
  return mac;
}

bool equal(const Mac& a, const Mac& b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); i++) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

}  // namespace dllama::net
