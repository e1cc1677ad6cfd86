#include "simd_avx2.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_avx2() {
  static constexpr KernelTable table = make_table("avx2");
  return &table;
}

}  // namespace dllama
