from __future__ import annotations

import numpy as np
import pytest

from dllama_gpu.graph.graph import CacheType, KvCache
from dllama_gpu.vulkan.mapping.surroundings import cache_bytes
from dllama_gpu.vulkan.prefix import prefix_copies

HALVES = ("keys", "values")
N_SLOTS, SEQ_LEN, N_KV_HEADS, HEAD_DIM = 3, 96, 2, 64


@pytest.mark.parametrize(("cache_type", "element_bytes"), [(CacheType.F16, 2), (CacheType.F32, 4), (CacheType.Q80, 1)])
@pytest.mark.parametrize("n_positions", [1, 32, 33, 96])
def test_the_beginning_of_every_head_is_copied_and_nothing_else(
    cache_type: CacheType, element_bytes: int, n_positions: int
) -> None:
    cache = KvCache("cache.0", N_KV_HEADS, HEAD_DIM, cache_type)
    n_bytes = cache_bytes(cache, N_SLOTS, SEQ_LEN)
    memory = {f"cache.0.{half}": np.random.default_rng(1).integers(0, 256, n_bytes, np.uint8) for half in HALVES}
    before = {name: content.copy() for name, content in memory.items()}
    for copy in prefix_copies([cache], N_SLOTS, SEQ_LEN, 2, 0, n_positions):
        content = memory[copy.allocation]
        content[copy.target : copy.target + copy.n_bytes] = content[copy.source : copy.source + copy.n_bytes]
    n_elements = N_SLOTS * N_KV_HEADS * SEQ_LEN * HEAD_DIM * element_bytes
    n_copied = -(-n_positions // 32) * 32
    for name, content in memory.items():
        for begin, end in ((0, n_elements), (n_elements, n_bytes)):
            if begin == end:
                continue  # no scales
            found, old = (part[begin:end].reshape(N_SLOTS, N_KV_HEADS, SEQ_LEN, -1) for part in (content, before[name]))
            np.testing.assert_array_equal(found[0, :, :n_copied], old[2, :, :n_copied])
            np.testing.assert_array_equal(found[0, :, n_copied:], old[0, :, n_copied:])
            np.testing.assert_array_equal(found[1:], old[1:])
