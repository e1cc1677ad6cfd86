"""The `.m` format of distributed-llama: header and order of the tensors.

A file is: magic, header size H (both u32), (H - 8) / 8 pairs of i32 (key, value), then the tensors back to back in a
fixed order, without names or padding, up to the end of the file. All integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, IntEnum
from pathlib import Path
from typing import TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from dllama_gpu.model.spec_check import check_spec

Value = TypeVar("Value")

MAGIC = 0x0A00ABCD
OLD_MAGICS = (0xABCD00, 0xABCD01)


class HeaderKey(IntEnum):
    """Keys of the header's pairs."""

    VERSION = 0
    ARCH_TYPE = 1
    DIM = 2
    HIDDEN_DIM = 3
    N_LAYERS = 4
    N_HEADS = 5
    N_KV_HEADS = 6
    N_EXPERTS = 7
    N_ACTIVE_EXPERTS = 8
    VOCAB_SIZE = 9
    MAX_SEQ_LEN = 10
    HIDDEN_ACT = 11
    ROPE_THETA = 12
    WEIGHTS_FLOAT_TYPE = 13
    ROPE_SCALING_FACTOR = 14
    ROPE_SCALING_LOW_FREQ_FACTOR = 15
    ROPE_SCALING_HIGH_FREQ_FACTOR = 16
    ROPE_SCALING_ORIG_MAX_SEQ_LEN = 17
    ROPE_TYPE = 18
    HEAD_DIM = 19
    NORM_EPSILON = 20
    MOE_HIDDEN_DIM = 21


_ARCHITECTURES = {0xABCD00: Architecture.LLAMA, 0xABCD01: Architecture.QWEN3, 0xABCD02: Architecture.QWEN3_MOE}
_FLOAT_TYPES = {0: FloatType.F32, 1: FloatType.F16, 2: FloatType.Q40, 3: FloatType.Q80}
_NORM_EPSILONS = {5: 1e-5, 6: 1e-6}
_ROPE_LLAMA, _ROPE_HALF_SPLIT, _ROPE_LLAMA31 = 0, 1, 2
_GELU, _SILU = 0, 1

_REQUIRED = (
    HeaderKey.ARCH_TYPE,
    HeaderKey.DIM,
    HeaderKey.HIDDEN_DIM,
    HeaderKey.N_LAYERS,
    HeaderKey.N_HEADS,
    HeaderKey.N_KV_HEADS,
    HeaderKey.VOCAB_SIZE,
    HeaderKey.MAX_SEQ_LEN,
    HeaderKey.WEIGHTS_FLOAT_TYPE,
)
STORABLE_TYPES = tuple(_FLOAT_TYPES.values())


