// The ops of dllama_gpu/graph/graph.py for the CPU. Shapes and meaning are documented there.
#pragma once

#include <memory>
#include <vector>

#include "program.hpp"

namespace dllama {

std::unique_ptr<Op> make_embed(const RowSource& weight, const ActivationBuffer& out);
std::unique_ptr<Op> make_rope_angles(std::vector<double> frequencies, const ActivationBuffer& out);
// `weight` is [width] and must outlive the op; `add.f32` may be null.
std::unique_ptr<Op> make_rms_norm(const KernelTable& kernels, const ActivationBuffer& x, const ActivationBuffer& add,
                                  const float* weight, const ActivationBuffer& out, float epsilon);
std::unique_ptr<Op> make_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& weight,
                                const ActivationBuffer& out, int out_column);
std::unique_ptr<Op> make_gated_matmul(const KernelTable& kernels, const ActivationBuffer& x, const PackedWeight& gate,
                                      const PackedWeight& up, const ActivationBuffer& out, int max_rows);
std::unique_ptr<Op> make_rope_store(const KernelTable& kernels, const ActivationBuffer& qkv,
                                    const ActivationBuffer& angles, const KvCache& cache, int n_heads, bool half_split);

// Attention takes two ops: chunks of positions, then putting them together. `make_attention_work` is the memory
// between them and can be shared by all layers.
struct AttentionWork;
// Query head h reads KV head (h + first) / group.
struct QueryHeads {
  int n, group, first;
};
std::shared_ptr<AttentionWork> make_attention_work(int max_rows, int n_heads, int padded_head_dim, int seq_len);
std::unique_ptr<Op> make_attention_chunks(const KernelTable& kernels, const ActivationBuffer& qkv, const KvCache& cache,
                                          const QueryHeads& heads, float scale, std::shared_ptr<AttentionWork> work);
std::unique_ptr<Op> make_attention_join(const KernelTable& kernels, const KvCache& cache, int n_heads,
                                        const ActivationBuffer& out, std::shared_ptr<AttentionWork> work);

// Candidates take two ops as well: the best of every stretch of the vocabulary, then the best of those.
struct CandidateWork;
std::shared_ptr<CandidateWork> make_candidate_work(int max_rows, int vocab_size, int k);
std::unique_ptr<Op> make_candidate_search(const KernelTable& kernels, const ActivationBuffer& logits, int first_id,
                                          std::shared_ptr<CandidateWork> work);
std::unique_ptr<Op> make_candidate_join(const ActivationBuffer& values, const ActivationBuffer& ids,
                                        const ActivationBuffer& log_sum_exp, std::shared_ptr<CandidateWork> work);

}  // namespace dllama
