// All kernels of one instruction set; the including file brings a simd_*.hpp and names its table.

#include <cmath>

#include "fetching.hpp"
#include "kernel_table.hpp"

namespace {
using dllama::AttentionArgs;
using dllama::AttentionPartial;
using dllama::CandidateHeap;
using dllama::PositionSpan;
using dllama::fetch_line_early;
using dllama::kAttentionChunk;
using dllama::kBlock;
using dllama::kGroupRows;
using dllama::kTileRows;
using dllama::LogitSurvey;
using dllama::MatmulArgs;
using dllama::PackedWeight;
using dllama::PairLayout;
using dllama::q80_index;
using dllama::Q80Rows;
using dllama::quants_at;
using dllama::scales_at;
using dllama::minima_at;
using dllama::RowOutput;
using dllama::Stretch;
using dllama::tile_height;
}  // namespace

#include "matmul.inl"
#include "rows.inl"
// rows.inl's vector exp is used by the next three.
#include "attention.inl"
#include "candidates.inl"
#include "experts.inl"

namespace {

constexpr dllama::KernelTable make_table(const char* name) {
  return {name,
          {nullptr, nullptr, nullptr, matmul_q80<NibbleFormat<false>>, matmul_q80<NibbleFormat<true>>,
           matmul_q80<ByteFormat>},
          {matmul_f32<F32Reader>, matmul_f32<HalfReader<false>>, matmul_f32<HalfReader<true>>,
           matmul_f32<NibbleReader<false>>, matmul_f32<NibbleReader<true>>, matmul_f32<ByteReader>},
          rms_norm,
          store_row,
          silu_mul,
          gelu_mul,
          f32_to_f16_row,
          {attention_chunk<F16Cache>, attention_chunk<Q80Cache>, attention_chunk<F32Cache>},
          attention_merge,
          top_experts,
          survey_logits,
          search_logits};
}

}  // namespace