def spec_from_header(header: dict[HeaderKey, int], path: Path) -> ModelSpec:
    """The model that a header describes.

    Raises DllamaError, naming the file, the field, its value and those allowed.
    """
    for key in _REQUIRED:
        if key not in header:
            raise DllamaError(f"{path}: the header has no {_name(key)} (key {key.value}); the file is damaged")
    architecture = _choose(header, HeaderKey.ARCH_TYPE, _ARCHITECTURES, path)
    weight_type = _choose(header, HeaderKey.WEIGHTS_FLOAT_TYPE, _FLOAT_TYPES, path)
    epsilon = _choose({HeaderKey.NORM_EPSILON: 5} | header, HeaderKey.NORM_EPSILON, _NORM_EPSILONS, path)
    activation = _choose(
        {HeaderKey.HIDDEN_ACT: _SILU} | header, HeaderKey.HIDDEN_ACT, {_GELU: "gelu", _SILU: "silu"}, path
    )
    if activation == "gelu" and architecture is Architecture.LLAMA:
        raise DllamaError(f"{path}: hidden_act is 0 (gelu), but only models with silu (1) can be run")
    n_heads = header[HeaderKey.N_HEADS]
    spec = ModelSpec(
        architecture=architecture,
        dim=header[HeaderKey.DIM],
        hidden_dim=header[HeaderKey.HIDDEN_DIM],
        n_layers=header[HeaderKey.N_LAYERS],
        n_heads=n_heads,
        n_kv_heads=header[HeaderKey.N_KV_HEADS],
        head_dim=header.get(HeaderKey.HEAD_DIM, header[HeaderKey.DIM] // max(1, n_heads)),
        vocab_size=header[HeaderKey.VOCAB_SIZE],
        max_seq_len=header[HeaderKey.MAX_SEQ_LEN],
        weight_type=weight_type,
        norm_epsilon=epsilon,
        rope_theta=float(header.get(HeaderKey.ROPE_THETA, 10000)),
        rope_style=_rope_style(header, architecture, path),
        rope_scaling=_rope_scaling(header, architecture),
        n_experts=header.get(HeaderKey.N_EXPERTS, 0),
        n_active_experts=header.get(HeaderKey.N_ACTIVE_EXPERTS, 0),
        moe_hidden_dim=header.get(HeaderKey.MOE_HIDDEN_DIM, 0),
    )
    check_spec(spec, path)
    return spec


def header_from_spec(spec: ModelSpec, path: Path) -> list[tuple[HeaderKey, int]]:
    """The header's pairs, in the order in which the original converters write them.

    Raises DllamaError when `spec` holds something that the format cannot express.
    """
    check_spec(spec, path)
    _check_expressible(spec, path)
    pairs = [
        (HeaderKey.VERSION, 0),
        (HeaderKey.ARCH_TYPE, _code(_ARCHITECTURES, spec.architecture, "architecture", path)),
        (HeaderKey.HIDDEN_ACT, _SILU),
        (HeaderKey.DIM, spec.dim),
        (HeaderKey.HIDDEN_DIM, spec.hidden_dim),
        (HeaderKey.N_LAYERS, spec.n_layers),
        (HeaderKey.N_HEADS, spec.n_heads),
        (HeaderKey.N_KV_HEADS, spec.n_kv_heads),
        (HeaderKey.WEIGHTS_FLOAT_TYPE, _code(_FLOAT_TYPES, spec.weight_type, "weight type", path)),
        (HeaderKey.MAX_SEQ_LEN, spec.max_seq_len),
        (HeaderKey.VOCAB_SIZE, spec.vocab_size),
        (HeaderKey.N_EXPERTS, spec.n_experts),
        (HeaderKey.N_ACTIVE_EXPERTS, spec.n_active_experts),
        (HeaderKey.ROPE_THETA, _integer(spec.rope_theta, "rope_theta", path)),
    ]
    if spec.rope_scaling is not None:
        scaling = spec.rope_scaling
        pairs += [
            (HeaderKey.ROPE_SCALING_FACTOR, _integer(scaling.factor, "rope_scaling_factor", path)),
            (HeaderKey.ROPE_SCALING_LOW_FREQ_FACTOR, _integer(scaling.low_freq_factor, "low_freq_factor", path)),
            (HeaderKey.ROPE_SCALING_HIGH_FREQ_FACTOR, _integer(scaling.high_freq_factor, "high_freq_factor", path)),
            (HeaderKey.ROPE_SCALING_ORIG_MAX_SEQ_LEN, scaling.original_max_seq_len),
        ]
    if spec.architecture is Architecture.LLAMA and spec.rope_style is RopeStyle.HALF_SPLIT:
        pairs.append((HeaderKey.ROPE_TYPE, _ROPE_HALF_SPLIT))
    elif spec.rope_scaling is not None:
        pairs.append((HeaderKey.ROPE_TYPE, _ROPE_LLAMA31))
    pairs.append((HeaderKey.HEAD_DIM, spec.head_dim))
    pairs.append((HeaderKey.NORM_EPSILON, _code(_NORM_EPSILONS, spec.norm_epsilon, "norm epsilon", path)))
    if spec.moe_hidden_dim:
        pairs.append((HeaderKey.MOE_HIDDEN_DIM, spec.moe_hidden_dim))
    return pairs


def _check_expressible(spec: ModelSpec, path: Path) -> None:
    """Raises DllamaError for arithmetic that readers of the header would not know of."""
    _code(_ARCHITECTURES, spec.architecture, "architecture", path)
    scaling = spec.rope_scaling
    if scaling is not None and (scaling.beta_fast or spec.architecture is not Architecture.LLAMA):
        what = "YaRN" if scaling.beta_fast else spec.architecture.value
        raise DllamaError(f"{path}: the .m format stores no RoPE scaling of {what} models; run the model as it is")
    if not spec.normalize_experts or spec.sliding_window:
        what = "sliding window" if spec.sliding_window else "weights of experts that do not add up to 1"
        raise DllamaError(f"{path}: the .m format stores no {what}; run the model as it is")


def tensor_layout(spec: ModelSpec) -> Iterator[TensorInfo]:
    """All tensors of a file in their order; the output head is stored even where it equals the embedding."""
    yield TensorInfo("embedding", (spec.vocab_size, spec.dim), FloatType.F32)
    for layer in range(spec.n_layers):
        yield from layer_layout(spec, layer)
    yield TensorInfo("final_norm", (spec.dim,), FloatType.F32)
    yield TensorInfo("head", (spec.vocab_size, spec.dim), spec.weight_type)


def layer_layout(spec: ModelSpec, layer: int) -> Iterator[TensorInfo]:
    """The tensors of one layer in their order; those of architectures that the format lacks are listed as well."""

    def matrix(name: str, n_rows: int, n_columns: int) -> TensorInfo:
        return TensorInfo(f"layers.{layer}.{name}", (n_rows, n_columns), spec.weight_type)

    def vector(name: str, size: int) -> TensorInfo:
        return TensorInfo(f"layers.{layer}.{name}", (size,), FloatType.F32)

    yield matrix("q", spec.q_dim, spec.dim)
    yield matrix("k", spec.kv_dim, spec.dim)
    yield matrix("v", spec.kv_dim, spec.dim)
    yield matrix("o", spec.dim, spec.q_dim)
    if spec.architecture.has_qkv_biases:
        yield vector("q_bias", spec.q_dim)
        yield vector("k_bias", spec.kv_dim)
        yield vector("v_bias", spec.kv_dim)
    if spec.architecture.has_experts:
        yield TensorInfo(f"layers.{layer}.router", (spec.n_experts, spec.dim), FloatType.F32)
        parts = [(f"experts.{expert}.", spec.moe_hidden_dim) for expert in range(spec.n_experts)]
    else:
        parts = [("", spec.hidden_dim)]
    for prefix, hidden_dim in parts:
        yield matrix(f"{prefix}gate", hidden_dim, spec.dim)
        yield matrix(f"{prefix}down", spec.dim, hidden_dim)
        yield matrix(f"{prefix}up", hidden_dim, spec.dim)
    if spec.architecture.has_head_norms:
        yield vector("q_norm", spec.head_dim)
        yield vector("k_norm", spec.head_dim)
    yield vector("attention_norm", spec.dim)
    if spec.architecture.has_post_norms:
        yield vector("post_attention_norm", spec.dim)
    yield vector("ffn_norm", spec.dim)
    if spec.architecture.has_post_norms:
        yield vector("post_ffn_norm", spec.dim)


def tensors_size(spec: ModelSpec) -> int:
    """Bytes of all tensors, computed without listing every layer."""
    one_layer = sum(info.n_bytes for info in layer_layout(spec, 0))
    ends = FloatType.F32.row_bytes(spec.dim) + spec.weight_type.row_bytes(spec.dim)
    return spec.vocab_size * ends + spec.n_layers * one_layer + FloatType.F32.row_bytes(spec.dim)


def _rope_style(header: dict[HeaderKey, int], architecture: Architecture, path: Path) -> RopeStyle:
    styles = {
        _ROPE_LLAMA: RopeStyle.INTERLEAVED,
        _ROPE_HALF_SPLIT: RopeStyle.HALF_SPLIT,
        _ROPE_LLAMA31: RopeStyle.INTERLEAVED,
    }
    style = _choose({HeaderKey.ROPE_TYPE: _ROPE_LLAMA} | header, HeaderKey.ROPE_TYPE, styles, path)
    # The original forces the half-split rotation on Qwen models, whatever their file says.
    return style if architecture is Architecture.LLAMA else RopeStyle.HALF_SPLIT


def _rope_scaling(header: dict[HeaderKey, int], architecture: Architecture) -> RopeScaling | None:
    """The scaling numbers: for Llama models they alone decide, not the rope type."""
    factor = header.get(HeaderKey.ROPE_SCALING_FACTOR, 1)
    if factor == 1 or architecture is not Architecture.LLAMA:
        return None
    return RopeScaling(
        factor=float(factor),
        low_freq_factor=float(header.get(HeaderKey.ROPE_SCALING_LOW_FREQ_FACTOR, 0)),
        high_freq_factor=float(header.get(HeaderKey.ROPE_SCALING_HIGH_FREQ_FACTOR, 0)),
        original_max_seq_len=header.get(HeaderKey.ROPE_SCALING_ORIG_MAX_SEQ_LEN, 0),
    )


def _name(key: HeaderKey) -> str:
    return key.name.lower()


def _choose(header: dict[HeaderKey, int], key: HeaderKey, choices: dict[int, Value], path: Path) -> Value:
    code = header[key]
    if code not in choices:
        wanted = ", ".join(f"{choice:#x} ({_label(value)})" for choice, value in choices.items())
        raise DllamaError(f"{path}: {_name(key)} is {code:#x}, but one of {wanted} is wanted; the file is damaged")
    return choices[code]


def _code(choices: dict[int, Value], value: Value, name: str, path: Path) -> int:
    for code, choice in choices.items():
        if choice == value:
            return code
    wanted = ", ".join(_label(choice) for choice in choices.values())
    raise DllamaError(f"{path}: the .m format stores no {name} of {_label(value)}, only {wanted}")


def _integer(value: float, name: str, path: Path) -> int:
    if value != int(value) or abs(value) >= 1 << 31:
        raise DllamaError(f"{path}: the .m format stores {name} as a 32-bit integer, which {value!r} is not")
    return int(value)


def _label(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)
