"""A GGUF file's metadata as a `ModelSpec`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import MetadataValue
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.model.source import TensorInfo, main_type
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from dllama_gpu.model.spec_check import check_spec

Number = TypeVar("Number", int, float)

# Mistral and many others also call themselves "llama" here.
ARCHITECTURES = {"llama": Architecture.LLAMA}

# Metadata of the llama architecture that changes the arithmetic, the values with which it changes nothing, and what it
# is. A file with another value would load and write nonsense.
_REFUSED_FEATURES: dict[str, tuple[tuple[MetadataValue, ...], str]] = {
    "expert_count": ((0,), "a mixture of experts"),
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
        rope_style=RopeStyle.INTERLEAVED,  # converters to GGUF reorder the rows of q and k of llama models for it
        rope_scaling=_rope_scaling(metadata, head_dim, rope_theta, rope_divisors),
        tied_embeddings="head" not in tensors,
    )
    check_spec(spec, path)
    return spec


def _refuse_features(metadata: Metadata) -> None:
    n_files = metadata.fields.get("split.count", 0)
    if isinstance(n_files, int) and n_files > 1:
        raise DllamaError(
            f"{metadata.path} is one of {n_files} parts of a split model; join them first with "
            "`llama-gguf-split --merge`, or get the model in one file"
        )
    for name, (neutral, feature) in _REFUSED_FEATURES.items():
        value = metadata.get(name)
        if value is not None and value not in neutral:
            shown = shown_value(value)
            raise DllamaError(f"{metadata.path}: {metadata.key(name)} is {shown}: {feature} is not supported")


def _rope_scaling(
    metadata: Metadata, head_dim: int, theta: float, divisors: npt.NDArray[np.float32] | None
) -> RopeScaling | None:
    kind = metadata.text(metadata.key("rope.scaling.type"), "none")
    if kind not in ("none", "linear"):
        raise DllamaError(
            f"{metadata.path}: {metadata.key('rope.scaling.type')} is {shown_value(kind)}, but only 'none' and "
            "'linear' are supported"
        )
    factor = _decimal(metadata.number("rope.scaling.factor", float, 1.0)) if kind == "linear" else 1.0
    if factor == 1.0:
        return None if divisors is None else _scaling_from_divisors(metadata.path, divisors, head_dim, theta)
    if divisors is not None:
        raise DllamaError(f"{metadata.path} has both linear RoPE scaling and rope_freqs.weight, which is not supported")
    return _linear_scaling(factor)


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
