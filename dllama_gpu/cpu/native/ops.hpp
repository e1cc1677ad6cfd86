// The ops of dllama_gpu/graph/graph.py for the CPU. Shapes and meaning are documented there.
#pragma once

#include <memory>
#include <vector>

#include "program.hpp"

namespace dllama {

std::unique_ptr<Op> make_embed(const RowSource& weight, const ActivationBuffer& out, float scale);
std::unique_ptr<Op> make_rope_angles(std::vector<double> frequencies, const ActivationBuffer& out, double scale);
// `weight` is [width] and must outlive the op; `add.f32` may be null.
std::unique_ptr<Op> make_rms_norm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add,
                                  const float* weight, const ActivationBuffer& out, float epsilon);
std::unique_ptr<Op> make_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& weight,
                                const ActivationBuffer& out, int out_column);
std::unique_ptr<Op> make_gated_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& gate,
                                      const PackedWeight& up, const ActivationBuffer& out, bool gelu, int max_rows);
// What happens to heads before they are rotated. Vectors must outlive the op; all may be null.
struct HeadPreparation {
  const float *q_bias, *k_bias, *v_bias;  // [heads * head_dim]
  const float *q_norm, *k_norm;           // [head_dim]
  float epsilon;
};
// `angles.f32` may be null: then nothing is rotated.
std::unique_ptr<Op> make_rope_store(const KernelTable& kernels, const ActivationBuffer& qkv,
                                    const ActivationBuffer& angles, const KvCache& cache, int n_heads, bool half_split,
                                    const HeadPreparation& preparation);

// Attention takes two ops: chunks of positions, then putting them together. `make_attention_work` is the memory
// between them and can be shared by all layers.
struct AttentionWork;
// Query head h reads KV head (h + first) / group, of which it sees the last `window` positions; 0: all.
struct QueryHeads {
  int n, group, first, window;

  PositionSpan seen_from(int position) const {
    return {window && position >= window ? position + 1 - window : 0, position + 1};
  }
};
std::shared_ptr<AttentionWork> make_attention_work(int max_rows, int n_heads, int padded_head_dim, int seq_len);
std::unique_ptr<Op> make_attention_chunks(const KernelTable& kernels, const ActivationBuffer& qkv, const KvCache& cache,
                                          const ActivationBuffer& out, const QueryHeads& heads, float scale,
                                          std::shared_ptr<AttentionWork> work);
std::unique_ptr<Op> make_attention_join(const KernelTable& kernels, const KvCache& cache, const QueryHeads& heads,
                                        const ActivationBuffer& out, std::shared_ptr<AttentionWork> work);

// Experts: the router's choice; then, for as many layers as share the work, the rows sorted by expert (one op), a copy
// of their inputs in that order (one op; nothing to do for a single row), and the two matmuls, the second of which takes
// an op more to add up a row's experts.
std::unique_ptr<Op> make_top_experts(const KernelTable& kernels, const ActivationBuffer& logits,
                                     const ActivationBuffer& ids, const ActivationBuffer& weights, bool normalize);
struct ExpertWork;
// For steps of up to max_rows rows with k experts each, of which those from first_expert on are here.
std::shared_ptr<ExpertWork> make_expert_work(int max_rows, int k, int first_expert, int n_experts);
std::unique_ptr<Op> make_expert_sort(const ActivationBuffer& ids, std::shared_ptr<ExpertWork> work);
std::unique_ptr<Op> make_expert_inputs(const ActivationBuffer& x, std::shared_ptr<ExpertWork> work);
std::unique_ptr<Op> make_expert_gated_matmul(const KernelTable& kernels, const ActivationBuffer& x,
                                             const PackedExperts& gate, const PackedExperts& up,
                                             const ActivationBuffer& out, bool gelu, std::shared_ptr<ExpertWork> work);
std::unique_ptr<Op> make_expert_matmul(const KernelTable& kernels, const ActivationBuffer& x,
                                       const PackedExperts& down, std::shared_ptr<ExpertWork> work);
std::unique_ptr<Op> make_expert_sum(const ActivationBuffer& weights, const ActivationBuffer& out,
                                    std::shared_ptr<ExpertWork> work);

// Candidates take two ops as well: a survey of the logits, then the search for the best. `matmul`, which may be null,
// makes the logits; the survey then runs it.
struct CandidateWork;
std::shared_ptr<CandidateWork> make_candidate_work(int max_rows, int vocab_size);
std::unique_ptr<Op> make_candidate_survey(const KernelTable& kernels, const ActivationBuffer& logits,
                                          std::shared_ptr<CandidateWork> work, std::unique_ptr<Op> matmul);
std::unique_ptr<Op> make_candidate_search(const KernelTable& kernels, const ActivationBuffer& logits,
                                          const ActivationBuffer& values, const ActivationBuffer& ids,
                                          const ActivationBuffer& log_sum_exp, int first_id,
                                          std::shared_ptr<CandidateWork> work);

}  // namespace dllama
