"""Which bytes of the KV caches are the beginning of a text; as shaders/kv_cache.glsl lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dllama_gpu.graph.graph import CacheType, KvCache
from dllama_gpu.vulkan.activations import round_up
from dllama_gpu.vulkan.mapping.surroundings import units_of

_POSITIONS = 32  # whose keys lie in one piece
_UNIT_BYTES = {CacheType.F16: 16, CacheType.F32: 32, CacheType.Q80: 8}


@dataclass(frozen=True)
class PrefixCopy:
    """`n_bytes` of an allocation, from one place in it to another."""

    allocation: str
    source: int
    target: int
    n_bytes: int


def prefix_copies(
    caches: Iterable[KvCache], n_slots: int, seq_len: int, source: int, target: int, n_positions: int
) -> Iterator[PrefixCopy]:
    """What gives slot `target` the first `n_positions` of slot `source`; `seq_len` is padded, as the caches are."""
    n_positions = round_up(n_positions, _POSITIONS)
    for cache in caches:
        position_bytes = units_of(cache.head_dim) * _UNIT_BYTES[cache.type]
        areas = [(0, position_bytes)]
        if cache.type is CacheType.Q80:  # scales, a float for four units, behind all elements
            areas.append((n_slots * cache.n_kv_heads * seq_len * position_bytes, units_of(cache.head_dim)))
        for half in ("keys", "values"):
            for begin, each in areas:
                for head in range(cache.n_kv_heads):
                    from_, to = (begin + (slot * cache.n_kv_heads + head) * seq_len * each for slot in (source, target))
                    yield PrefixCopy(f"{cache.name}.{half}", from_, to, n_positions * each)
