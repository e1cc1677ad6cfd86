"""Graph of the Llama architecture (Llama 2 and 3, Mistral, SmolLM2 and others of the same arithmetic)."""

from __future__ import annotations

from dllama_gpu.graph.decoder import DecoderBuilder


class LlamaBuilder(DecoderBuilder):
    """The plain decoder: pre-norm, grouped-query attention with RoPE everywhere, SwiGLU."""
