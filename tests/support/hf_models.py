"""Small random models as Hugging Face folders; tensors as `tests.support.models` makes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.model.codecs import quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_architectures import HF_ARCHITECTURES
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeStyle
from tests.support.models import random_tensors, small_spec

_MODEL_TYPES = {Architecture.LLAMA: "llama", Architecture.QWEN3: "qwen3", Architecture.QWEN3_MOE: "qwen3_moe"}


def hf_config(spec: ModelSpec, **changes: Any) -> dict[str, Any]:
    """The `config.json` that the transformers library would write; `changes` replace fields, None takes one out."""
    config: dict[str, Any] = {
        "model_type": _MODEL_TYPES[spec.architecture],
        "hidden_size": spec.dim,
        "intermediate_size": spec.hidden_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_seq_len,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": spec.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied_embeddings,
    }
    if spec.rope_scaling is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": spec.rope_scaling.factor,
            "low_freq_factor": spec.rope_scaling.low_freq_factor,
            "high_freq_factor": spec.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": spec.rope_scaling.original_max_seq_len,
        }
    if spec.architecture is Architecture.QWEN3_MOE:
        config |= {
            "num_experts": spec.n_experts,
            "num_experts_per_tok": spec.n_active_experts,
            "moe_intermediate_size": spec.moe_hidden_dim,
            "norm_topk_prob": True,
        }
    return {name: value for name, value in (config | changes).items() if value is not None}


def half_split(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows of q or k as Hugging Face stores them, from rows for RoPE over adjacent pairs."""
    heads = values.reshape(-1, head_dim // 2, 2, values.shape[1])
    return heads.swapaxes(1, 2).reshape(values.shape)


def hf_tensors(spec: ModelSpec, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """The model's tensors under the folder's names and in its order of rows, vectors one-dimensional."""
    kind = HF_ARCHITECTURES[_MODEL_TYPES[spec.architecture]]
    tensors = {}
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed):
        if name == "head" and spec.tied_embeddings:
            continue
        if name.endswith((".q", ".k")) and kind.rope_style is RopeStyle.INTERLEAVED:
            values = half_split(values, spec.head_dim)
        tensors[kind.stored_name(name)] = values[0] if name.endswith("norm") else values
    return tensors


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], float_type: FloatType = FloatType.F32
) -> None:
    """Writes a safetensors file (`safetensors.numpy` knows no bf16)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = quantize(values.reshape(1, -1), float_type).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": float_type.name, "shape": list(values.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_hf_folder(
    folder: Path,
    spec: ModelSpec | None = None,
    *,
    float_type: FloatType = FloatType.BF16,
    seed: int = 7,
    n_files: int = 1,
    **changes: Any,
) -> ModelSpec:
    """Writes a folder with `config.json` (with `changes`) and `n_files` safetensors files; returns the model's spec."""
    spec = small_spec() if spec is None else spec
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(spec, **changes)), encoding="utf-8")
    tensors = hf_tensors(spec, seed)
    if n_files == 1:
        write_safetensors(folder / "model.safetensors", tensors, float_type)
        return spec
    weight_map = {}
    for number in range(n_files):
        name = f"model-{number + 1:05}-of-{n_files:05}.safetensors"
        part = {tensor: values for i, (tensor, values) in enumerate(tensors.items()) if i % n_files == number}
        weight_map |= dict.fromkeys(part, name)
        write_safetensors(folder / name, part, float_type)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return spec
