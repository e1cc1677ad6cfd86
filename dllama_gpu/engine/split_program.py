"""One model on two devices of the same machine: what nodes of a cluster do, without sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, Program
from dllama_gpu.graph.graph import AllReduce, Broadcast, Exchange, GatherCandidates, Graph
from dllama_gpu.net.exchange import Candidates, merge_candidates


class SplitProgram:
    """Implements `dllama_gpu.graph.batch.Program` over the programs of all shares, by rank.

    Rank 0 runs in the calling thread and each other in one of its own. Partial sums are added in rank order, unrounded.
    After an error it cannot run again: the devices' caches may differ.
    """

    def __init__(self, graph: Graph, programs: Sequence[Program]) -> None:
        self._graph = graph
        self._programs = tuple(programs)
        self._threads = ThreadPoolExecutor(len(programs) - 1, thread_name_prefix="share")
        self._barrier = Barrier(len(programs))
        self._exchanges: list[Exchange | None] = [None] * len(programs)
        self._broken: str | None = None

    @property
    def graph(self) -> Graph:
        """Of the whole model."""
        return self._graph

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step on all devices. Raises DllamaError as their programs do."""
        if self._broken is not None:
            raise DllamaError(f"an earlier step failed ({self._broken}); start again")
        batch.check(self._graph)
        others = [self._threads.submit(self._run_rank, rank, batch) for rank in range(1, len(self._programs))]
        errors = [error for error in (_outcome(lambda: self._run_rank(0, batch)), *map(_failure, others)) if error]
        # A broken barrier is what the others noticed, not the cause.
        errors.sort(key=lambda error: isinstance(error, BrokenBarrierError))
        if errors:
            self._broken = str(errors[0]) or type(errors[0]).__name__
            raise errors[0]

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """Of rank 0, but `logits` are those of all vocabulary slices side by side."""
        if name != "logits":
            return self._programs[0].buffer(name, n_rows)
        return np.concatenate([p.buffer(name, n_rows) for p in self._programs if _has(p.graph, name)], axis=1)

    def _run_rank(self, rank: int, batch: Batch) -> None:
        def meet(exchange: Exchange, batch: Batch) -> None:
            self._exchanges[rank] = exchange
            self._barrier.wait()
            if rank == 0:
                self._carry_out(batch)
            self._barrier.wait()

        try:
            self._programs[rank].run(batch, meet)
        except BaseException:
            self._barrier.abort()
            raise

    def _carry_out(self, batch: Batch) -> None:
        """The exchange that all ranks have come to, while they wait."""
        first = self._exchanges[0]
        if isinstance(first, GatherCandidates):
            if len(batch.logit_rows):
                self._gather(len(batch.logit_rows))
            return
        assert first is not None
        arrays = [program.buffer(first.buffer, len(batch.tokens)) for program in self._programs]
        if isinstance(first, Broadcast):
            result = arrays[0]
        else:
            result = np.zeros_like(arrays[0])
            for exchange, array in zip(self._exchanges, arrays, strict=True):
                if isinstance(exchange, AllReduce) and exchange.contributes:
                    result += array
        for array in arrays:
            if array is not result:
                array[:] = result

    def _gather(self, n_rows: int) -> None:
        parts, into = [], None
        for exchange, program in zip(self._exchanges, self._programs, strict=True):
            assert isinstance(exchange, GatherCandidates)
            if exchange.own is not None:
                parts.append(Candidates(*(program.buffer(name, n_rows) for name in exchange.own)))
            into = into or exchange.into
        assert into is not None
        outputs = [self._programs[0].buffer(name, n_rows) for name in into]
        merged = merge_candidates(parts, outputs[0].shape[1])
        for output, array in zip(outputs, (merged.values, merged.ids, merged.log_sum_exp), strict=True):
            output[:] = array


def _outcome(run: Callable[[], None]) -> BaseException | None:
    try:
        run()
    except BaseException as error:
        return error
    return None


def _failure(done: Future[None]) -> BaseException | None:
    return done.exception()


def _has(graph: Graph, name: str) -> bool:
    return any(buffer.name == name for buffer in graph.buffers)
