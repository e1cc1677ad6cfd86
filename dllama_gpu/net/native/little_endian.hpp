// Numbers on the wire, least significant byte first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rows cross the network as they lie in memory, least significant byte first"
#endif

namespace dllama::net {

template <class Number>
Number load_little(const uint8_t* from) {
  Number value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Number>
void store_little(uint8_t* to, Number value) {
  std::memcpy(to, &value, sizeof value);
}

}  // namespace dllama::net
