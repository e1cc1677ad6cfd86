"""What a node's steps cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dllama_gpu.graph.batch import Batch
from dllama_gpu.net.mesh import Mesh
from dllama_gpu.net.messages import NodeStatistics, PhaseStatistics


class StepClock:
    """Adds up the time of a node's steps and that of the exchanges in them, which the mesh knows."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._prefill = PhaseStatistics()
        self._decode = PhaseStatistics()

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Around one step; one that fails does not count."""
        before, started = self._mesh.stats(), time.perf_counter()
        yield
        seconds, after = time.perf_counter() - started, self._mesh.stats()
        decode = _is_decode(batch)
        so_far = self._decode if decode else self._prefill
        phase = PhaseStatistics(
            n_steps=so_far.n_steps + 1,
            n_rows=so_far.n_rows + len(batch.tokens),
            step_seconds=so_far.step_seconds + seconds,
            exchange_seconds=so_far.exchange_seconds + after.seconds - before.seconds,
            waiting_seconds=so_far.waiting_seconds + after.waiting_seconds - before.waiting_seconds,
            bytes_sent=so_far.bytes_sent + after.bytes_sent - before.bytes_sent,
            bytes_received=so_far.bytes_received + after.bytes_received - before.bytes_received,
        )
        if decode:
            self._decode = phase
        else:
            self._prefill = phase

    def statistics(self) -> NodeStatistics:
        """Until now."""
        return NodeStatistics(self._prefill, self._decode)


def _is_decode(batch: Batch) -> bool:
    """Whether every row wants logits: the next token of a sequence, or several that are guessed and checked."""
    return len(batch.logit_rows) == len(batch.tokens)
