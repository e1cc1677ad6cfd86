"""A worker's time with one root: report, connections to the other nodes, weights, steps."""

from __future__ import annotations

import contextlib
import hmac
import platform
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import dllama_gpu
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Device, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.addresses import Address, is_link_local, is_loopback, peer_of
from dllama_gpu.net.algorithm import choose_algorithm
from dllama_gpu.net.channel import Channel, ChannelError
from dllama_gpu.net.exchange import Choose, MeshExchange
from dllama_gpu.net.graph_messages import read_batch, read_graph
from dllama_gpu.net.links import answer_ping, chooser, mesh_key, open_peer, probe
from dllama_gpu.net.loading import PATIENCE_SECONDS, ProgressReports, graph_bytes, receive_slices
from dllama_gpu.net.measure import NodeSpeed, measure_speed
from dllama_gpu.net.mesh import MAX_NODES, Mesh, PeerLostError
from dllama_gpu.net.messages import (
    AnyMessage,
    Bye,
    ClockTime,
    Connected,
    Failure,
    FetchLogits,
    FetchStatistics,
    FetchTrace,
    GraphMessage,
    LinkReport,
    MeasureLink,
    NodeReport,
    PeerTable,
    Ping,
    ReadClock,
    Ready,
    RootHello,
    StartTrace,
    StepBatch,
    TracePiece,
)
from dllama_gpu.net.slices import SliceSource
from dllama_gpu.net.statistics import StepClock
from dllama_gpu.net.store import SliceStore
from dllama_gpu.net.trace import MAX_RECORDS, TraceRecorder

_LONGEST_TIMEOUT = 3600.0
_PROBE_TIMEOUT = 5.0
_LONGEST_REASON = 500


@dataclass(frozen=True)
class Node:
    """What a worker brings to every session.

    `make_device` is called for each, so that nothing of an earlier one stays. `memory` says how many bytes may be used,
    None if that is unknown. `log` is told sentences for the operator.
    """

    make_device: Callable[[], Device]
    make_store: Callable[[], SliceStore]
    memory: Callable[[], int | None]
    key: bytes | None = None
    cpu: str = ""
    advertised: Address | None = None
    log: Callable[[str], None] = field(default=print)


