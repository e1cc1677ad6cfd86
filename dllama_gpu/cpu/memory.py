"""Large zeroed memory for weights and caches."""

from __future__ import annotations

import contextlib
import mmap
import sys

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError

_HUGE_PAGE = 2 << 20
_CACHE_LINE = 64


def zeroed(n_bytes: int, what: str, *, is_sparse: bool = False) -> npt.NDArray[np.uint8]:
    """`n_bytes` zero bytes, page-aligned, on huge pages where the system offers them; pages count once touched.

    With `is_sparse`, pages are small: for memory of which often only parts are used. Raises DllamaError naming `what`
    when the system refuses the memory.
    """
    try:
        memory = _anonymous(max(n_bytes, 1))
    except (OSError, ValueError, OverflowError) as error:
        raise DllamaError(
            f"no memory for {what} ({n_bytes / 2**20:.0f} MiB: {error}); "
            "use a smaller model, a smaller --max-seq-len, or close other programs"
        ) from error
    if n_bytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        # A system built without them refuses: ordinary pages do. Others use them unless told not to.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE if is_sparse else mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, n_bytes)


def _anonymous(n_bytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, n_bytes)
    # Python's default is shared memory, which gets no huge pages.
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Arena:
    """One piece of zeroed memory handed out in cache-line-aligned slices.

    Many small mappings would each be too small for huge pages, and a step reads all of them.
    """

    def __init__(self, n_bytes: int, what: str, *, is_sparse: bool = False) -> None:
        self.memory = zeroed(n_bytes, what, is_sparse=is_sparse)
        """All of it, uint8 (n_bytes,)."""
        self._used = 0

    @staticmethod
    def padded(n_bytes: int) -> int:
        """Bytes that a slice of `n_bytes` takes."""
        return (n_bytes + _CACHE_LINE - 1) // _CACHE_LINE * _CACHE_LINE

    def take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """The next `n_bytes`; the sizes taken, padded, must not exceed what the arena was made with."""
        start, self._used = self._used, self._used + self.padded(n_bytes)
        if self._used > len(self.memory):
            raise ValueError(f"an arena of {len(self.memory)} bytes has no room for {n_bytes} more")
        return self.memory[start : start + n_bytes]
