"""What a Vulkan device can do, as far as it decides which shaders run and how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Tier(IntEnum):
    """Families of shaders; each needs what it names and all that the lower ones need."""

    BASE = 0
    """Vulkan 1.1: 16 KiB of shared memory, 256 invocations, 8 storage buffers a stage, no optional feature."""
    SUBGROUP = 1
    """Subgroup arithmetic for sums."""
    DOT = 2
    """Integer dot products: matmuls of quantized weights read int8 activations."""
    MATRIX = 3
    """Cooperative matrices, f16 with f32 sums: matmuls of many rows by weights that are not F32."""


@dataclass(frozen=True)
class MatrixSize:
    """What a subgroup multiplies at once: (m, k) of weights by (k, n) of activations."""

    m: int
    n: int
    k: int


@dataclass(frozen=True)
class DeviceLimits:
    """Sizes in bytes where nothing else is said."""

    subgroup_size: int = 32
    max_invocations: int = 256
    """Of a workgroup, all together and along x."""
    shared_bytes: int = 16 << 10
    max_range: int = 128 << 20
    """maxStorageBufferRange: how much of a buffer a shader can see."""
    offset_alignment: int = 256
    """minStorageBufferOffsetAlignment."""
    is_cpu: bool = False
    """A driver that computes on processors (lavapipe): few, narrow units, and no latency to hide."""
    matrix: MatrixSize | None = None
    """Of the matrix units, where shaders can use them."""
