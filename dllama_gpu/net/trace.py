"""When a node computed, waited and exchanged: written down on its own clock, sent to the root as packed records."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, Program
from dllama_gpu.graph.graph import Exchange, Graph
from dllama_gpu.net.mesh import Mesh

RECORD = np.dtype(
    [
        ("step", "<u4"),  # steps since the trace began
        ("segment", "<u2"),  # number of the graph's segment in the step
        ("ends_step", "<u2"),  # 1 for what follows the step's last exchange, 0 otherwise
        ("n_rows", "<u4"),
        ("awaited", "<i4"),  # rank of the node whose bytes began to come last, -1 where none was awaited
        ("begin", "<f8"),  # of the segment's ops; seconds on the node's own clock, like the next three
        ("exchange", "<f8"),  # ops done, exchange begins
        ("moving", "<f8"),  # all awaited nodes have begun to send
        ("end", "<f8"),  # of the exchange
        ("bytes_sent", "<u8"),
        ("bytes_received", "<u8"),
    ]
)
"""A segment and the exchange behind it; the last one of a step has none, and the same time thrice.

A two-hop exchange waits twice; both times stand before `moving`.
"""

_PACKED = struct.Struct("<IHHIiddddQQ")  # RECORD once more, for NumPy takes its time with a single one

MAX_RECORDS = 1 << 16
"""Kept a node, 4 MiB: about a thousand tokens of a model with 32 layers. What comes later is counted, not kept."""
PIECE_RECORDS = 1 << 13
"""Most records in one message."""

Records = npt.NDArray[np.void]


class TraceRecorder:
    """Carries out exchanges by `exchange` over `mesh`, and writes down what each and the computing before it took.

    A node that is alone needs neither.
    """

    def __init__(
        self, mesh: Mesh | None = None, exchange: ExchangeHandler | None = None, max_records: int = MAX_RECORDS
    ) -> None:
        self._mesh = mesh
        self._exchange = exchange
        self._max_records = max_records
        self._records = bytearray()
        self._n_steps = 0
        self._n_untold = 0
        self._segment = 0
        self._begin = 0.0

    @property
    def n_untold(self) -> int:
        """Steps that found no room any more."""
        return self._n_untold

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Around one step."""
        self._segment = 0
        self._begin = time.perf_counter()
        yield
        now = time.perf_counter()
        self._write(batch, -1, now, now, now, 0, 0, ends_step=True)
        self._n_steps += 1
        self._n_untold += len(self._records) >= self._max_records * RECORD.itemsize

    def __call__(self, exchange: Exchange, batch: Batch) -> None:
        """As an ExchangeHandler."""
        assert self._mesh is not None
        assert self._exchange is not None
        before = self._mesh.stats()
        began = time.perf_counter()
        self._exchange(exchange, batch)
        ended = time.perf_counter()
        after = self._mesh.stats()
        awaited, longest = -1, 0.0
        for rank, peer in after.peers.items():
            waited = peer.waiting_seconds - before.peers[rank].waiting_seconds
            if waited > longest:
                awaited, longest = rank, waited
        moving = min(began + after.waiting_seconds - before.waiting_seconds, ended)
        sent, received = after.bytes_sent - before.bytes_sent, after.bytes_received - before.bytes_received
        self._write(batch, awaited, began, moving, ended, sent, received)

    def records(self) -> Records:
        """All that were kept, (n,) of RECORD."""
        return np.frombuffer(bytes(self._records), RECORD)

    def piece(self, first: int) -> bytes:
        """Records from number `first` on, PIECE_RECORDS at most; empty behind the last."""
        begin = first * RECORD.itemsize
        return bytes(self._records[begin : begin + PIECE_RECORDS * RECORD.itemsize])

    def _write(
        self,
        batch: Batch,
        awaited: int,
        exchange: float,
        moving: float,
        end: float,
        sent: int,
        received: int,
        *,
        ends_step: bool = False,
    ) -> None:
        if len(self._records) < self._max_records * RECORD.itemsize:
            what = (self._n_steps, self._segment, ends_step, len(batch.tokens), awaited)
            self._records += _PACKED.pack(*what, self._begin, exchange, moving, end, sent, received)
        self._segment += 1
        # Reading the counters belongs to neither the exchange nor what is computed next.
        self._begin = time.perf_counter()


def read_records(data: bytes, n_nodes: int) -> Records:
    """The records in one message of another node, (n,) of RECORD.

    Raises DllamaError unless they are whole, and their times are numbers in ascending order.
    """
    if len(data) % RECORD.itemsize or len(data) > PIECE_RECORDS * RECORD.itemsize:
        raise DllamaError(f"a trace came in a piece of {len(data)} bytes, which are no records")
    records = np.frombuffer(data, RECORD)
    times = np.stack([records[name] for name in ("begin", "exchange", "moving", "end")], axis=1).ravel()
    if not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0) or np.any(records["awaited"] >= n_nodes):
        raise DllamaError("a trace came with times or nodes that cannot be")
    return records


class TracedProgram:
    """A program that runs alone and writes down its steps; see `dllama_gpu.graph.batch.Program`."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._recorder = TraceRecorder()

    @property
    def graph(self) -> Graph:
        """Of the program."""
        return self._program.graph

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """As the program does."""
        with self._recorder.step(batch):
            self._program.run(batch, exchange)

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """As of the program."""
        return self._program.buffer(name, n_rows)

    def lanes(self) -> list[Lane]:
        """The one node's steps."""
        return [own_lane("root", self._recorder)]


@dataclass(frozen=True)
class ClockReading:
    """That another node's clock showed `theirs` seconds when the own one showed `ours`, within `error` seconds."""

    ours: float
    theirs: float
    error: float


def best_reading(readings: Sequence[ClockReading]) -> ClockReading:
    """The one with the shortest round trip, of which the reading lies in the middle (Cristian, 1989)."""
    return min(readings, key=lambda reading: reading.error)


def to_own_clock(times: npt.NDArray[np.float64], early: ClockReading, late: ClockReading) -> npt.NDArray[np.float64]:
    """Times of another node's clock on the own one. The clocks may run differently fast between the two readings."""
    elapsed = late.theirs - early.theirs
    rate = (late.ours - early.ours) / elapsed if elapsed > 0 else 1.0
    return early.ours + (times - early.theirs) * rate


@dataclass(frozen=True)
class Lane:
    """One node's records with times on the root's clock, right within `clock_error` seconds.

    `n_untold` steps are missing at the end.
    """

    name: str
    records: Records
    n_untold: int
    clock_error: float


def lane(name: str, records: Records, n_untold: int, early: ClockReading, late: ClockReading) -> Lane:
    """A node's lane, its records moved to the own clock."""
    moved = records.copy()
    for column in ("begin", "exchange", "moving", "end"):
        moved[column] = to_own_clock(records[column], early, late)
    return Lane(name, moved, n_untold, max(early.error, late.error))


def own_lane(name: str, recorder: TraceRecorder) -> Lane:
    """The lane of the node whose clock all lanes share."""
    return Lane(name, recorder.records(), recorder.n_untold, 0.0)
