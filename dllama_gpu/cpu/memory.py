"""Large zeroed memory for weights and caches."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError

_HUGE_PAGE = 2 << 20


def zeroed(n_bytes: int, what: str) -> npt.NDArray[np.uint8]:
    """`n_bytes` zero bytes, page-aligned, on huge pages where the system offers them; pages count once touched.

    Raises DllamaError naming `what` when the system refuses the memory.
    """
    try:
        memory = mmap.mmap(-1, max(n_bytes, 1))
    except (OSError, ValueError, OverflowError) as error:
        raise DllamaError(
            f"no memory for {what} ({n_bytes / 2**20:.0f} MiB: {error}); "
            "use a smaller model, a smaller --max-seq-len, or close other programs"
        ) from error
    if n_bytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        # A system built without them refuses: ordinary pages do.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, n_bytes)