class Session:
    """One root's use of this worker. `run` returns when it is over; `interrupt` ends it from another thread."""

    def __init__(self, node: Node, channel: Channel, hello: RootHello) -> None:
        self.root = channel.peer
        self._node = node
        self._channel = channel
        self._hello = hello
        self._device: Device | None = None
        self._store: SliceStore | None = None
        self._mesh: Mesh | None = None
        self._program: Program | None = None
        self._choose: Choose = choose_algorithm
        self._exchange: MeshExchange | None = None
        self._clock: StepClock | None = None
        self._recorder: TraceRecorder | None = None
        self._n_logit_rows = 0
        # Connections of lower ranks, which may dial before this node knows of its peers.
        self._arrived: dict[int, socket.socket] = {}
        self._arrival = threading.Condition()
        self._over = False

    def offer_peer(self, token: bytes, rank: int, connection: socket.socket) -> bool:
        """Takes the connection of another node if it knows the session's token and its place is free."""
        with self._arrival:
            known = hmac.compare_digest(token, self._hello.token)
            if not known or self._over or rank in self._arrived or not 0 <= rank < MAX_NODES:
                return False
            self._arrived[rank] = connection
            self._arrival.notify_all()
            return True

    def knows(self, token: bytes) -> bool:
        """Whether `token` is this session's."""
        return hmac.compare_digest(token, self._hello.token)

    def interrupt(self) -> None:
        """Makes `run` return soon."""
        with self._arrival:
            self._over = True
            self._arrival.notify_all()
            for connection in self._arrived.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._mesh is not None:
            self._mesh.stop()
        self._channel.interrupt()

    def run(self) -> None:
        """Serves the root until it says goodbye. Raises DllamaError when it ends otherwise; the root was told why."""
        try:
            self._serve()
        except MemoryError as error:
            sentence = "out of memory for its share of the model; give it less with --ratio, or close programs there"
            self._tell(Failure(sentence))
            raise DllamaError(sentence) from error
        except DllamaError as error:
            self._tell(Failure(str(error), error.rank if isinstance(error, PeerLostError) else None))
            raise
        except Exception as error:
            self._tell(Failure(f"something unforeseen: {type(error).__name__}: {error}"))
            raise
        finally:
            self._free()

    def _serve(self) -> None:
        self._device = self._node.make_device()
        self._channel.send(self._report(self._device))
        handlers: dict[type[AnyMessage], Callable[..., None]] = {
            Ping: self._ping,
            MeasureLink: self._measure_link,
            PeerTable: self._connect,
            GraphMessage: self._load,
            StepBatch: self._step,
            FetchLogits: self._fetch_logits,
            FetchStatistics: self._fetch_statistics,
            ReadClock: self._read_clock,
            StartTrace: self._start_trace,
            FetchTrace: self._fetch_trace,
        }
        while True:
            message = self._channel.receive(Bye, *handlers, wait=True)
            if isinstance(message, Bye):
                return
            handlers[type(message)](message)

    def _report(self, device: Device) -> NodeReport:
        speeds: dict[FloatType, NodeSpeed] = {}
        for weight_type in dict.fromkeys(self._hello.measure):
            speeds[weight_type] = measure_speed(device, weight_type)
        return NodeReport(
            release=dllama_gpu.__version__,
            host_name=platform.node()[:255],
            device=device.name,
            cpu=self._node.cpu[:255],
            memory=self._node.memory(),
            speeds=speeds,
            advertised=None if self._node.advertised is None else str(self._node.advertised),
        )

    def _ping(self, message: Ping) -> None:
        answer_ping(self._channel, message)

    def _measure_link(self, message: MeasureLink) -> None:
        address = self._as_seen_from_here(message.host, message.port)
        try:
            link = probe(address, f"worker {address}", self._node.key, self._hello.token, _PROBE_TIMEOUT)
        except DllamaError as error:
            self._channel.send(LinkReport(None, str(error)[:_LONGEST_REASON]))
        else:
            self._channel.send(LinkReport(link))

    def _connect(self, table: PeerTable) -> None:
        n_nodes = len(table.addresses)
        sound = 0 < table.rank < n_nodes <= MAX_NODES and 0 < table.timeout <= _LONGEST_TIMEOUT
        if self._mesh is not None or not sound or None in table.addresses[1:]:
            raise ChannelError(self.root, "the table of nodes makes no sense")
        self._channel.timeout = table.timeout
        peers: dict[int, socket.socket] = {}
        try:
            for rank in range(table.rank + 1, n_nodes):
                peers[rank] = self._dial(table, rank)
            peers.update(self._await_lower(table))
        except BaseException:
            for connection in peers.values():
                connection.close()
            raise
        key = mesh_key(self._node.key, self._hello.token)
        self._mesh = Mesh(table.rank, peers, timeout=table.timeout, key=key)
        self._choose = chooser(table.link)
        self._clock = StepClock(self._mesh)
        self._channel.send(Connected())

    def _dial(self, table: PeerTable, rank: int) -> socket.socket:
        entry = table.addresses[rank]
        assert entry is not None
        address = self._as_seen_from_here(*entry)
        name = f"worker {address}"
        return open_peer(address, name, self._node.key, self._hello.token, table.rank, table.timeout).connection

    def _as_seen_from_here(self, host: str, port: int) -> Address:
        """A node that the root reaches on its own machine is, from another one, where the root is; one that it reaches
        by a link-local address is on the cable that leads to the root.
        """
        root = peer_of(self._channel.connection).host
        if is_loopback(host) and not is_loopback(root):
            host = root
        if is_link_local(host) and "%" not in host and "%" in root:
            host += root[root.index("%") :]
        return Address(host, port)

    def _await_lower(self, table: PeerTable) -> dict[int, socket.socket]:
        wanted = set(range(table.rank))
        deadline = time.monotonic() + table.timeout
        with self._arrival:
            while not wanted <= set(self._arrived):
                if self._over or not self._arrival.wait(max(0.0, deadline - time.monotonic())):
                    missing = ", ".join(map(str, sorted(wanted - set(self._arrived))))
                    raise DllamaError(
                        f"node {missing} did not connect within {table.timeout:g} seconds; can it reach this worker? "
                        "see --advertise of `dllama-gpu worker`"
                    )
            return {rank: self._arrived.pop(rank) for rank in wanted}

    def _load(self, message: GraphMessage) -> None:
        if self._mesh is None or self._device is None or self._program is not None:
            raise ChannelError(self.root, "a graph was sent before the nodes were connected, or twice")
        graph = read_graph(message)
        self._check_memory(graph)
        usual = self._channel.timeout
        self._channel.timeout = max(usual, PATIENCE_SECONDS)
        self._store = self._node.make_store()
        held = receive_slices(self._channel, graph, self._store)
        self._store.close()
        source = SliceSource(graph, held, message.model, message.spec)
        held.clear()
        report = ProgressReports(self._channel, graph.weight_bytes())
        self._program = self._device.compile(graph, source, report.advance)
        source.close()
        self._exchange = MeshExchange(self._mesh, self._program, message.wire, self._choose)
        self._channel.timeout = usual
        self._channel.send(Ready())

    def _check_memory(self, graph: Graph) -> None:
        needed, available = graph_bytes(graph), self._node.memory()
        if available is not None and needed > available:
            raise DllamaError(
                f"out of memory: its share of the model needs {needed / 2**20:.0f} MiB, {available / 2**20:.0f} MiB "
                "may be used; give it less with --ratio, close programs there, or raise its --max-memory"
            )

    def _step(self, message: StepBatch) -> None:
        if self._program is None or self._clock is None:
            raise ChannelError(self.root, "a step was sent before the weights were loaded")
        batch = read_batch(message)
        self._n_logit_rows = 0
        with self._clock.step(batch):
            if self._recorder is None:
                self._program.run(batch, self._exchange)
            else:
                with self._recorder.step(batch):
                    self._program.run(batch, self._recorder)
        self._n_logit_rows = len(batch.logit_rows)

    def _fetch_logits(self, message: FetchLogits) -> None:
        names = () if self._program is None else [buffer.name for buffer in self._program.graph.buffers]
        if self._program is None or "logits" not in names or not 0 < message.n_rows <= self._n_logit_rows:
            raise ChannelError(self.root, f"{message.n_rows} rows of logits were asked for, which are not there")
        logits = self._program.buffer("logits", message.n_rows)
        self._channel.send_raw(np.ascontiguousarray(logits, "<f4").data)

    def _fetch_statistics(self, message: FetchStatistics) -> None:
        if self._clock is None:
            raise ChannelError(self.root, "statistics were asked for before the nodes were connected")
        self._channel.send(self._clock.statistics())

    def _read_clock(self, message: ReadClock) -> None:
        self._channel.send(ClockTime(time.perf_counter()))

    def _start_trace(self, message: StartTrace) -> None:
        if self._mesh is None or self._exchange is None:
            raise ChannelError(self.root, "a trace was asked for before the weights were loaded")
        self._recorder = TraceRecorder(self._mesh, self._exchange)

    def _fetch_trace(self, message: FetchTrace) -> None:
        if self._recorder is None or not 0 <= message.first <= MAX_RECORDS:
            raise ChannelError(self.root, "a trace was asked for that is not there")
        self._channel.send(TracePiece(self._recorder.piece(message.first), self._recorder.n_untold))

    def _tell(self, failure: Failure) -> None:
        """Tells the root why this worker gives up, if it still listens."""
        with contextlib.suppress(DllamaError):
            self._channel.send(failure)

    def _free(self) -> None:
        with self._arrival:
            self._over = True
            for connection in self._arrived.values():
                connection.close()
            self._arrived.clear()
        if self._mesh is not None:
            self._mesh.close()
        if self._store is not None:
            self._store.close()
        self._channel.close()
        self._program = self._exchange = self._recorder = self._clock = self._mesh = self._device = None
