"""Graph of the Qwen 2 and 2.5 architecture."""

from __future__ import annotations

from dllama_gpu.graph.decoder import DecoderBuilder, columns_of, scaled


class Qwen2Builder(DecoderBuilder):
    """Llama with biases of queries, keys and values. Source: Yang et al., "Qwen2 Technical Report" (2024)."""

    def biases(self, prefix: str) -> tuple[str, str, str]:
        """The elements that belong to the node's heads."""
        spans = {"q_bias": self.shard.heads, "k_bias": self.kv_heads, "v_bias": self.kv_heads}
        q, k, v = (
            self.weight(prefix + name, [columns_of(self.tensors[prefix + name], scaled(heads, self.spec.head_dim))])
            for name, heads in spans.items()
        )
        return q, k, v
