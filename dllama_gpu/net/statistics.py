"""What a node's steps cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dllama_gpu.net.mesh import Mesh
from dllama_gpu.net.messages import NodeStatistics


class StepClock:
    """Adds up the time of a node's steps and reads that of its exchanges from the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._n_steps = 0
        self._seconds = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step; one that fails does not count."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started
        self._n_steps += 1

    def statistics(self) -> NodeStatistics:
        """Until now."""
        exchanges = self._mesh.stats()
        return NodeStatistics(
            n_steps=self._n_steps,
            step_seconds=self._seconds,
            exchange_seconds=exchanges.seconds,
            waiting_seconds=exchanges.waiting_seconds,
            bytes_sent=exchanges.bytes_sent,
            bytes_received=exchanges.bytes_received,
        )
