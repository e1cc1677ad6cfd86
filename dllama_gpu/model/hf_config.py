"""The `config.json` of a Hugging Face folder as a `ModelSpec`."""

from __future__ import annotations

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_architectures import HF_ARCHITECTURES, HfArchitecture
from dllama_gpu.model.spec import ModelSpec, RopeScaling
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
    _refuse_features(config, kind)
    dim = config.number("hidden_size", int)
    n_heads = config.number("num_attention_heads", int)
    tied = config.flag("tie_word_embeddings", not has_head)
    if not tied and not has_head:
        raise DllamaError(f"{config.path}: tie_word_embeddings is false, but the folder has no tensor lm_head.weight")
    rope = config.nested("rope_parameters")  # since version 5 of the transformers library
    spec = ModelSpec(
        architecture=kind.architecture,
        dim=dim,
        hidden_dim=config.number("intermediate_size", int),
        n_layers=config.number("num_hidden_layers", int),
        n_heads=n_heads,
        n_kv_heads=config.number("num_key_value_heads", int, n_heads),
        head_dim=config.number("head_dim", int, dim // max(1, n_heads)),
        vocab_size=config.number("vocab_size", int),
        max_seq_len=_max_seq_len(config),
        weight_type=weight_type,
        norm_epsilon=config.number("rms_norm_eps", float),
        rope_theta=rope.number("rope_theta", float, config.number("rope_theta", float, 10000.0)),
        rope_style=kind.rope_style,
        rope_scaling=_rope_scaling(rope if rope.fields else config.nested("rope_scaling")),
        n_experts=config.number("num_experts", int, 0),
        n_active_experts=config.number("num_experts_per_tok", int, 0),
        moe_hidden_dim=config.number("moe_intermediate_size", int, 0),
        tied_embeddings=tied,
    )
    check_spec(spec, config.path)
    return spec


def _refuse_features(config: JsonFields, kind: HfArchitecture) -> None:
    quantization = config.nested("quantization_config")
    if quantization.fields:
        method = shown_value(quantization.get("quant_method", "unknown"))
        raise DllamaError(
            f"{config.path}: the weights are quantized already (quant_method {method}), which is not supported; get "
            "the model's original folder in bf16 or f16, or a GGUF file"
        )
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


def _rope_scaling(rope: JsonFields) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(rope.number("factor", float), 1.0, 1.0, 0)
    if kind != "llama3":
        raise DllamaError(
            f"{rope.path}: rope_type is {shown_value(kind)}, but only 'default', 'linear' and 'llama3' are supported"
        )
    return RopeScaling(
        factor=rope.number("factor", float),
        low_freq_factor=rope.number("low_freq_factor", float),
        high_freq_factor=rope.number("high_freq_factor", float),
        original_max_seq_len=rope.number("original_max_position_embeddings", int),
    )
