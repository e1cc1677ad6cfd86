"""Graph of the Qwen 3 architecture."""

from __future__ import annotations

from dllama_gpu.graph.decoder import DecoderBuilder


class Qwen3Builder(DecoderBuilder):
    """Llama with a norm for every head of queries and keys. Source: "Qwen3 Technical Report" (2025)."""

    def head_norms(self, prefix: str) -> tuple[str, str]:
        """All heads share one norm for queries and one for keys."""
        return self.weight(prefix + "q_norm"), self.weight(prefix + "k_norm")
