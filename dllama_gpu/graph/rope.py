"""Rotation frequencies of rotary position embeddings."""

from __future__ import annotations

import math

from dllama_gpu.model.spec import ModelSpec


def rope_frequencies(spec: ModelSpec) -> tuple[float, ...]:
    """The head_dim/2 frequencies theta^(-2i/head_dim), with Llama 3.1's scaling where the model has it.

    Source: Su et al., "RoFormer" (2021); Llama 3.1 reference code for the scaling: wavelengths longer than
    original_max_seq_len / low_freq_factor are stretched by `factor`, shorter ones than
    original_max_seq_len / high_freq_factor stay, and those between are blended.
    """
    frequencies = [spec.rope_theta ** (-2.0 * i / spec.head_dim) for i in range(spec.head_dim // 2)]
    scaling = spec.rope_scaling
    if scaling is None:
        return tuple(frequencies)
    scaled = []
    for frequency in frequencies:
        turns = scaling.original_max_seq_len * frequency / (2.0 * math.pi)
        if turns > scaling.high_freq_factor:
            scaled.append(frequency)
        elif turns < scaling.low_freq_factor:
            scaled.append(frequency / scaling.factor)
        else:
            smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            scaled.append((1.0 - smooth) * frequency / scaling.factor + smooth * frequency)
    return tuple(scaled)
