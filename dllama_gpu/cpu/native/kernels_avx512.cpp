#include "simd_avx512.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_avx512() {
  static constexpr KernelTable table = make_table("avx512");
  return &table;
}

}  // namespace dllama
