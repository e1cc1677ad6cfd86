"""A program's exchanges carried out over a mesh of nodes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Program
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.graph.graph import AllReduce, Broadcast, Exchange, GatherCandidates
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.algorithm import choose_algorithm
from dllama_gpu.net.mesh import Mesh, PeerLostError

Choose = Callable[[int, int, int, FloatType], Algorithm]
"""Called with (n_rows, width, n_nodes, wire); must give the same on all nodes."""

_SHAPE = struct.Struct("<II")  # rows, candidates a row


@dataclass(frozen=True)
class Candidates:
    """The best logits of a slice of the vocabulary, k for each of n rows.

    values (n, k) f32, ids (n, k) i32, log_sum_exp (n, 1) f32; see `dllama_gpu.graph.graph.TopCandidates`.
    """

    values: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    log_sum_exp: npt.NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """For the wire: the shape, then the three arrays, least significant byte first."""
        n_rows, k = self.values.shape
        arrays = (self.values.astype("<f4"), self.ids.astype("<i4"), self.log_sum_exp.astype("<f4"))
        return _SHAPE.pack(n_rows, k) + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, data: bytes, n_rows: int, vocab_size: int) -> Candidates:
        """The opposite. Raises ValueError, saying what is wrong, unless these are candidates of `n_rows` rows."""
        if len(data) < _SHAPE.size:
            raise ValueError(f"{len(data)} bytes are too few for candidates")
        found_rows, k = _SHAPE.unpack_from(data)
        n_bytes = _SHAPE.size + 4 * n_rows * (2 * k + 1)
        if found_rows != n_rows or len(data) != n_bytes:
            raise ValueError(f"candidates of {n_rows} rows were due, not {len(data)} bytes for {found_rows} rows")
        values, ids, log_sum_exp = np.split(
            np.frombuffer(data, "<u4", offset=_SHAPE.size), [n_rows * k, 2 * n_rows * k]
        )
        candidates = cls(
            values.view("<f4").reshape(n_rows, k),
            ids.view("<i4").reshape(n_rows, k),
            log_sum_exp.view("<f4").reshape(n_rows, 1),
        )
        if candidates.ids.size and not 0 <= candidates.ids.min() <= candidates.ids.max() < vocab_size:
            raise ValueError(f"a candidate's token is outside 0..{vocab_size - 1}")
        return candidates


def max_candidate_bytes(n_rows: int, k: int) -> int:
    """Bytes of `k` candidates a row."""
    return _SHAPE.size + 4 * n_rows * (2 * k + 1)


def merge_candidates(parts: Sequence[Candidates], k: int) -> Candidates:
    """The `k` best candidates of all slices together: largest value first, lowest id first among equals.

    Raises ValueError when the parts have fewer than `k`.
    """
    found = sum(part.values.shape[1] for part in parts)
    if not parts or found < k:
        raise ValueError(f"the nodes sent {found} candidates a row where {k} are needed")
    values = np.concatenate([part.values for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    order = np.lexsort((ids, -values), axis=1)[:, :k]
    log_sum_exps = np.concatenate([part.log_sum_exp for part in parts], axis=1, dtype=np.float64)
    total = np.logaddexp.reduce(log_sum_exps, axis=1, keepdims=True)
    return Candidates(
        np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1), total.astype(np.float32)
    )


class MeshExchange:
    """Implements `dllama_gpu.graph.batch.ExchangeHandler` for `program`, whose buffers it reads and writes.

    Partial sums cross the network as `wire`; `choose` says by which algorithm.
    """

    def __init__(self, mesh: Mesh, program: Program, wire: FloatType, choose: Choose = choose_algorithm) -> None:
        self._mesh = mesh
        self._program = program
        self._wire = wire
        self._choose = choose
        self._widths = {buffer.name: buffer.width for buffer in program.graph.buffers}

    def __call__(self, exchange: Exchange, batch: Batch) -> None:
        """Returns when this node's buffers hold the result. Raises PeerLostError."""
        if isinstance(exchange, GatherCandidates):
            self._gather(exchange, len(batch.logit_rows))
            return
        rows = self._program.buffer(exchange.buffer, len(batch.tokens))
        if isinstance(exchange, Broadcast):
            self._mesh.broadcast(rows)
        else:
            self._all_reduce(exchange, rows)

    def _all_reduce(self, exchange: AllReduce, rows: npt.NDArray[Any]) -> None:
        n_rows, width = rows.shape
        algorithm = self._choose(n_rows, width, self._mesh.n_nodes, self._wire)
        self._mesh.all_reduce(rows, contributes=exchange.contributes, wire=self._wire, algorithm=algorithm)

    def _gather(self, exchange: GatherCandidates, n_rows: int) -> None:
        if n_rows == 0:  # on all nodes alike
            return
        own = b""
        if exchange.own is not None:
            own = Candidates(*(self._program.buffer(name, n_rows) for name in exchange.own)).to_bytes()
        if exchange.into is None:
            self._mesh.gather(own, len(own))
            return
        # No slice has more candidates than are wanted of all together.
        k = self._widths[exchange.into[0]]
        gathered = self._mesh.gather(own, max(len(own), max_candidate_bytes(n_rows, k)))
        assert gathered is not None
        parts = [self._parsed(rank, data, n_rows) for rank, data in enumerate(gathered) if data]
        try:
            merged = merge_candidates(parts, k)
        except ValueError as error:
            raise DllamaError(f"the candidates of the nodes do not make a whole: {error}") from None
        for name, array in zip(exchange.into, (merged.values, merged.ids, merged.log_sum_exp), strict=True):
            self._program.buffer(name, n_rows)[:] = array

    def _parsed(self, rank: int, data: bytes, n_rows: int) -> Candidates:
        try:
            return Candidates.from_bytes(data, n_rows, self._program.graph.vocab_size)
        except ValueError as error:
            raise PeerLostError(rank, f"node {rank}: {error}") from None
