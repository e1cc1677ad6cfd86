"""A model that runs on all nodes of a cluster, as one program."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.net.addresses import Address, peer_of
from dllama_gpu.net.channel import Channel, ChannelError, PeerGoneError, RemoteFailureError
from dllama_gpu.net.graph_messages import batch_message
from dllama_gpu.net.mesh import Mesh, PeerLostError
from dllama_gpu.net.messages import (
    Bye,
    ClockTime,
    FetchLogits,
    FetchStatistics,
    FetchTrace,
    NodeReport,
    NodeStatistics,
    ReadClock,
    StartTrace,
    TracePiece,
)
from dllama_gpu.net.statistics import StepClock
from dllama_gpu.net.trace import (
    MAX_RECORDS,
    PIECE_RECORDS,
    ClockReading,
    Lane,
    Records,
    TraceRecorder,
    best_reading,
    lane,
    own_lane,
    read_records,
)

LAST_WORDS_SECONDS = 1.0
_CLOCK_READINGS = 10


@dataclass(frozen=True)
class Worker:
    """A worker as the root knows it; `address` is the one that the user gave."""

    rank: int
    address: Address
    channel: Channel
    report: NodeReport

    @property
    def name(self) -> str:
        """For messages."""
        return self.channel.peer

    def with_rank(self, rank: int) -> Worker:
        """The same worker in another place."""
        return replace(self, rank=rank)

    @property
    def host(self) -> str:
        """The number by which this machine reaches it. Raises PeerGoneError when the connection is gone."""
        try:
            return peer_of(self.channel.connection).host
        except OSError:
            raise PeerGoneError(self.name, "the connection was closed") from None

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the connection never left this machine. Raises PeerGoneError when it is gone."""
        try:
            here = str(self.channel.connection.getsockname()[0])
        except OSError:
            raise PeerGoneError(self.name, "the connection was closed") from None
        return here.removeprefix("::ffff:").partition("%")[0] == self.host.partition("%")[0]

    def reachable_at(self) -> tuple[str, int]:
        """Host and port for other nodes: what the worker advertises, or where the root found it."""
        if self.report.advertised is not None:
            advertised = Address.parse(self.report.advertised, self.address.port)
            return advertised.host, advertised.port
        # The number of an interface is this machine's alone.
        return self.host.partition("%")[0], self.address.port

    def leave(self) -> None:
        """Says goodbye, if the worker still listens."""
        with contextlib.suppress(DllamaError, OSError):
            self.channel.send(Bye())
        self.channel.close()


