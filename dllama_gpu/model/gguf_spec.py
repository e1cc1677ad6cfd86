"""A GGUF file's metadata as a `ModelSpec`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import MetadataValue
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.model.source import TensorInfo, main_type
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from dllama_gpu.model.spec_check import check_spec

Number = TypeVar("Number", int, float)

# Mistral and many others also call themselves "llama" here; Mixtral does as well, and has experts.
ARCHITECTURES = {
    "llama": Architecture.LLAMA,
    "qwen2": Architecture.QWEN2,
    "qwen3": Architecture.QWEN3,
    "qwen3moe": Architecture.QWEN3_MOE,
    "gemma3": Architecture.GEMMA3,
    "smollm3": Architecture.SMOLLM3,
}

# Converters to GGUF reorder the rows of q and k of llama models, so that pairs lie side by side.
_INTERLEAVED = (Architecture.LLAMA, Architecture.MIXTRAL, Architecture.SMOLLM3)

# Metadata that changes the arithmetic, the values with which it changes nothing, and what it
# is. A file with another value would load and write nonsense.
_REFUSED_FEATURES: dict[str, tuple[tuple[MetadataValue, ...], str]] = {
    "expert_shared_count": ((0,), "an expert that all tokens share"),
    "expert_weights_scale": ((0.0, 1.0), "scaled weights of experts"),
    "attention.causal": ((True,), "attention that is not causal"),
    "attention.clamp_kqv": ((0.0,), "clamped attention inputs"),
    "attention.scale": ((0.0,), "its own attention scale"),
    "attention.sliding_window": ((0,), "sliding window attention"),
    "attn_logit_softcapping": ((0.0,), "capped attention scores"),
    "embedding_scale": ((0.0, 1.0), "scaled embeddings"),
    "final_logit_softcapping": ((0.0,), "capped logits"),
    "logit_scale": ((0.0, 1.0), "scaled logits"),
    "residual_scale": ((0.0, 1.0), "scaled residuals"),
    "rope.scale_linear": ((1.0,), "RoPE scaling in the form of 2023"),
    "use_parallel_residual": ((False,), "parallel residuals"),
}

# Every Llama 3.1, 3.2 and 3.3 model has these; GGUF keeps only the resulting divisors.
_LLAMA3_LOW_FREQ_FACTOR = 1.0
_LLAMA3_HIGH_FREQ_FACTOR = 4.0
_LLAMA3_ORIGINAL_MAX_SEQ_LEN = 8192

# What GGUF files leave out; all models of the architecture have it.
_SMOLLM3_NO_ROPE_INTERVAL = 4
_GEMMA3_GLOBAL_INTERVAL = 6
_GEMMA3_LOCAL_ROPE_THETA = 10000.0
_GEMMA3_27B_LAYERS = 62


class Metadata:
    """Typed access to the metadata of one file.

    Raises DllamaError from the constructor when the file's architecture is not supported.
    """

    def __init__(self, path: Path, fields: dict[str, MetadataValue]) -> None:
        self.path = path
        self.fields = fields
        architecture = self.text("general.architecture")
        if architecture not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise DllamaError(
                f"{path} holds a model of the architecture {shown_value(architecture)}, which is not supported "
                f"(supported: {supported})"
            )
        self._prefix = architecture
        self.architecture = ARCHITECTURES[architecture]
        if self.architecture is Architecture.LLAMA and self.number("expert_count", int, 0):
            self.architecture = Architecture.MIXTRAL

    def key(self, name: str) -> str:
        """The full key of a field of the architecture."""
        return f"{self._prefix}.{name}"

    def get(self, name: str) -> MetadataValue | None:
        """A field of the architecture, or None."""
        return self.fields.get(self.key(name))

    def text(self, full_key: str, default: str | None = None) -> str:
        """A string field. Raises DllamaError when it is missing without a default, or no string."""
        value = self.fields.get(full_key, default)
        if not isinstance(value, str):
            raise DllamaError(
                f"{self.path}: the metadata field {full_key} is {shown_value(value)}, but a string is wanted"
            )
        return value

    def number(self, name: str, kind: type[Number], default: Number | None = None) -> Number:
        """A number of the architecture. Raises DllamaError when it is missing without a default, or of another kind."""
        value = self.fields.get(self.key(name), default)
        if value is None:
            raise DllamaError(f"{self.path}: the metadata field {self.key(name)} is missing; the file is damaged")
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            wanted = "a whole number" if kind is int else "a number"
            raise DllamaError(
                f"{self.path}: the metadata field {self.key(name)} is {shown_value(value)}, but {wanted} is wanted; "
                "the file is damaged or has layers of different shapes, which are not supported"
            )
        return kind(value)


def spec_from_metadata(
    metadata: Metadata, tensors: dict[str, TensorInfo], rope_divisors: npt.NDArray[np.float32] | None
) -> ModelSpec:
    """The model that metadata, tensor table and the tensor `rope_freqs` (float32 [head_dim / 2]) describe.

    Raises DllamaError, naming the file and the field, when something is missing, impossible or not supported.
    """
    path = metadata.path
    _refuse_features(metadata)
    if "embedding" not in tensors:
        raise DllamaError(f"{path}: the tensor token_embd.weight is missing; the file is damaged")
    dim = metadata.number("embedding_length", int)
    n_heads = metadata.number("attention.head_count", int)
    head_dim = metadata.number("attention.key_length", int, dim // max(1, n_heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        size = metadata.number(name, int, head_dim)
        if size != head_dim:
            raise DllamaError(
                f"{path}: {metadata.key(name)} is {size}, but the keys have {head_dim} elements; only models where "
                "keys, values and rotations have one size are supported"
            )
    rope_theta = _decimal(metadata.number("rope.freq_base", float, 10000.0))
    spec = ModelSpec(
        architecture=metadata.architecture,
        dim=dim,
        hidden_dim=metadata.number("feed_forward_length", int),
        n_layers=metadata.number("block_count", int),
        n_heads=n_heads,
        n_kv_heads=metadata.number("attention.head_count_kv", int, n_heads),
        head_dim=head_dim,
        vocab_size=tensors["embedding"].n_rows,
        max_seq_len=metadata.number("context_length", int),
        weight_type=main_type(tensors.values()),
        norm_epsilon=_decimal(metadata.number("attention.layer_norm_rms_epsilon", float)),
        rope_theta=rope_theta,
        rope_style=(RopeStyle.INTERLEAVED if metadata.architecture in _INTERLEAVED else RopeStyle.HALF_SPLIT),
        rope_scaling=_rope_scaling(metadata, head_dim, rope_theta, rope_divisors),
        tied_embeddings="head" not in tensors,
    )
    spec = replace(spec, **_extras(metadata, spec))
    check_spec(spec, path)
    return spec


def _extras(metadata: Metadata, spec: ModelSpec) -> dict[str, Any]:
    """Fields of the spec that only this architecture has."""
    if metadata.architecture.has_experts:
        return {
            "n_experts": metadata.number("expert_count", int),
            "n_active_experts": metadata.number("expert_used_count", int),
            "moe_hidden_dim": metadata.number("expert_feed_forward_length", int, spec.hidden_dim),
        }
    if metadata.architecture is Architecture.SMOLLM3:
        return {"no_rope_interval": _SMOLLM3_NO_ROPE_INTERVAL}
    if metadata.architecture is Architecture.GEMMA3:
        # The 27B model alone scales its scores by the size that heads would have if they shared the width.
        is_27b = spec.n_layers == _GEMMA3_27B_LAYERS
        return {
            "sliding_window": metadata.number("attention.sliding_window", int, 0),
            "global_interval": metadata.number("attention.sliding_window_pattern", int, _GEMMA3_GLOBAL_INTERVAL),
            "local_rope_theta": _decimal(metadata.number("rope.freq_base_swa", float, _GEMMA3_LOCAL_ROPE_THETA)),
            "attention_scale": (spec.dim / spec.n_heads) ** -0.5 if is_27b else 0.0,
        }
    return {}


def _refuse_features(metadata: Metadata) -> None:
    for name, (neutral, feature) in _REFUSED_FEATURES.items():
        if name == "attention.sliding_window" and metadata.architecture is Architecture.GEMMA3:
            continue
        value = metadata.get(name)
        if value is not None and value not in neutral:
            shown = shown_value(value)
            raise DllamaError(f"{metadata.path}: {metadata.key(name)} is {shown}: {feature} is not supported")


def _rope_scaling(
    metadata: Metadata, head_dim: int, theta: float, divisors: npt.NDArray[np.float32] | None
) -> RopeScaling | None:
    kind = metadata.text(metadata.key("rope.scaling.type"), "none")
    if kind not in ("none", "linear", "yarn"):
        raise DllamaError(
            f"{metadata.path}: {metadata.key('rope.scaling.type')} is {shown_value(kind)}, but only 'none', 'linear' "
            "and 'yarn' are supported"
        )
    if kind == "yarn":
        return _yarn_scaling(metadata)
    factor = _decimal(metadata.number("rope.scaling.factor", float, 1.0)) if kind == "linear" else 1.0
    if factor == 1.0:
        return None if divisors is None else _scaling_from_divisors(metadata.path, divisors, head_dim, theta)
    if divisors is not None:
        raise DllamaError(f"{metadata.path} has both linear RoPE scaling and rope_freqs.weight, which is not supported")
    return _linear_scaling(factor)


def _yarn_scaling(metadata: Metadata) -> RopeScaling:
    for name, neutral in (("yarn_log_multiplier", 0.0), ("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0)):
        key = f"rope.scaling.{name}"
        if metadata.number(key, float, neutral) != neutral:
            raise DllamaError(f"{metadata.path}: {metadata.key(key)} is not {neutral:g}, which is not supported")
    factor = _decimal(metadata.number("rope.scaling.factor", float))
    attention_factor = _decimal(metadata.number("rope.scaling.attn_factor", float, 1.0))
    return RopeScaling(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=1.0,
        original_max_seq_len=metadata.number("rope.scaling.original_context_length", int),
        beta_fast=_decimal(metadata.number("rope.scaling.yarn_beta_fast", float, 32.0)),
        beta_slow=_decimal(metadata.number("rope.scaling.yarn_beta_slow", float, 1.0)),
        attention_factor=attention_factor * (0.1 * math.log(max(factor, 1.0)) + 1.0),
    )


def _linear_scaling(factor: float) -> RopeScaling:
    """Every frequency divided by `factor`: an original length of 0 makes every wavelength a long one."""
    return RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=1.0, original_max_seq_len=0)


def _scaling_from_divisors(
    path: Path, divisors: npt.NDArray[np.float32], head_dim: int, theta: float
) -> RopeScaling | None:
    """The four numbers of Llama 3.1's scaling from the divisors of the frequencies, float32 [head_dim / 2].

    The factor is the largest divisor; the other three numbers are the ones that all published models share, and the
    divisors made from them must be the ones found. Raises DllamaError when they are not.
    """
    if divisors.shape != (head_dim // 2,) or not np.isfinite(divisors).all() or divisors.min() < 1.0:
        raise DllamaError(f"{path}: rope_freqs.weight is not {head_dim // 2} numbers from 1 up; the file is damaged")
    factor = _decimal(float(divisors.max()))
    if np.all(divisors == divisors[0]):
        return None if factor == 1.0 else _linear_scaling(factor)
    frequencies = theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    turns = _LLAMA3_ORIGINAL_MAX_SEQ_LEN * frequencies / (2.0 * np.pi)
    low, high = _LLAMA3_LOW_FREQ_FACTOR, _LLAMA3_HIGH_FREQ_FACTOR
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # share of the unscaled frequency
    expected = 1.0 / ((1.0 - kept) / factor + kept)
    if not np.allclose(divisors, expected, rtol=1e-3):
        raise DllamaError(
            f"{path}: rope_freqs.weight scales the RoPE frequencies otherwise than Llama 3.1 does "
            f"(largest divisor {factor:g}), which is not supported"
        )
    return RopeScaling(factor, low, high, _LLAMA3_ORIGINAL_MAX_SEQ_LEN)


def _decimal(value: float) -> float:
    """The shortest decimal that is this number in float32: the stored 9.99999975e-06 was written as 1e-05."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
