#include "simd_neon.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_neon() {
  static constexpr KernelTable table = make_table("neon");
  return &table;
}

}  // namespace dllama
