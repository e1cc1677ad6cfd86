"""What the kinds of models in Hugging Face folders are to us: one entry of `HF_ARCHITECTURES` each.

The table says which architecture a `model_type` is, what its tensors are called, how it turns heads by RoPE, and which
fields of `config.json` would change the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dllama_gpu.model.spec import Architecture, RopeStyle

MODEL_NAMES = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "final_norm",
    "lm_head.weight": "head",
}
"""Canonical names of the tensors outside the layers, the same for all kinds."""

_ATTENTION = {
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "input_layernorm.weight": "attention_norm",
    "post_attention_layernorm.weight": "ffn_norm",
}
_FEED_FORWARD = {"mlp.gate_proj.weight": "gate", "mlp.down_proj.weight": "down", "mlp.up_proj.weight": "up"}
_HEAD_NORMS = {"self_attn.q_norm.weight": "q_norm", "self_attn.k_norm.weight": "k_norm"}
_BIASES = {f"self_attn.{name}_proj.bias": f"{name}_bias" for name in ("q", "k", "v")}
_POST_NORMS = {
    "post_attention_layernorm.weight": "post_attention_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "post_feedforward_layernorm.weight": "post_ffn_norm",
}
_MIXTRAL_EXPERTS = {
    "block_sparse_moe.gate.weight": "router",
    "block_sparse_moe.experts.#.w1.weight": "experts.#.gate",
    "block_sparse_moe.experts.#.w2.weight": "experts.#.down",
    "block_sparse_moe.experts.#.w3.weight": "experts.#.up",
}
_EXPERTS = {
    "mlp.gate.weight": "router",
    "mlp.experts.#.gate_proj.weight": "experts.#.gate",
    "mlp.experts.#.down_proj.weight": "experts.#.down",
    "mlp.experts.#.up_proj.weight": "experts.#.up",
}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1.0,),
}

_NUMBER = re.compile(r"\.(0|[1-9]\d{0,4})\.")


@dataclass(frozen=True)
class HfArchitecture:
    """How a kind of model in Hugging Face folders is read."""

    architecture: Architecture
    layer_names: Mapping[str, str]
    """Canonical names by the folder's names, both without the layer; `#` stands for an expert's number."""
    rope_style: RopeStyle
    """INTERLEAVED: rows of q and k are reordered when they are read. The files themselves are all for HALF_SPLIT."""
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _NEUTRAL)
    """Fields of `config.json` with the values that change nothing; a model with another value is refused."""
    norms_less_one: bool = False
    """Whether the files hold norms less 1."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields that published configurations leave out."""
    text_config: str | None = None
    """The field of `config.json` that describes the text part, where the model has other parts too."""
    other_parts: tuple[str, ...] = ()
    """What the names of the other parts' tensors begin with."""

    def is_of_other_part(self, name: str) -> bool:
        """Whether a tensor belongs to a part that is left out, such as one that sees images."""
        return name.startswith(self.other_parts) if self.other_parts else False

    def canonical_name(self, name: str) -> str | None:
        """The canonical name of a tensor of the folder; None for one that has no place in the architecture."""
        if self.text_config is not None:
            name = re.sub(r"^(language_model\.|model\.language_model\.)(model\.)?", _text_prefix, name)
        if name in MODEL_NAMES:
            return MODEL_NAMES[name]
        layer = re.fullmatch(r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)", name)
        if layer is None:
            return None
        expert = _NUMBER.search(layer[2])
        pattern = layer[2] if expert is None else _NUMBER.sub(".#.", layer[2], count=1)
        found = self.layer_names.get(pattern)
        if found is None:
            return None
        return f"layers.{layer[1]}." + (found if expert is None else found.replace("#", expert[1]))

    def stored_name(self, name: str) -> str:
        """The folder's name of a tensor, from the canonical one. Raises KeyError for one that has none."""
        parts = name.split(".")
        if parts[0] != "layers":
            return {short: full for full, short in MODEL_NAMES.items()}[name]
        rest = ".".join(parts[2:])
        expert = re.search(r"experts\.(\d+)\.", rest)
        pattern = rest if expert is None else re.sub(r"experts\.\d+\.", "experts.#.", rest)
        full = {short: full for full, short in self.layer_names.items()}[pattern]
        return f"model.layers.{parts[1]}." + (full if expert is None else full.replace("#", expert[1]))


def _text_prefix(match: re.Match[str]) -> str:
    """Names of the text part as they are where it is alone; the head stands beside `model`."""
    return "model." if match[2] or match[1].startswith("model.") else ""


_GEMMA3 = HfArchitecture(
    Architecture.GEMMA3,
    _ATTENTION | _HEAD_NORMS | _FEED_FORWARD | _POST_NORMS,
    RopeStyle.HALF_SPLIT,
    {
        "attention_bias": (False,),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attn_logit_softcapping": (),
        "final_logit_softcapping": (),
        "use_bidirectional_attention": (False,),
    },
    norms_less_one=True,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
)

_LLAMA = HfArchitecture(Architecture.LLAMA, _ATTENTION | _FEED_FORWARD, RopeStyle.INTERLEAVED)

HF_ARCHITECTURES: dict[str, HfArchitecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": HfArchitecture(Architecture.QWEN3, _ATTENTION | _HEAD_NORMS | _FEED_FORWARD, RopeStyle.HALF_SPLIT),
    "qwen3_moe": HfArchitecture(
        Architecture.QWEN3_MOE,
        _ATTENTION | _HEAD_NORMS | _EXPERTS,
        RopeStyle.HALF_SPLIT,
        _NEUTRAL | {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    ),
    "qwen2": HfArchitecture(Architecture.QWEN2, _ATTENTION | _BIASES | _FEED_FORWARD, RopeStyle.HALF_SPLIT),
    "mixtral": HfArchitecture(Architecture.MIXTRAL, _ATTENTION | _MIXTRAL_EXPERTS, RopeStyle.INTERLEAVED),
    "smollm3": HfArchitecture(Architecture.SMOLLM3, _ATTENTION | _FEED_FORWARD, RopeStyle.INTERLEAVED),
    "gemma3_text": _GEMMA3,
    "gemma3": replace(
        _GEMMA3,
        text_config="text_config",
        other_parts=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
}
"""By the `model_type` of `config.json`."""
