"""What the engine counts while it works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dllama_gpu.engine.active import ActiveRequest
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.engine.statistics import Histogram, Observations

_RATE_SECONDS = 5.0


class Meters:
    """Counters; written by the engine's thread, read by others through methods and plain numbers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int, int]] = deque()
        self._first_token = Observations()
        self._inter_token = Observations()
        self._queue = Observations()
        self.started_at = clock()
        self.n_finished = dict.fromkeys(FinishReason, 0)
        self.n_failed = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        self.n_generated_tokens = 0
        self.n_drafted_tokens = 0
        self.n_accepted_tokens = 0
        self.n_steps = 0
        self.step_seconds = 0.0
        self.n_recoveries = 0
        self.recovery_seconds = 0.0

    def started(self, active: ActiveRequest, now: float) -> None:
        """A request got its slot."""
        self.n_prompt_tokens += len(active.request.prompt)
        self.n_cached_tokens += active.n_cached
        with self._lock:
            self._queue.add(active.timings(now).queued_seconds)

    def stepped(self, now: float, seconds: float, n_prompt_rows: int, n_tokens: int) -> None:
        """A step was computed, which gave `n_tokens` tokens."""
        self.n_steps += 1
        self.step_seconds += seconds
        self.n_generated_tokens += n_tokens
        with self._lock:
            self._recent.append((now, n_prompt_rows, n_tokens))
            while self._recent[0][0] < now - _RATE_SECONDS:
                self._recent.popleft()

    def tokens(self, active: ActiveRequest, n: int, now: float) -> None:
        """A request got `n` tokens at once."""
        with self._lock:
            if active.last_token_at is not None:
                self._inter_token.add((now - active.last_token_at) / n, n)
            else:
                self._first_token.add(active.timings(now).first_token_seconds or 0.0)
        active.last_token_at = now

    def rates(self) -> tuple[float, float]:
        """Prompt tokens computed and tokens generated per second, over the last few seconds."""
        now = self._clock()
        with self._lock:
            recent = [entry for entry in self._recent if entry[0] >= now - _RATE_SECONDS]
        seconds = max(min(_RATE_SECONDS, now - self.started_at), 1e-3)
        return sum(entry[1] for entry in recent) / seconds, sum(entry[2] for entry in recent) / seconds

    def histograms(self) -> tuple[Histogram, Histogram, Histogram]:
        """Seconds to the first token, between tokens, and in the queue."""
        with self._lock:
            return self._first_token.snapshot(), self._inter_token.snapshot(), self._queue.snapshot()
