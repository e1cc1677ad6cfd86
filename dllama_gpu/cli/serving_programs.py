"""Programs of a server that outlive the loss of a device or of workers: built once, and anew when one is lost."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.cli.arguments import Options
from dllama_gpu.cli.cluster import connect, measured_nodes, note_sent, note_shares, plan_options, shares
from dllama_gpu.cli.cluster_options import AUTO
from dllama_gpu.cli.device_choice import free_memory
from dllama_gpu.cli.display import note, progress
from dllama_gpu.cli.loading import make_device
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.loading import build_graph
from dllama_gpu.engine.rejoin import Rejoin, ReturnWatch
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Device, LoadProgress, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.plan import plan as plan_shares
from dllama_gpu.graph.profile import Link, NodeProfile
from dllama_gpu.graph.shard import Shard, shard_by_ratio
from dllama_gpu.graph.subset import best_subset
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.cluster import ROOT, Cluster
from dllama_gpu.net.key import read_key
from dllama_gpu.net.messages import printable
from dllama_gpu.net.store import default_folder

GRACE_SECONDS = 5.0
"""How long workers that were just lost are waited for before it goes on without them."""
LOOK_SECONDS = 15.0
"""How often is looked for workers that are missing."""


@dataclass(frozen=True)
class NodeShare:
    """A node and its part of the model: `share` of all weight bytes; `memory_bytes` is what it said is free."""

    name: str
    host: str | None
    device: str
    share: float
    weight_bytes: int
    kv_cache_bytes: int
    memory_bytes: int | None
    is_lost: bool = False


class LocalPrograms:
    """Programs of this node alone, on `device` until that is lost."""

    def __init__(
        self, source: ModelSource, options: Options, graph_options: GraphOptions, program: str, device: Device
    ) -> None:
        self._options = options
        self._program = program
        self._source = source
        self._graph = build_graph(source, graph_options)
        self.device = device
        self.nodes: tuple[NodeShare, ...] = _node_shares(None, [self._graph], self.device)

    def first(self) -> Program:
        """Loads, with a progress display."""
        with progress("loading weights", "bytes") as advance:
            return self.device.compile(self._graph, self._source, advance)

    def rebuild(self, attempt: int) -> Program:
        """Loads on a device made anew; implements `engine.recovery.Rebuild`."""
        gc.collect()  # what was lost may be held by the error that told of it
        self.device = make_device(self._options, self._program)
        return self.device.compile(self._graph, self._source)

    def is_better_possible(self) -> bool:
        """There is one way only."""
        return False

    def close(self) -> None:
        """Nothing is left open."""


class ClusterPrograms:
    """Programs of this node and its workers. Speeds and links are measured once, and serve each later plan too."""

    def __init__(
        self, source: ModelSource, options: Options, graph_options: GraphOptions, program: str, device: Device
    ) -> None:
        self._source = source
        self._options = options
        self._graph_options = graph_options
        self._wire = FloatType(options.buffer_float_type)
        self._program = program
        self.device = device
        self._cluster: Cluster | None = None
        self._profiles: dict[str, NodeProfile] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._addresses: list[str] = []
        self._shares: dict[str, NodeShare] = {}
        self.nodes: tuple[NodeShare, ...] = ()
        self._rejoin = Rejoin(self._connect_again, self._load_again, grace_seconds=GRACE_SECONDS)
        self._watch = ReturnWatch(self._is_back, every_seconds=LOOK_SECONDS)

    def first(self) -> Program:
        """Connects, measures, plans and loads, and writes what a person wants to know of it to standard error.

        Raises DllamaError naming the worker that cannot be had, or how much memory is missing.
        """
        measured = () if self._options.ratio is not None else (self._source.spec.weight_type,)
        cluster = self._cluster = connect(self._options, measure=measured)
        nodes = measured_nodes(self._source, self.device, self._options, cluster) if measured else []
        self._profiles = {node.name: node for node in nodes}
        self._links = dict(cluster.links)
        shards = shares(self._source, nodes, self._options, self._graph_options, cluster, self._wire)
        self._addresses = [str(worker.address) for worker in cluster.workers]
        graphs = self._graphs(shards)
        note_shares([ROOT, *self._addresses], shards, graphs)
        with progress("loading weights", "bytes") as advance:
            program = self._load(cluster, graphs, advance)
        if cluster.workers:
            note_sent(cluster)
        return program

    def rebuild(self, attempt: int) -> Program:
        """Plans and loads on those nodes that answer; implements `engine.recovery.Rebuild`."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
            gc.collect()  # the lost program's memory is needed for the next one
            if not isinstance(self.device, CpuDevice):  # it may be this node's own GPU that was lost
                self.device = make_device(self._options, self._program)
        program = self._rejoin(attempt)
        missing = self._rejoin.missing
        self.nodes += tuple(replace(self._shares[name], is_lost=True) for name in missing if name in self._shares)
        self._watch.look_for(missing)
        return program

    def is_better_possible(self) -> bool:
        """Whether a worker that was lost is back."""
        return self._watch.has_found

    def close(self) -> None:
        """Lets the workers go."""
        self._watch.close()
        if self._cluster is not None:
            self._cluster.close()

    def _connect_again(self) -> tuple[Cluster, dict[str, str]]:
        sentences: list[str] = []
        cluster = self._connect(self._addresses, lambda error: sentences.append(str(error)))
        cluster.links = dict(self._links)
        there = {str(worker.address) for worker in cluster.workers}
        missing = [address for address in self._addresses if address not in there]
        return cluster, dict(zip(missing, sentences, strict=True))

    def _connect(self, addresses: Sequence[str], missing: Callable[[DllamaError], None]) -> Cluster:
        key, _ = read_key(self._options.key_file, os.environ)
        return Cluster.connect(addresses, key=key, timeout=self._options.worker_timeout, missing=missing)

    def _is_back(self, address: str) -> bool:
        try:
            with self._connect([address], lambda error: None) as cluster:
                return bool(cluster.workers)
        except DllamaError:
            return False

    def _load_again(self, cluster: Cluster) -> Program:
        shards = self._shards_of(cluster)
        program = self._load(cluster, self._graphs(shards))
        self._cluster = cluster
        return program

    def _shards_of(self, cluster: Cluster) -> Sequence[Shard]:
        """Shares of the nodes that are left, by what was measured at the start.

        Of found workers those are let go that do not make it faster. Raises DoesNotFitError when memory is too small.
        """
        spec = self._source.spec
        if self._options.ratio is not None:
            ratio = dict(zip([ROOT, *self._addresses], self._options.ratio, strict=True))
            left = [ratio[ROOT], *(ratio[str(worker.address)] for worker in cluster.workers)]
            if not any(left):
                raise DllamaError("the nodes that are left have no share by --ratio")
            return shard_by_ratio(spec, left)
        memory = self._options.max_memory or free_memory(self.device)
        nodes = [self._profiles[ROOT]]
        if memory is not None:
            nodes[0] = replace(nodes[0], memory_bytes=memory)
        for worker in cluster.workers:
            profile = self._profiles[str(worker.address)]
            known = worker.report.memory
            nodes.append(profile if known is None else replace(profile, memory_bytes=known))
        find_plan = best_subset if AUTO in self._options.workers else plan_shares
        plan = find_plan(spec, self._source.tensors, nodes, cluster.link, plan_options(self._graph_options, self._wire))
        ranks = {str(worker.address): worker.rank for worker in cluster.workers}
        cluster.keep([ranks[name] for name in plan.names[1:]])
        return plan.shards

    def _graphs(self, shards: Sequence[Shard]) -> list[Graph]:
        return [build_graph(self._source, self._graph_options, shard) for shard in shards]

    def _load(self, cluster: Cluster, graphs: Sequence[Graph], advance: LoadProgress | None = None) -> Program:
        folder = None if self._options.no_cache else self._options.cache_dir or default_folder()
        program: Program
        if cluster.workers:
            program = cluster.load(
                self._source, graphs, self.device, wire=self._wire, cache_folder=folder, progress=advance
            )
        else:
            note("cluster", "no worker takes part, so this node works alone")
            program = self.device.compile(graphs[0], self._source, advance)
        self.nodes = _node_shares(cluster, graphs, self.device)
        self._shares |= {node.name: node for node in self.nodes}
        return program


def _node_shares(cluster: Cluster | None, graphs: Sequence[Graph], device: Device) -> tuple[NodeShare, ...]:
    total = sum(graph.weight_bytes() for graph in graphs) or 1
    nodes = []
    for rank, graph in enumerate(graphs):
        worker = cluster.workers[rank - 1] if cluster is not None and rank else None
        nodes.append(
            NodeShare(
                name=ROOT if worker is None else str(worker.address),
                host=None if worker is None else printable(worker.report.host_name, 100),
                device=device.name if worker is None else printable(worker.report.device, 200),
                share=graph.weight_bytes() / total,
                weight_bytes=graph.weight_bytes(),
                kv_cache_bytes=graph.kv_cache_bytes(),
                memory_bytes=free_memory(device) if worker is None else worker.report.memory,
            )
        )
    return tuple(nodes)
