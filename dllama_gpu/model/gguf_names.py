"""What the tensors of GGUF files are called, by architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import GgufTensor
from dllama_gpu.model.spec import Architecture

ROPE_DIVISORS = "rope_freqs.weight"

_MODEL_NAMES = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "final_norm",
    "output.weight": "head",
}
_ATTENTION = {
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_output.weight": "o",
    "attn_norm.weight": "attention_norm",
    "ffn_norm.weight": "ffn_norm",
}
_FEED_FORWARD = {"ffn_gate.weight": "gate", "ffn_down.weight": "down", "ffn_up.weight": "up"}
_BIASES = {f"attn_{name}.bias": f"{name}_bias" for name in ("q", "k", "v")}
_HEAD_NORMS = {"attn_q_norm.weight": "q_norm", "attn_k_norm.weight": "k_norm"}
_POST_NORMS = {"post_attention_norm.weight": "post_attention_norm", "post_ffw_norm.weight": "post_ffn_norm"}
_ROUTER = {"ffn_gate_inp.weight": "router"}

_LAYER_NAMES: dict[Architecture, dict[str, str]] = {
    Architecture.LLAMA: _ATTENTION | _FEED_FORWARD,
    Architecture.MIXTRAL: _ATTENTION | _ROUTER,
    Architecture.QWEN2: _ATTENTION | _BIASES | _FEED_FORWARD,
    Architecture.QWEN3: _ATTENTION | _HEAD_NORMS | _FEED_FORWARD,
    Architecture.QWEN3_MOE: _ATTENTION | _HEAD_NORMS | _ROUTER,
    Architecture.GEMMA3: _ATTENTION | _HEAD_NORMS | _FEED_FORWARD | _POST_NORMS,
    Architecture.SMOLLM3: _ATTENTION | _FEED_FORWARD,
}
_MOST_EXPERTS = 4096


def canonical_tensors(
    path: Path, architecture: Architecture, tensors: Mapping[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """The model's tensors by canonical name, in file order; of a tensor with all experts, a part for each.

    Raises DllamaError for a tensor that has no such name.
    """
    names = _LAYER_NAMES[architecture]
    named: dict[str, GgufTensor] = {}
    for tensor in tensors.values():
        layer = re.fullmatch(r"blk\.(0|[1-9]\d{0,3})\.(.+)", tensor.name)
        if tensor.name in _MODEL_NAMES:
            named[_MODEL_NAMES[tensor.name]] = tensor
        elif layer and layer[2] in names:
            named[f"layers.{layer[1]}.{names[layer[2]]}"] = tensor
        elif layer and architecture.has_experts and (experts := _experts(path, layer[2], tensor)):
            named |= {f"layers.{layer[1]}.experts.{name}": part for name, part in experts.items()}
        elif tensor.name != ROPE_DIVISORS:
            raise DllamaError(f"{path}: {_refusal(tensor.name, architecture)}")
    return named


def stored_name(name: str) -> str:
    """The file's name of a tensor, from the canonical one."""
    parts = name.split(".")
    if parts[0] != "layers":
        return {short: full for full, short in _MODEL_NAMES.items()}[name]
    if parts[2] == "experts":
        return f"blk.{parts[1]}.ffn_{parts[4]}_exps.weight (expert {parts[3]})"
    for names in _LAYER_NAMES.values():
        for full, short in names.items():
            if short == parts[2]:
                return f"blk.{parts[1]}.{full}"
    raise KeyError(name)


def _experts(path: Path, name: str, tensor: GgufTensor) -> dict[str, GgufTensor]:
    """The experts in one tensor, by number and matrix: all of a layer, (experts, out, in), or one, as old files do."""
    if single := re.fullmatch(r"ffn_(gate|down|up)\.(0|[1-9]\d{0,3})\.weight", name):
        return {f"{single[2]}.{single[1]}": tensor}
    together = re.fullmatch(r"ffn_(gate|down|up)_exps\.weight", name)
    if together is None:
        return {}
    if len(tensor.shape) != 3 or tensor.shape[0] > _MOST_EXPERTS:
        raise DllamaError(
            f"{path}: the tensor {tensor.name} has the shape {list(tensor.shape)}, but experts (at most "
            f"{_MOST_EXPERTS}), rows and columns are wanted; the file is damaged"
        )
    n_experts, n_bytes = tensor.shape[0], tensor.n_bytes // tensor.shape[0]
    return {
        f"{i}.{together[1]}": replace(
            tensor, shape=tensor.shape[1:], offset=tensor.offset + i * n_bytes, n_bytes=n_bytes
        )
        for i in range(n_experts)
    }


def _refusal(name: str, architecture: Architecture) -> str:
    if name.endswith(".bias"):
        return f"the tensor {name} is a bias, which the architecture {architecture.value} does not have here"
    if "_exps." in name or "_inp." in name or re.search(r"ffn_\w+\.\d+\.weight", name):
        return f"the tensor {name} belongs to a mixture of experts, which is not supported for this architecture"
    return f"the tensor {name} has no place in the architecture; the model is of a kind that is not supported"