class ClusterProgram:
    """Implements `dllama_gpu.graph.batch.Program` over the root's own program and its workers.

    After an error it cannot run again: the nodes' states may differ.
    """

    def __init__(
        self,
        program: Program,
        exchange: ExchangeHandler,
        mesh: Mesh,
        workers: Sequence[Worker],
        graphs: Sequence[Graph],
    ) -> None:
        self._program = program
        self._exchange = exchange
        self._workers = workers
        self._mesh = mesh
        self._clock = StepClock(mesh)
        self._recorder: TraceRecorder | None = None
        self._clocks: list[ClockReading] = []
        self._logit_widths = [_logits_width(graph) for graph in graphs]
        self._logits: npt.NDArray[np.float32] | None = None
        self._n_tokens = 0
        self._broken: DllamaError | None = None

    @property
    def graph(self) -> Graph:
        """The root's share; its sizes are the same on all nodes."""
        return self._program.graph

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step on all nodes. Ctrl-C takes effect after the step, a second one at once.

        Raises PeerLostError with a sentence naming the worker that left.
        """
        if self._broken is not None:
            raise self._broken
        batch.check(self.graph)  # before any worker hears of it
        self._logits = None
        message = batch_message(batch)
        with _interrupted_later(), self._explained():
            for worker in self._workers:
                worker.channel.send(message)
            with self._clock.step(batch):
                self._run_own(batch)
            self._n_tokens += len(batch.logit_rows) > 0

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """As of the root's program, but `logits` are those of the whole vocabulary, fetched from all nodes."""
        if name != "logits":
            return self._program.buffer(name, n_rows)
        if self._logits is None or len(self._logits) < n_rows:
            with _interrupted_later(), self._explained():
                self._logits = self._fetch_logits(n_rows)
        return self._logits[:n_rows]

    def statistics(self) -> list[NodeStatistics]:
        """What all nodes did since loading, by rank. Raises PeerLostError."""
        with _interrupted_later(), self._explained():
            for worker in self._workers:
                worker.channel.send(FetchStatistics())
            return [self._clock.statistics(), *(worker.channel.receive(NodeStatistics) for worker in self._workers)]

    def start_trace(self) -> None:
        """From now on all nodes write down when they compute, wait and exchange. Raises PeerLostError."""
        with _interrupted_later(), self._explained():
            self._clocks = [_read_clock(worker.channel) for worker in self._workers]
            for worker in self._workers:
                worker.channel.send(StartTrace())
            self._recorder = TraceRecorder(self._mesh, self._exchange)

    def trace(self) -> list[Lane]:
        """What was written down since `start_trace`, by rank, on the root's clock. Raises PeerLostError."""
        if self._recorder is None:
            raise ValueError("no trace was started")
        lanes = [own_lane("root", self._recorder)]
        with _interrupted_later(), self._explained():
            for worker, early in zip(self._workers, self._clocks, strict=True):
                records, n_untold = self._fetch_trace(worker)
                late = _read_clock(worker.channel)
                lanes.append(lane(str(worker.address), records, n_untold, early, late))
        return lanes

    def _fetch_trace(self, worker: Worker) -> tuple[Records, int]:
        pieces: list[Records] = []
        for first in range(0, MAX_RECORDS + 1, PIECE_RECORDS):
            worker.channel.send(FetchTrace(first))
            piece = worker.channel.receive(TracePiece)
            try:
                records = read_records(piece.records, 1 + len(self._workers))
            except DllamaError as error:
                raise ChannelError(worker.name, str(error)) from None
            pieces.append(records)
            if len(records) < PIECE_RECORDS:
                break
        return np.concatenate(pieces), piece.n_untold

    def _run_own(self, batch: Batch) -> None:
        if self._recorder is None:
            self._program.run(batch, self._exchange)
            return
        with self._recorder.step(batch):
            self._program.run(batch, self._recorder)

    def _fetch_logits(self, n_rows: int) -> npt.NDArray[np.float32]:
        ends = np.cumsum(self._logit_widths)
        logits = np.empty((n_rows, int(ends[-1])), np.float32)
        asked = [worker for worker in self._workers if self._logit_widths[worker.rank]]
        for worker in asked:
            worker.channel.send(FetchLogits(n_rows))
        if self._logit_widths[0]:
            logits[:, : ends[0]] = self._program.buffer("logits", n_rows)
        for worker in asked:
            width = self._logit_widths[worker.rank]
            part = np.empty((n_rows, width), "<f4")
            worker.channel.receive_raw_into(part.data.cast("B"))
            logits[:, ends[worker.rank] - width : ends[worker.rank]] = part
        return logits

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Finds out which worker is to blame when a step fails, and says it in a sentence."""
        try:
            yield
        except (PeerLostError, ChannelError, RemoteFailureError) as error:
            self._broken = self._explanation(error)
            raise self._broken from error
        except BaseException as error:
            self._broken = DllamaError(f"an earlier step failed ({str(error) or type(error).__name__}); start again")
            raise

    def _explanation(self, error: DllamaError) -> DllamaError:
        """The one worker that is gone without a word is the cause; the others only say what they noticed."""
        silent: list[tuple[Worker, str]] = []
        blamed: list[int] = []
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        for worker in self._workers:
            reason = last_words(worker.channel, deadline - time.monotonic())
            if isinstance(reason, RemoteFailureError):
                if reason.lost_rank is None:
                    return DllamaError(f"{reason} (during {self._when()})")
                blamed.append(reason.lost_rank)
            elif reason is not None:
                silent.append((worker, reason.reason))
        if silent:
            worker, how = silent[0]
            return self._lost(worker, how)
        # A worker that explains itself has seen the first link break; the root may only have seen what followed.
        for rank in (*blamed, *([error.rank] if isinstance(error, PeerLostError) else [])):
            if 0 < rank <= len(self._workers):
                return self._lost(self._workers[rank - 1], str(error).removeprefix(f"node {rank}: "))
        return error

    def _lost(self, worker: Worker, how: str) -> PeerLostError:
        return PeerLostError(
            worker.rank, f"{worker.name} left during {self._when()} ({how}); restart it, or run again without it"
        )

    def _when(self) -> str:
        return f"token {self._n_tokens + 1}" if self._n_tokens else "the prompt"


def last_words(channel: Channel, seconds: float) -> RemoteFailureError | PeerGoneError | None:
    """Why the other end gives up, if it said so within `seconds` or closed the connection."""
    if channel.pending(seconds):
        try:
            channel.receive(Bye)
        except (RemoteFailureError, PeerGoneError) as reason:
            return reason
        except ChannelError:
            return None
    return None


def _read_clock(channel: Channel) -> ClockReading:
    readings = []
    for _ in range(_CLOCK_READINGS):
        sent = time.perf_counter()
        channel.send(ReadClock())
        theirs = channel.receive(ClockTime).seconds
        half = (time.perf_counter() - sent) / 2
        if not math.isfinite(theirs):
            raise ChannelError(channel.peer, "its clock shows no time")
        readings.append(ClockReading(sent + half, theirs, half))
    return best_reading(readings)


def _logits_width(graph: Graph) -> int:
    return next((buffer.width for buffer in graph.buffers if buffer.name == "logits"), 0)


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Puts off Ctrl-C until the end of the block, so that all nodes stay at the same step; a second one is at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler:  # the program has its own way
        yield
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt
