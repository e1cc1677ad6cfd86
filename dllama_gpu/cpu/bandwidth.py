"""How fast this machine reads memory: the bound of decode, which reads every weight once a token."""

from __future__ import annotations

import numpy as np

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.memory import zeroed

_LEAST_BYTES = 8


def read_rates(n_threads: int, n_bytes: int, n_passes: int) -> list[float]:
    """Bytes per second that `n_threads` threads read together, in each of `n_passes` passes over `n_bytes`.

    The same memory is read again and again, as weights are, so a cache that keeps a part of them between two tokens
    counts here as it does there. Raises DllamaError when the system refuses the memory.
    """
    words = zeroed(max(n_bytes, _LEAST_BYTES) // 8 * 8, "the measurement of the memory's speed").view(np.uint64)
    words.fill(1)  # pages that were never written all show the same zeros, which a cache holds
    pool = _native.ThreadPool(n_threads, False)
    _native.read_rate(pool, words)
    return [_native.read_rate(pool, words) for _ in range(n_passes)]
