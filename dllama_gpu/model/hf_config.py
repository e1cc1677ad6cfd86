"""The `config.json` of a Hugging Face folder as a `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_architectures import HF_ARCHITECTURES, HfArchitecture
from dllama_gpu.model.hf_patterns import full_attention_rope, local_rope_theta, no_rope_interval, window_pattern
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling
from dllama_gpu.model.spec_check import check_spec


def architecture_of(config: JsonFields) -> HfArchitecture:
    """The entry of `HF_ARCHITECTURES` for this model. Raises DllamaError when there is none."""
    model_type = config.text("model_type")
    if model_type not in HF_ARCHITECTURES:
        raise DllamaError(
            f"{config.path}: model_type is {shown_value(model_type)}, which is not supported (supported: "
            f"{', '.join(HF_ARCHITECTURES)})"
        )
    return HF_ARCHITECTURES[model_type]


def spec_from_config(config: JsonFields, *, weight_type: FloatType, has_head: bool) -> ModelSpec:
    """The model that `config.json` describes; `has_head` says whether the folder stores an output head of its own.

    Raises DllamaError, naming the file and the field, when something is missing, impossible or not supported.
    """
    kind = architecture_of(config)
    _refuse_quantized(config)
    config = text_part(config, kind)
    _refuse_features(config, kind)
    dim = config.number("hidden_size", int)
    n_heads = config.number("num_attention_heads", int)
    tied = config.flag("tie_word_embeddings", not has_head)
    if not tied and not has_head:
        raise DllamaError(f"{config.path}: tie_word_embeddings is false, but the folder has no tensor lm_head.weight")
    rope = full_attention_rope(config)  # since version 5 of the transformers library
    hidden_dim = config.number("intermediate_size", int)
    n_layers = config.number("num_hidden_layers", int)
    spec = ModelSpec(
        architecture=kind.architecture,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=config.number("num_key_value_heads", int, n_heads),
        head_dim=config.number("head_dim", int, dim // max(1, n_heads)),
        vocab_size=config.number("vocab_size", int),
        max_seq_len=_max_seq_len(config),
        weight_type=weight_type,
        norm_epsilon=config.number("rms_norm_eps", float),
        rope_theta=rope.number("rope_theta", float, config.number("rope_theta", float, 10000.0)),
        rope_style=kind.rope_style,
        rope_scaling=_rope_scaling(rope if rope.fields else config.nested("rope_scaling"), config),
        tied_embeddings=tied,
    )
    spec = replace(spec, **_EXTRAS.get(kind.architecture, _no_extras)(config, spec))
    check_spec(spec, config.path)
    return spec


def _no_extras(config: JsonFields, spec: ModelSpec) -> dict[str, Any]:
    return {}


def _qwen3_moe_extras(config: JsonFields, spec: ModelSpec) -> dict[str, Any]:
    return {
        # Renamed in version 5 of the transformers library.
        "n_experts": config.number("num_experts", int, config.number("num_local_experts", int, 0)),
        "n_active_experts": config.number("num_experts_per_tok", int),
        "moe_hidden_dim": config.number("moe_intermediate_size", int),
        "normalize_experts": config.flag("norm_topk_prob", False),
    }


def _mixtral_extras(config: JsonFields, spec: ModelSpec) -> dict[str, Any]:
    return {
        "n_experts": config.number("num_local_experts", int),
        "n_active_experts": config.number("num_experts_per_tok", int),
        "moe_hidden_dim": spec.hidden_dim,
    }


def _smollm3_extras(config: JsonFields, spec: ModelSpec) -> dict[str, Any]:
    return {"no_rope_interval": no_rope_interval(config, spec.n_layers)}


def _gemma3_extras(config: JsonFields, spec: ModelSpec) -> dict[str, Any]:
    window, interval = window_pattern(config, spec.n_layers)
    return {
        "max_seq_len": config.number("max_position_embeddings", int),
        "sliding_window": window,
        "global_interval": interval,
        "local_rope_theta": local_rope_theta(config),
        "attention_scale": config.number("query_pre_attn_scalar", float, 256.0) ** -0.5,
        "tied_embeddings": config.flag("tie_word_embeddings", True),
    }


_EXTRAS: dict[Architecture, Callable[[JsonFields, ModelSpec], dict[str, Any]]] = {
    Architecture.QWEN3_MOE: _qwen3_moe_extras,
    Architecture.MIXTRAL: _mixtral_extras,
    Architecture.SMOLLM3: _smollm3_extras,
    Architecture.GEMMA3: _gemma3_extras,
}


def text_part(config: JsonFields, kind: HfArchitecture) -> JsonFields:
    """The fields that describe the model's text part, with the architecture's defaults for those left out."""
    text = config if kind.text_config is None else config.nested(kind.text_config)
    return JsonFields(config.path, {**kind.defaults, **text.fields})


def _refuse_quantized(config: JsonFields) -> None:
    quantization = config.nested("quantization_config")
    if quantization.fields:
        method = shown_value(quantization.get("quant_method", "unknown"))
        raise DllamaError(
            f"{config.path}: the weights are quantized already (quant_method {method}), which is not supported; get "
            "the model's original folder in bf16 or f16, or a GGUF file"
        )


def _refuse_features(config: JsonFields, kind: HfArchitecture) -> None:
    for name, values in kind.neutral.items():
        value = config.get(name)
        if value is not None and value not in values:
            wanted = " or ".join(map(shown_value, values))
            raise DllamaError(f"{config.path}: {name} is {shown_value(value)}, but only {wanted} is supported")


def _max_seq_len(config: JsonFields) -> int:
    """The context in which this arithmetic is the model's own: inside a sliding window it never slides."""
    longest = config.number("max_position_embeddings", int)
    if not config.flag("use_sliding_window", True):
        return longest
    return min(longest, config.number("sliding_window", int, longest))


def _rope_scaling(rope: JsonFields, config: JsonFields) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(rope.number("factor", float), 1.0, 1.0, 0)
    if kind == "yarn":
        return _yarn_scaling(rope, config)
    if kind != "llama3":
        raise DllamaError(
            f"{rope.path}: rope_type is {shown_value(kind)}, but only 'default', 'linear', 'llama3' and 'yarn' are "
            "supported"
        )
    return RopeScaling(
        factor=rope.number("factor", float),
        low_freq_factor=rope.number("low_freq_factor", float),
        high_freq_factor=rope.number("high_freq_factor", float),
        original_max_seq_len=rope.number("original_max_position_embeddings", int),
    )


def _yarn_scaling(rope: JsonFields, config: JsonFields) -> RopeScaling:
    for name, neutral in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if rope.get(name, neutral) != neutral:
            raise DllamaError(f"{rope.path}: RoPE scaling with {name} is not supported")
    factor = rope.number("factor", float)
    return RopeScaling(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=1.0,
        original_max_seq_len=rope.number(
            "original_max_position_embeddings", int, config.number("max_position_embeddings", int)
        ),
        beta_fast=rope.number("beta_fast", float, 32.0),
        beta_slow=rope.number("beta_slow", float, 1.0),
        attention_factor=rope.number("attention_factor", float, 0.1 * math.log(max(factor, 1.0)) + 1.0),
    )
