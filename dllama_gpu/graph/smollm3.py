"""Graph of the SmolLM3 architecture."""

from __future__ import annotations

from dllama_gpu.graph.decoder import DecoderBuilder


class SmolLm3Builder(DecoderBuilder):
    """Llama where every so manieth layer rotates nothing (NoPE).

    Source: Yang et al., "RoPE to NoPE and Back Again" (2025).
    """

    def angles(self, layer: int) -> str | None:
        """None for layers without RoPE."""
        return "angles" if self.spec.has_rope(layer) else None
