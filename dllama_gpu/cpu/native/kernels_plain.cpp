#include "simd_plain.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_plain() {
  static constexpr KernelTable table = make_table("plain");
  return &table;
}

}  // namespace dllama
