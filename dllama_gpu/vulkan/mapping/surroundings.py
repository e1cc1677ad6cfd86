"""What ops of a graph refer to, and the numbers by which shaders know formats."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_gpu.graph.graph import Activation as GateActivation
from dllama_gpu.graph.graph import (
    BufferType,
    CacheType,
    KvCache,
    Rows,
)
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan.activations import Activation, round_up
from dllama_gpu.vulkan.dispatch import Access, Binding
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.tuning import Tuning
from dllama_gpu.vulkan.weights import PackedMatrix

TYPE_NUMBERS = {  # as in shaders/weight.glsl
    FloatType.F32: 0,
    FloatType.F16: 1,
    FloatType.BF16: 2,
    FloatType.Q40: 3,
    FloatType.Q41: 4,
    FloatType.Q80: 5,
}
CACHE_NUMBERS = {CacheType.F16: 0, CacheType.Q80: 1, CacheType.F32: 2}  # as in shaders/kv_cache.glsl
OUT_F32, OUT_ROUNDED, OUT_Q80 = 0, 1, 2  # as in shaders/q80.glsl


@dataclass(frozen=True)
class Surroundings:
    """What ops of a graph refer to by name."""

    tuning: Tuning
    activations: dict[str, Activation]
    rows: dict[str, Rows]
    matrices: dict[str, PackedMatrix]
    """By weight name; gate and up of a GatedMatmul that fit together are one, under `gated_name`."""
    vectors: dict[tuple[str, ...], Binding]
    """Norms and biases by weight names: those that a shader wants together are one."""
    frequencies: dict[tuple[float, ...], Binding]
    caches: dict[str, KvCache]
    seq_len: int
    """Padded, positions that a slot of the cache has room for."""
    n_slots: int
    step: Binding
    scratch: dict[str, Activation]

    def cache(self, name: str, half: str, access: Access) -> tuple[Binding, Binding]:
        """Keys or values of a layer, and their scales; without scales, which shaders then leave alone, twice."""
        cache, allocation = self.caches[name], f"{name}.{half}"
        n_elements = _cache_elements(cache, self.n_slots, self.seq_len)
        if cache.type is not CacheType.Q80:
            everything = Binding(allocation, 0, n_elements * (2 if cache.type is CacheType.F16 else 4), access)
            return everything, everything
        return Binding(allocation, 0, n_elements, access), Binding(allocation, n_elements, n_elements // 8, access)


@dataclass(frozen=True)
class RowCounts:
    """Rows to record for; steps with fewer use the recording too."""

    all: int
    logits: int

    def of(self, rows: Rows) -> int:
        """Those of a buffer."""
        return self.logits if rows is Rows.LOGITS else self.all


def cache_bytes(cache: KvCache, n_slots: int, seq_len: int) -> int:
    """Bytes of the keys, or of the values, of a layer; shaders/kv_cache.glsl."""
    n_elements = _cache_elements(cache, n_slots, seq_len)
    return {
        CacheType.F16: 2 * n_elements,
        CacheType.F32: 4 * n_elements,
        CacheType.Q80: n_elements + n_elements // 8,
    }[cache.type]


def by_tier(shader: str, tuning: Tuning) -> str:
    """The variant of a shader that sums in subgroups where the device can."""
    return shader + "_subgroup" if tuning.tier >= Tier.SUBGROUP else shader


def out_mode(out: Activation) -> int:
    """How a shader is to store what it computes, as in shaders/q80.glsl."""
    if out.type is BufferType.Q80:
        return OUT_Q80 if out.packed else OUT_ROUNDED
    return OUT_F32


def units_of(head_dim: int) -> int:
    """Units of 8 elements of a head."""
    return round_up(head_dim, 8) // 8


def gelu(activation: GateActivation) -> int:
    """Whether a gate is GELU, as shaders/activation.glsl wants it."""
    return int(activation is GateActivation.GELU_TANH)


def _cache_elements(cache: KvCache, n_slots: int, seq_len: int) -> int:
    return n_slots * cache.n_kv_heads * seq_len * 8 * units_of(cache.head_dim)
