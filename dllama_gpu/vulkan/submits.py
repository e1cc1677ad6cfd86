"""How a segment is cut into submits: systems reset a GPU that one keeps for seconds (2 on Windows), and each
costs a wait for the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from dllama_gpu.vulkan.dispatch import Dispatch, Recorded

SECONDS = 0.5
"""About as long as a submit may take."""
_FIRST_RATE = 1e11
"""Work a second that a GPU is trusted with before it has run a segment: what a slow one does."""


def in_submits(items: Sequence[Recorded], seconds: float | None) -> list[list[Recorded]]:
    """Parts of about equal work that take SECONDS each, where all took `seconds` before (None: not known).

    Nothing is cut smaller than a dispatch.
    """
    total = sum(map(_work, items))
    n_parts = max(1.0, (total / _FIRST_RATE if seconds is None else seconds) / SECONDS)
    parts: list[list[Recorded]] = []
    work = 0
    for item in items:
        own = _work(item)
        if not parts or (own and work and work + own > total / n_parts):
            parts.append([])
            work = 0
        parts[-1].append(item)
        work += own
    return parts


def should_cut_anew(n_submits: int, seconds: float, known: float | None) -> bool:
    """Whether a segment that took `seconds` has too long or too many submits; `known` is what it was cut by."""
    if known is not None and known / 1.5 <= seconds <= 1.5 * known:
        return False
    wanted = max(1.0, seconds / SECONDS)
    return n_submits > 0 and not wanted / 2 <= n_submits <= 1.5 * wanted


def _work(item: Recorded) -> int:
    return item.work if isinstance(item, Dispatch) else 0
