"""The root's view of the cluster: connect to the workers, give each its share of the model, run."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import dllama_gpu
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Device, LoadProgress
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.profile import Link, NodeProfile
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.channel import DEFAULT_TIMEOUT, Channel, RemoteFailureError
from dllama_gpu.net.cluster_program import LAST_WORDS_SECONDS, ClusterProgram, Worker, last_words
from dllama_gpu.net.exchange import MeshExchange
from dllama_gpu.net.graph_messages import graph_message
from dllama_gpu.net.hashing import slice_digests, unknown_bytes
from dllama_gpu.net.links import chooser, mesh_key, open_channel, open_peer
from dllama_gpu.net.loading import PATIENCE_SECONDS, receive_patiently, send_slices, wait_patiently
from dllama_gpu.net.measure import NodeSpeed
from dllama_gpu.net.mesh import Mesh
from dllama_gpu.net.messages import (
    TOKEN_BYTES,
    Connected,
    NodeReport,
    PeerTable,
    Ready,
    RootHello,
)
from dllama_gpu.net.slices import graph_slices, localize
from dllama_gpu.net.survey import explain, left_out, survey

ROOT = "root"
"""The root's name among the nodes."""
_PLENTY = 1 << 60
_HASHING = -1  # beside the ranks of nodes that load
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LoadSummary:
    """What loading moved, in bytes of weights: all slices of all workers, and those that crossed the network."""

    worker_bytes: int
    sent_bytes: int


