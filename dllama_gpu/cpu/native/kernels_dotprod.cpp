#define DLLAMA_USE_DOTPROD
#include "simd_neon.hpp"

#include "kernels.inl"

namespace dllama {

const KernelTable* kernels_dotprod() {
  static constexpr KernelTable table = make_table("dotprod");
  return &table;
}

}  // namespace dllama
