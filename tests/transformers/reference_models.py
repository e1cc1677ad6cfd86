"""Tiny random models of every architecture, written and computed by the transformers library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def _llama(**changes: Any) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(**_SIZES | {"rms_norm_eps": 1e-5} | changes)


def _rope(kind: str, factor: float, **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": factor} | numbers}


def _gemma_that_sees() -> transformers.PretrainedConfig:
    """Ids of images lie above those of the test's tokens."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=_GEMMA | {"vocab_size": 176, "rope_parameters": _SCALED_GEMMA_ROPE},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=170,
        boi_token_index=171,
        eoi_token_index=172,
    )


_GEMMA = _SIZES | {"num_hidden_layers": 6, "head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 50}
_SCALED_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_YARN = _rope("yarn", 4.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0)
_LLAMA3 = _rope("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

CONFIGURATIONS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": _llama,
    "llama with one KV head": lambda: _llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama 3.1": lambda: _llama(**_LLAMA3),
    "llama with linear scaling": lambda: _llama(**_rope("linear", 2.0)),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, sliding_window=None),
    "qwen 2": lambda: transformers.Qwen2Config(**_SIZES),
    "qwen 2 with yarn": lambda: transformers.Qwen2Config(**_SIZES, **_YARN),
    "qwen 3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=32),
    "qwen 3 moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=64, norm_topk_prob=True
    ),
    "qwen 3 moe without normalized experts": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=64, norm_topk_prob=False
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gemma 3": lambda: transformers.Gemma3TextConfig(**_GEMMA),
    "gemma 3 that sees": _gemma_that_sees,
    "smollm 3": lambda: transformers.SmolLM3Config(**_SIZES | {"num_hidden_layers": 4}),
}


@dataclass(frozen=True)
class ReferenceModel:
    """A model in a Hugging Face folder, and what transformers makes of it."""

    folder: Path
    tokens: npt.NDArray[np.int64]
    """(n_tokens,)"""
    logits: npt.NDArray[np.float32]
    """(n_tokens, vocab_size), all in one forward pass in float32."""


def write_reference(name: str, folder: Path, n_tokens: int = 45) -> ReferenceModel:
    """Makes the model with weights of the magnitude that trained ones have, and computes it."""
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS[name](), attn_implementation="eager")
    model = model.to(torch.float32).eval()
    less_one = "gemma" in name
    with torch.no_grad():
        for parameter_name, values in model.named_parameters():
            noise = torch.randn_like(values)
            if "norm" in parameter_name:
                values.copy_(0.2 * noise if less_one else 1.0 + 0.2 * noise)
            elif values.ndim == 1:
                values.copy_(0.5 * noise)
            elif "embed" in parameter_name:
                values.copy_(noise / 4)
            else:
                values.copy_(noise / values.shape[-1] ** 0.5)
        tokens = torch.randint(0, 160, (1, n_tokens))
        logits = model(tokens).logits[0]
    model.save_pretrained(folder)
    return ReferenceModel(folder, tokens[0].numpy(), logits.numpy())
