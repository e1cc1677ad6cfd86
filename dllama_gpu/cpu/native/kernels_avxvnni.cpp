#define DLLAMA_USE_AVXVNNI
#include "simd_avx2.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_avxvnni() {
  static constexpr KernelTable table = make_table("avxvnni");
  return &table;
}

}  // namespace dllama
