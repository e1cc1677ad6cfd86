"""Several nodes in one process: each program runs in a thread, exchanges meet at a barrier instead of a network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch, Program
from dllama_gpu.graph.graph import AllReduce, Broadcast, Exchange, GatherCandidates
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType


class LocalCluster:
    """Runs a batch on all programs, the first being rank 0; partial sums cross in `wire` format."""

    def __init__(self, programs: Sequence[Program], wire: FloatType = FloatType.F32) -> None:
        self.programs = programs
        self.wire = wire
        self._barrier = Barrier(len(programs))
        self._sent: list[list[npt.NDArray[np.float32]] | None] = [None] * len(programs)

    def run(self, batch: Batch) -> None:
        """Computes one step on every node."""
        with ThreadPoolExecutor(len(self.programs)) as pool:
            for done in [pool.submit(self._run_rank, rank, batch) for rank in range(len(self.programs))]:
                done.result(timeout=60)

    def _run_rank(self, rank: int, batch: Batch) -> None:
        try:
            self.programs[rank].run(batch, lambda exchange, batch: self._exchange(rank, exchange, batch))
        except BaseException:
            self._barrier.abort()
            raise

    def _exchange(self, rank: int, exchange: Exchange, batch: Batch) -> None:
        program = self.programs[rank]
        self._sent[rank] = None
        if isinstance(exchange, GatherCandidates):
            n_rows = len(batch.logit_rows)
            if exchange.own is not None:
                self._sent[rank] = [program.buffer(name, n_rows).astype(np.float64) for name in exchange.own]
            self._barrier.wait()
            if exchange.into is not None:
                self._merge(program, exchange.into, n_rows)
        else:
            n_rows = len(batch.tokens)
            rows = program.buffer(exchange.buffer, n_rows)
            if isinstance(exchange, Broadcast) or exchange.contributes:
                self._sent[rank] = [self._over_the_wire(rows) if isinstance(exchange, AllReduce) else rows.copy()]
            self._barrier.wait()
            if isinstance(exchange, Broadcast):
                assert self._sent[0] is not None
                rows[:] = self._sent[0][0]
            else:
                total = np.zeros_like(rows)
                for sent in self._sent:
                    if sent is not None:
                        total = total + sent[0]
                rows[:] = total
        self._barrier.wait()

    def _over_the_wire(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return dequantize(quantize(rows, self.wire), self.wire)

    def _merge(self, program: Program, into: tuple[str, str, str], n_rows: int) -> None:
        parts = [sent for sent in self._sent if sent is not None]
        values, ids, log_sum_exps = (np.concatenate([part[i] for part in parts], axis=1) for i in range(3))
        out_values, out_ids, out_log_sum_exp = (program.buffer(name, n_rows) for name in into)
        order = np.lexsort((ids, -values), axis=1)[:, : out_values.shape[1]]
        out_values[:] = np.take_along_axis(values, order, axis=1)
        out_ids[:] = np.take_along_axis(ids, order, axis=1)
        out_log_sum_exp[:, 0] = np.logaddexp.reduce(log_sum_exps, axis=1)
