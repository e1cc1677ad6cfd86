"""Graph of the Mixtral architecture."""

from __future__ import annotations

from dllama_gpu.graph.experts import ExpertsBuilder


class MixtralBuilder(ExpertsBuilder):
    """Llama with experts instead of one feed-forward part. Source: Jiang et al., "Mixtral of Experts" (2024)."""
