"""Rotation frequencies of rotary position embeddings."""

from __future__ import annotations

import math

from dllama_gpu.model.spec import ModelSpec, RopeScaling


def rope_frequencies(spec: ModelSpec) -> tuple[float, ...]:
    """The head_dim/2 frequencies theta^(-2i/head_dim), scaled as the model wants it (Llama 3.1, linear or YaRN).

    Sources: Su et al., "RoFormer" (2021); Llama 3.1 reference code: wavelengths longer than
    original_max_seq_len / low_freq_factor are stretched by `factor`, shorter ones than
    original_max_seq_len / high_freq_factor stay, and those between are blended; Peng et al., "YaRN" (2023).
    """
    frequencies = plain_frequencies(spec.rope_theta, spec.head_dim)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.beta_fast:
        kept = _kept_by_yarn(scaling, spec.rope_theta, spec.head_dim)
    else:
        kept = [_kept_by_llama3(scaling, frequency) for frequency in frequencies]
    pairs = zip(frequencies, kept, strict=True)
    return tuple((1.0 - share) * frequency / scaling.factor + share * frequency for frequency, share in pairs)


def plain_frequencies(theta: float, head_dim: int) -> tuple[float, ...]:
    """theta^(-2i/head_dim) for i below head_dim/2."""
    return tuple(theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2))


def attention_factor(spec: ModelSpec) -> float:
    """What sines and cosines are multiplied by."""
    return 1.0 if spec.rope_scaling is None else spec.rope_scaling.attention_factor


def _kept_by_llama3(scaling: RopeScaling, frequency: float) -> float:
    """The share of a frequency that stays unscaled."""
    turns = scaling.original_max_seq_len * frequency / (2.0 * math.pi)
    if turns > scaling.high_freq_factor:
        return 1.0
    if turns < scaling.low_freq_factor:
        return 0.0
    return (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)


def _kept_by_yarn(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """The same for all frequencies: a ramp between the two that make beta_fast and beta_slow turns."""

    def index_of(turns: float) -> float:
        length = scaling.original_max_seq_len / (turns * 2.0 * math.pi)
        return head_dim * math.log(length) / (2.0 * math.log(theta))

    first = max(math.floor(index_of(scaling.beta_fast)), 0)
    last = min(math.ceil(index_of(scaling.beta_slow)), head_dim - 1)
    width = max(last - first, 1e-3)
    return [1.0 - min(max((i - first) / width, 0.0), 1.0) for i in range(head_dim // 2)]
