"""The feed-forward part of a mixture of experts, for the architectures that have one."""

from __future__ import annotations

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.decoder import DecoderBuilder, columns_of, rows_of
from dllama_gpu.graph.graph import (
    BufferType,
    ExpertGatedMatmul,
    ExpertMatmul,
    Matmul,
    RmsNorm,
    TensorSlice,
    TopExperts,
)
from dllama_gpu.model.source import TensorInfo


class ExpertsBuilder(DecoderBuilder):
    """Every node routes all rows, in f32, and computes its share of the chosen experts: a part of each of them, or
    those of them that it holds.
    """

    def feed_forward(self, layer: int) -> None:
        """Router, choice, and the chosen experts' sum."""
        spec, shard, prefix = self.spec, self.shard, f"layers.{layer}."
        experts = shard.experts_of(spec)
        router = self.tensors[prefix + "router"]
        exact = self.norm(prefix + "ffn_norm", feeds=(router,))
        if not shard.has_feed_forward:
            return
        gates, ups, downs = (self.expert_tensors(prefix, name) for name in ("gate", "up", "down"))
        normed = self.input_buffer("normed", spec.dim, (gates[0], ups[0]))
        if normed != exact:
            # The router reads rows that are not rounded, the experts' matmuls rounded ones.
            self.steps.append(RmsNorm("x", None, self.weight(prefix + "ffn_norm"), normed, spec.norm_epsilon))
        k = spec.n_active_experts
        logits = self.buffer("router_logits", spec.n_experts)
        ids, weights = self.buffer("expert_ids", k, BufferType.I32), self.buffer("expert_weights", k)
        self.steps.append(Matmul(exact, self.weight(router.name), logits))
        self.steps.append(TopExperts(logits, ids, weights, spec.normalize_experts))
        hidden = self.input_buffer("hidden", k * len(shard.hidden), (downs[0],))
        gate = self.expert_stack(prefix + "experts.gate", [rows_of(tensor, shard.hidden) for tensor in gates])
        up = self.expert_stack(prefix + "experts.up", [rows_of(tensor, shard.hidden) for tensor in ups])
        down = self.expert_stack(prefix + "experts.down", [columns_of(tensor, shard.hidden) for tensor in downs])
        self.steps.append(ExpertGatedMatmul(normed, ids, gate, up, hidden, experts.begin, self.activation))
        self.steps.append(ExpertMatmul(hidden, ids, weights, down, "delta", experts.begin))

    def expert_tensors(self, prefix: str, name: str) -> list[TensorInfo]:
        """One matrix of each of the node's experts. Raises DllamaError when their number formats differ."""
        experts = self.shard.experts_of(self.spec)
        tensors = [self.tensors[f"{prefix}experts.{i}.{name}"] for i in range(experts.begin, experts.end)]
        formats = {tensor.float_type.value for tensor in tensors}
        if len(formats) > 1:
            raise DllamaError(
                f"the experts of {prefix.rstrip('.')} have {name} matrices of {len(formats)} number formats "
                f"({', '.join(sorted(formats))}), but one is wanted; convert the model to one"
            )
        return tensors

    def expert_stack(self, name: str, parts: list[TensorSlice]) -> str:
        """Declares a weight of one slice an expert."""
        return self.weight(name, parts, n_experts=len(parts))
