#define DLLAMA_USE_DOTPROD
#define DLLAMA_USE_I8MM
#include "simd_neon.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_i8mm() {
  static constexpr KernelTable table = make_table("i8mm");
  return &table;
}

}  // namespace dllama
