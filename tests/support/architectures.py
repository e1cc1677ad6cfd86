"""A small random model of every architecture, in memory and as a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from benchmarks.q40_gguf import add_llama_metadata
from dllama_gpu.model import m_format
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeStyle
from tests.support.arrays import ArraySource
from tests.support.models import random_tensors, small_spec, write_gguf_file

_GGUF_ARCHITECTURES = {
    Architecture.LLAMA: "llama",
    Architecture.MIXTRAL: "llama",
    Architecture.QWEN2: "qwen2",
    Architecture.QWEN3: "qwen3",
    Architecture.QWEN3_MOE: "qwen3moe",
    Architecture.GEMMA3: "gemma3",
    Architecture.SMOLLM3: "smollm3",
}
_INTERLEAVED = (Architecture.LLAMA, Architecture.MIXTRAL, Architecture.SMOLLM3)
_GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attention_norm": "attn_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight",
}


def architecture_spec(architecture: Architecture, weight_type: FloatType = FloatType.F32) -> ModelSpec:
    """What is special about the architecture shows within a few layers and positions."""
    spec = replace(
        small_spec(weight_type=weight_type, head_dim=16 if architecture is Architecture.QWEN2 else 32, vocab_size=96),
        architecture=architecture,
        rope_style=RopeStyle.INTERLEAVED if architecture in _INTERLEAVED else RopeStyle.HALF_SPLIT,
    )
    if architecture.has_experts:
        n_experts, n_active = (4, 2) if architecture is Architecture.MIXTRAL else (8, 3)
        spec = replace(spec, n_experts=n_experts, n_active_experts=n_active, moe_hidden_dim=spec.hidden_dim)
    if architecture is Architecture.SMOLLM3:
        spec = replace(spec, n_layers=4, no_rope_interval=4, tied_embeddings=True)
    if architecture is Architecture.GEMMA3:
        windows = {"sliding_window": 5, "global_interval": 6, "local_rope_theta": 10000.0}
        spec = replace(spec, n_layers=6, rope_theta=1e6, tied_embeddings=True, norm_epsilon=1e-6, **windows)
    return spec


def random_source(spec: ModelSpec, seed: int = 11) -> ArraySource:
    """The model in memory; matrices in `spec.weight_type`."""
    source = ArraySource(spec)
    types = {info.name: info for info in m_format.tensor_layout(spec)}
    for name, values in random_tensors(spec, seed):
        if name == "head" and spec.tied_embeddings:
            continue
        vector = len(types[name].shape) == 1
        source.add(name, values[0] if vector else values, types[name].float_type)
    return source


def write_architecture_gguf(
    path: Path,
    spec: ModelSpec,
    *,
    merged_experts: bool = True,
    seed: int = 11,
    prepare: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> None:
    """The same model in F32, with the metadata that llama.cpp's converter writes and what `prepare` adds."""
    writer = gguf.GGUFWriter(path, _GGUF_ARCHITECTURES[spec.architecture])
    prepare(writer)
    add_llama_metadata(writer, spec)
    if spec.architecture.has_experts:
        writer.add_expert_count(spec.n_experts)
        writer.add_expert_used_count(spec.n_active_experts)
    if spec.architecture is Architecture.QWEN3_MOE:
        writer.add_expert_feed_forward_length(spec.moe_hidden_dim)
    if spec.architecture is Architecture.GEMMA3:
        writer.add_sliding_window(spec.sliding_window)
    experts: dict[str, list[np.ndarray]] = {}
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed):
        parts = name.split(".")
        layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        if "experts" in parts and merged_experts:
            stack = experts.setdefault(f"{layer}ffn_{parts[4]}_exps.weight", [])
            stack.append(values)
            if len(stack) == spec.n_experts:
                writer.add_tensor(f"{layer}ffn_{parts[4]}_exps.weight", np.stack(stack))
        elif "experts" in parts:
            writer.add_tensor(f"{layer}ffn_{parts[4]}.{parts[3]}.weight", values)
        elif name != "head" or not spec.tied_embeddings:
            is_vector = name.endswith(("norm", "bias"))
            short = (
                _GGUF_NAMES.get(parts[-1])
                or f"{'ffn' if parts[-1] in ('gate', 'up', 'down') else 'attn'}_{parts[-1]}.weight"
            )
            writer.add_tensor(layer + short, values[0] if is_vector else values)
    write_gguf_file(writer)
