"""Graph of the Qwen 3 mixture-of-experts architecture."""

from __future__ import annotations

from dllama_gpu.graph.experts import ExpertsBuilder
from dllama_gpu.graph.qwen3 import Qwen3Builder


class Qwen3MoeBuilder(ExpertsBuilder, Qwen3Builder):
    """Qwen 3 with experts instead of one feed-forward part. Source: "Qwen3 Technical Report" (2025)."""
