"""Counters of an engine, as a snapshot that does not change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from dllama_gpu.engine.events import FinishReason
from dllama_gpu.net.messages import NodeStatistics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Histogram:
    """How often seconds up to each of `bounds` were seen; `counts` has one more, for what lies above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total_seconds: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Observations:
    """Fills a histogram."""

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._total += seconds * times

    def snapshot(self) -> Histogram:
        """As of now."""
        return Histogram(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True)
class SlotStatistics:
    """A KV slot: how many tokens it holds, and the request that uses it, if one does."""

    n_tokens: int
    request_id: str | None


@dataclass(frozen=True)
class EngineStatistics:
    """What an engine does and did; numbers count from its start."""

    state: str
    """`ready`, `recovering` while a lost program is built anew, or `down` after that failed."""
    message: str | None
    """What is wrong, when it is."""
    uptime_seconds: float
    seq_len: int
    max_queue: int
    n_running: int
    n_queued: int
    slots: tuple[SlotStatistics, ...]
    n_submitted: int
    n_refused: int
    n_failed: int
    n_finished: dict[FinishReason, int]
    n_prompt_tokens: int
    """Of started requests, those found in a cache included."""
    n_cached_tokens: int
    n_generated_tokens: int
    n_drafted_tokens: int
    n_accepted_tokens: int
    n_steps: int
    step_seconds: float
    n_recoveries: int
    recovery_seconds: float
    first_token_seconds: Histogram
    """From submission to the first token."""
    inter_token_seconds: Histogram
    queue_seconds: Histogram
    decode_tokens_per_second: float
    """Generated in the last few seconds."""
    prefill_tokens_per_second: float
    """Prompt tokens computed in the last few seconds."""
    nodes: tuple[NodeStatistics, ...]
    """Of a cluster by rank, the root first, at most a few seconds old; empty for one machine."""