class Cluster:
    """The workers of one session, in the order of their ranks from 1 on. Use as a context manager."""

    def __init__(self, workers: Sequence[Worker], token: bytes, key: bytes | None, timeout: float) -> None:
        self.workers = tuple(workers)
        self._token = token
        self._key = key
        self._timeout = timeout
        self._mesh: Mesh | None = None
        self.links: dict[frozenset[str], Link] = {}
        self.load_summary = LoadSummary(0, 0)

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        *,
        key: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        measure: Sequence[FloatType] = (),
        missing: Callable[[DllamaError], None] | None = None,
    ) -> Cluster:
        """Connects to all workers and learns what they offer.

        With weight types to `measure`, every node times its kernels with them, and the ways between all nodes are
        measured. `timeout` bounds the seconds without a byte in everything that follows.
        `missing` is told of each worker that cannot be had, or that the others cannot reach, and the cluster does
        without it, if need be without any.
        Raises DllamaError naming every such worker, with the reason, if nobody is there to be told.
        """
        told = _raise_all if missing is None else lambda errors: [missing(error) for error in errors]
        parsed = [Address.parse(address) for address in addresses]
        twice = [address for number, address in enumerate(parsed) if address in parsed[:number]]
        if not parsed or twice:
            raise DllamaError(f"worker {twice[0]} is named twice" if twice else "at least one worker must be named")
        token = secrets.token_bytes(TOKEN_BYTES)
        hello = RootHello(dllama_gpu.__version__, token, tuple(measure))
        channels: list[Channel] = []
        try:
            opened = _at_once(parsed, lambda address: open_channel(address, f"worker {address}", key, timeout))
            channels = [channel for channel, _ in opened if channel is not None]
            told([error for _, error in opened if error is not None])
            answered = [address for address, (channel, _) in zip(parsed, opened, strict=True) if channel is not None]
            reported = _at_once(channels, lambda channel: _report(channel, hello))
            told([error for _, error in reported if error is not None])
            workers: list[Worker] = []
            for address, channel, (report, _) in zip(answered, channels, reported, strict=True):
                if report is None:
                    channel.close()
                else:
                    workers.append(Worker(1 + len(workers), address, channel, report))
        except BaseException:
            for channel in channels:
                channel.close()
            raise
        cluster = cls(workers, token, key, timeout)
        if measure:
            try:
                told(cluster._measure_links())
            except BaseException:
                cluster.close()
                raise
        return cluster

    def link(self, first: str, second: str) -> Link:
        """The measured way between two nodes, `root` or a worker's address; see `graph.profile.LinkBetween`."""
        return self.links[frozenset((first, second))]

    def profiles(self, root: NodeSpeed, root_memory: int, weight_type: FloatType) -> list[NodeProfile]:
        """All nodes by rank for the planner, the root's speed and memory given. A worker that does not know its memory
        is taken to have enough.
        """
        nodes = [_profile(ROOT, root, root_memory)]
        for worker in self.workers:
            memory = worker.report.memory
            nodes.append(
                _profile(str(worker.address), worker.report.speeds[weight_type], _PLENTY if memory is None else memory)
            )
        return nodes

    def keep(self, ranks: Sequence[int]) -> None:
        """Lets go of the workers that are not in `ranks`; the others get new ranks, from 1 on in the order given."""
        kept = [self.workers[rank - 1] for rank in ranks]
        for worker in self.workers:
            if worker not in kept:
                worker.leave()
        self.workers = tuple(worker.with_rank(rank) for rank, worker in enumerate(kept, 1))

    def load(
        self,
        source: ModelSource,
        graphs: Sequence[Graph],
        device: Device,
        *,
        wire: FloatType,
        cache_folder: Path | None = None,
        progress: LoadProgress | None = None,
    ) -> ClusterProgram:
        """Connects all nodes with each other and loads `graphs` (by rank, the root's first), the root's on `device`.

        Exchanges cross the network as `wire`. `cache_folder` is where the hashes of the model's slices are remembered.
        `progress` is told the bytes done and in all on all nodes together, those to be hashed first among them, from
        several threads, one at a time.
        Raises DllamaError naming the worker that failed.
        """
        if len(graphs) != 1 + len(self.workers):
            raise ValueError(f"{len(graphs)} graphs for {1 + len(self.workers)} nodes")
        self._mesh = self._connect_nodes()
        pieces = [graph_slices(graph) for graph in graphs[1:]]
        worker_bytes = sum(piece.n_bytes for share in pieces for piece in share)
        every = tuple(piece for share in pieces for piece in share)
        to_hash = unknown_bytes(source, every, cache_folder)
        done = _Progress(progress, to_hash + worker_bytes + graphs[0].weight_bytes())
        digests = slice_digests(source, every, cache_folder, lambda n, _: done.told(_HASHING, n))

        def load_worker(worker: Worker) -> int:
            worker.channel.timeout = max(self._timeout, PATIENCE_SECONDS)
            share = pieces[worker.rank - 1]
            graph = localize(graphs[worker.rank])
            worker.channel.send(graph_message(graph, source.path.name, source.spec, wire))
            sent = send_slices(worker.channel, source, share, digests, lambda n: done.told(worker.rank, n))
            receive_patiently(worker.channel, Ready)
            worker.channel.timeout = self._timeout
            return sent

        with ThreadPoolExecutor(len(self.workers)) as pool:
            futures = [pool.submit(load_worker, worker) for worker in self.workers]
            try:
                program = device.compile(graphs[0], source, lambda n, _: done.told(0, n))
                sent = sum(future.result() for future in _first_failure_first(futures))
            except BaseException:
                for worker in self.workers:
                    worker.channel.interrupt()
                raise
        self.load_summary = LoadSummary(worker_bytes, sent)
        exchange = MeshExchange(self._mesh, program, wire, chooser(self._slowest_link()))
        return ClusterProgram(program, exchange, self._mesh, self.workers, graphs)

    def close(self) -> None:
        """Says goodbye to all workers and closes everything."""
        for worker in self.workers:
            worker.leave()
        if self._mesh is not None:
            self._mesh.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _slowest_link(self) -> Link | None:
        """The worst figures of the ways between the nodes that take part, None if they were not measured."""
        names = [ROOT, *(str(worker.address) for worker in self.workers)]
        used = [link for ends, link in self.links.items() if ends <= set(names)]
        if not used:
            return None
        return Link.worst_of(used)

    def _measure_links(self) -> list[DllamaError]:
        """Learns the ways between all nodes and lets those workers go that the others cannot reach; says why."""
        found = survey(self.workers)
        names = [ROOT, *(str(worker.address) for worker in self.workers)]
        self.links = {frozenset((names[first], names[second])): link for (first, second), link in found.links.items()}
        without = left_out(found.missing)
        reasons = [DllamaError(explain(self.workers[rank - 1].name, ways)) for rank, ways in without.items()]
        self.keep([worker.rank for worker in self.workers if worker.rank not in without])
        return reasons

    def _connect_nodes(self) -> Mesh:
        table = (None, *(worker.reachable_at() for worker in self.workers))
        for worker in self.workers:
            worker.channel.send(PeerTable(worker.rank, table, self._timeout, self._slowest_link()))
        peers = {}
        try:
            for worker in self.workers:
                # The way that the first connection took is known to work.
                address = Address(worker.host, worker.address.port)
                channel = open_peer(address, worker.name, self._key, self._token, 0, self._timeout)
                peers[worker.rank] = channel.connection
            for worker in self.workers:
                worker.channel.receive(Connected)
            return Mesh(0, peers, timeout=self._timeout, key=mesh_key(self._key, self._token))
        except BaseException as error:
            for connection in peers.values():
                connection.close()
            if isinstance(error, DllamaError):
                self._raise_first_reason()
            raise

    def _raise_first_reason(self) -> None:
        """A worker that gave up says why; that others then cannot reach it says less."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        for worker in self.workers:
            reason = last_words(worker.channel, deadline - time.monotonic())
            if isinstance(reason, RemoteFailureError):
                raise reason


def _profile(name: str, speed: NodeSpeed, memory: int) -> NodeProfile:
    return NodeProfile(name, speed.bytes_per_second, speed.flops_per_second, memory, speed.op_seconds)


class _Progress:
    """Adds up what the nodes report from their threads."""

    def __init__(self, progress: LoadProgress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done: dict[int, int] = {}
        self._lock = threading.Lock()

    def told(self, rank: int, done: int) -> None:
        with self._lock:
            self._done[rank] = done
            if self._progress is not None:
                self._progress(sum(self._done.values()), self._total)


def _report(channel: Channel, hello: RootHello) -> NodeReport:
    channel.send(hello)
    report = wait_patiently(channel, NodeReport)
    if not set(hello.measure) <= set(report.speeds):
        raise DllamaError(f"{channel.peer} did not say how fast it is")
    return report


def _at_once(
    items: Sequence[_Item], work: Callable[[_Item], _Result]
) -> list[tuple[_Result, None] | tuple[None, DllamaError]]:
    """Results, or the errors that came instead, of working on all items in parallel."""

    def attempt(item: _Item) -> tuple[_Result, None] | tuple[None, DllamaError]:
        try:
            return work(item), None
        except DllamaError as error:
            return None, error

    with ThreadPoolExecutor(max(len(items), 1)) as pool:
        return list(pool.map(attempt, items))


def _raise_all(errors: Sequence[DllamaError]) -> None:
    if errors:
        raise DllamaError("; ".join(map(str, errors)))


def _first_failure_first(futures: Sequence[Future[int]]) -> list[Future[int]]:
    """All futures, those that failed in front; waits until all are done or one failed."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failed = [future for future in futures if future in done and future.exception() is not None]
    return [*failed, *(future for future in futures if future not in failed)]
