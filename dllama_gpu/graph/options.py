"""What is the user's choice about a graph, and not the model's."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_gpu.graph.graph import BufferType, CacheType


@dataclass(frozen=True)
class GraphOptions:
    """Sizes and number formats that are the user's choice and not the model's."""

    max_rows: int = 128
    """Rows a step may have: the prefill chunk."""
    max_logit_rows: int | None = None
    """Rows of a step that may want logits; None: all of them. Each takes a row as wide as the vocabulary."""
    n_slots: int = 1
    """Sequences kept in the KV cache."""
    seq_len: int = 2048
    """Positions a slot can hold."""
    buffer_type: BufferType = BufferType.Q80
    """Input format of matmuls whose weights are quantized; other matmuls read f32."""
    cache_type: CacheType = CacheType.F16
    """Number format of keys and values."""
    n_candidates: int = 64
    """Best tokens found per row that wants logits."""
