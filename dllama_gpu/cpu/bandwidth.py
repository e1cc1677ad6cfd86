"""How fast this machine reads memory: the bound of decode, which reads every weight once a token."""

from __future__ import annotations

import statistics

import numpy as np

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.memory import zeroed

_LEAST_BYTES = 8


class ReadLoop:
    """`n_threads` threads that read `n_bytes` together, again and again, as weights are read.

    So a cache that keeps a part of them between two tokens counts here as it does there. Raises DllamaError when the
    system refuses the memory.
    """

    def __init__(self, n_threads: int, n_bytes: int) -> None:
        what = "the measurement of the memory's speed"
        self._words = zeroed(max(n_bytes, _LEAST_BYTES) // 8 * 8, what).view(np.uint64)
        self._words.fill(1)  # pages that were never written all show the same zeros, which a cache holds
        self._pool = _native.ThreadPool(n_threads, False)
        self.rate()

    def rate(self) -> float:
        """Bytes per second of one pass."""
        return _native.read_rate(self._pool, self._words)


def read_bandwidth(n_threads: int, n_bytes: int = 256 << 20, n_passes: int = 9) -> float:
    """Bytes per second that `n_threads` threads read together: the median of `n_passes` passes over `n_bytes`."""
    loop = ReadLoop(n_threads, n_bytes)
    return statistics.median(loop.rate() for _ in range(n_passes))
