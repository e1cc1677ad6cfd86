"""Running a model on a cluster as commands do it: connect, plan, load, and say who did what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dllama_gpu.cli.alone import load_alone
from dllama_gpu.cli.arguments import Options
from dllama_gpu.cli.cluster_options import AUTO
from dllama_gpu.cli.device_choice import free_memory
from dllama_gpu.cli.display import blank_line, note, progress, size_text
from dllama_gpu.cli.trace import save_trace
from dllama_gpu.cli.workers import usable_workers
from dllama_gpu.engine.loading import build_graph
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.advice import consult
from dllama_gpu.graph.batch import Device, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.profile import NodeProfile, PlanOptions
from dllama_gpu.graph.shard import Shard, Span, shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.cluster import ROOT, Cluster
from dllama_gpu.net.key import read_key
from dllama_gpu.net.loading import graph_bytes
from dllama_gpu.net.measure import measure_speed
from dllama_gpu.net.messages import NodeStatistics, printable
from dllama_gpu.net.store import default_folder

_PLENTY = 1 << 62


def connect(options: Options, *, measure: Sequence[FloatType]) -> Cluster:
    """Connects to the workers that `options` name, and measures nodes and links if there are weight types to `measure`.

    Raises DllamaError naming every worker that cannot be had.
    """
    key, warning = read_key(options.key_file, os.environ)
    if warning is not None:
        note("warning", warning)
    addresses = _addresses(options, has_key=key is not None)
    note("cluster", f"connecting to {', '.join(addresses)}" + (", measuring nodes and links" if measure else ""))
    # What was found may have gone, be taken or have another key by now; what was named must be there.
    missing = (lambda error: note("left out", str(error))) if AUTO in options.workers else None
    cluster = Cluster.connect(addresses, key=key, timeout=options.worker_timeout, measure=measure, missing=missing)
    for worker in cluster.workers:
        report = worker.report
        machine = ", ".join(filter(None, (report.host_name, report.device, report.cpu)))
        note("worker", f"{worker.address}: {printable(machine, 200)}, dllama-gpu {printable(report.release, 40)}")
    return cluster


def _addresses(options: Options, *, has_key: bool) -> list[str]:
    """The workers that --workers names, those found among them."""
    named = [address for address in options.workers if address != AUTO]
    if AUTO not in options.workers:
        return named
    note("cluster", "looking for workers on this network")
    known = {Address.parse(address) for address in named}
    return named + [address for address in usable_workers(has_key) if Address.parse(address) not in known]


def measured_nodes(source: ModelSource, device: Device, options: Options, cluster: Cluster) -> list[NodeProfile]:
    """All nodes for the planner by rank; this one is measured here and now, while the workers have nothing to do."""
    weight_type = source.spec.weight_type
    memory = options.max_memory or free_memory(device) or _PLENTY
    return cluster.profiles(measure_speed(device, weight_type), memory, weight_type)


@contextmanager
def load_cluster(
    source: ModelSource, device: Device, options: Options, graph_options: GraphOptions
) -> Iterator[Program]:
    """Spreads the model over this node and the workers that `options` name; lets them go after the block.

    Of workers that were found those are used that make it faster, possibly none. What each node did is written to
    standard error at the end. Raises DllamaError naming the worker that cannot be had or was lost, or saying how much
    memory is missing.
    """
    measured = () if options.ratio is not None else (source.spec.weight_type,)
    with connect(options, measure=measured) as cluster:
        wire = FloatType(options.buffer_float_type)
        nodes = measured_nodes(source, device, options, cluster) if measured else []
        shards = shares(source, nodes, options, graph_options, cluster, wire)
        graphs = [build_graph(source, graph_options, shard) for shard in shards]
        if options.ratio is not None and options.max_memory is not None:
            _check_memory(graphs[0], options.max_memory)
        if not cluster.workers:
            note("cluster", "no worker that was found would make it faster, so this node works alone")
            with load_alone(source, graphs[0], device, options) as alone:
                yield alone
            return
        names = [ROOT, *(str(worker.address) for worker in cluster.workers)]
        note_shares(names, shards, graphs)
        with progress("loading weights", "bytes") as advance:
            folder = None if options.no_cache else options.cache_dir or default_folder()
            program = cluster.load(source, graphs, device, wire=wire, cache_folder=folder, progress=advance)
        note_sent(cluster)
        if options.trace is not None:
            program.start_trace()
        yield program
        _report(names, program.statistics())
        if options.trace is not None:
            save_trace(options.trace, program.trace(), program.graph, source.path.name)


def _check_memory(graph: Graph, available: int) -> None:
    """What the planner sees to and a ratio does not; workers look after themselves."""
    needed = graph_bytes(graph)
    if needed > available:
        raise DllamaError(
            f"this node's share of the ratio needs {size_text(needed)}, --max-memory allows {size_text(available)}; "
            "lower its share or --max-seq-len, or raise --max-memory"
        )


def shares(
    source: ModelSource,
    nodes: Sequence[NodeProfile],
    options: Options,
    graph_options: GraphOptions,
    cluster: Cluster,
    wire: FloatType,
) -> Sequence[Shard]:
    """Shares as --ratio says, or as the planner finds them for these `nodes`, the root first.

    What it expects and advises goes to standard error. With found workers those are let go that do not make it faster.
    """
    spec = source.spec
    if options.ratio is not None:
        return shard_by_ratio(spec, options.ratio)
    outlook = consult(
        spec,
        source.tensors,
        nodes,
        cluster.link,
        plan_options(graph_options, wire),
    )
    if outlook.advice is not None:
        note("advice", outlook.advice)
    plan = outlook.plan
    if AUTO in options.workers and outlook.best.names != (plan and plan.names):
        plan = outlook.best
        note("cluster", f"using {', '.join(plan.names)}")
        ranks = {str(worker.address): worker.rank for worker in cluster.workers}
        cluster.keep([ranks[name] for name in plan.names[1:]])
    if plan is None:
        raise DllamaError(f"the model does not fit these nodes: {outlook.problem}")
    note("expected", f"{plan.tokens_per_second:.1f} tokens/s, {plan.bottleneck} computes longest")
    return plan.shards


def plan_options(graph_options: GraphOptions, wire: FloatType) -> PlanOptions:
    """What the planner must know of a graph."""
    return PlanOptions(
        seq_len=graph_options.seq_len,
        n_slots=graph_options.n_slots,
        max_rows=graph_options.max_rows,
        max_logit_rows=graph_options.max_logit_rows,
        buffer_type=graph_options.buffer_type,
        cache_type=graph_options.cache_type,
        wire=wire,
    )


def note_shares(names: Sequence[str], shards: Sequence[Shard], graphs: Sequence[Graph]) -> None:
    """Writes who has which part of the model."""
    for name, shard, graph in zip(names, shards, graphs, strict=True):
        note("share", _describe_share(name, shard, graph))


def note_sent(cluster: Cluster) -> None:
    """Writes how much of the weights crossed the network."""
    summary = cluster.load_summary
    note(
        "sent",
        f"{size_text(summary.sent_bytes)} of the {size_text(summary.worker_bytes)} that the workers hold"
        + ("; the rest was in their caches" if summary.sent_bytes < summary.worker_bytes else ""),
    )


def _describe_share(name: str, shard: Shard, graph: Graph) -> str:
    parts = [("heads", shard.heads), ("hidden", shard.hidden), ("vocabulary", shard.vocab)]
    if shard.experts is not None:
        parts.append(("experts", shard.experts))
    spans = ", ".join(f"{what} {_span(span)}" for what, span in parts)
    return f"{name}: {spans}; weights {size_text(graph.weight_bytes())}, KV cache {size_text(graph.kv_cache_bytes())}"


def _span(span: Span) -> str:
    return f"{span.begin}..{span.end - 1}" if span else "none"


def _report(names: Sequence[str], statistics: Sequence[NodeStatistics]) -> None:
    """A line a node: where the time of a token went and what crossed the network; then who was the slowest.

    Of tokens generated one by one; where there were none, as in `perplexity`, of those that came in chunks.
    """
    decoded = any(node.decode.n_rows for node in statistics)
    phases = [node.decode if decoded else node.prefill for node in statistics]
    if not any(phase.n_rows for phase in phases):
        return
    blank_line()
    for name, phase in zip(names, phases, strict=True):
        n_rows = max(phase.n_rows, 1)
        network = phase.exchange_seconds - phase.waiting_seconds
        note(
            "node",
            f"{name}: a token computes {1e3 * phase.compute_seconds / n_rows:.2f} ms, "
            f"waits {1e3 * phase.waiting_seconds / n_rows:.2f} ms, exchanges {1e3 * network / n_rows:.2f} ms, "
            f"sends {phase.bytes_sent / n_rows / 1e3:.1f} kB, receives {phase.bytes_received / n_rows / 1e3:.1f} kB",
        )
    order = sorted(range(len(names)), key=lambda rank: -phases[rank].compute_seconds)
    slowest, second = (phases[rank].compute_seconds for rank in order[:2])
    if second > 0:
        longer = 1e3 * (slowest - second) / max(phases[0].n_rows, 1)
        note(
            "slowest",
            f"{names[order[0]]}: it computes {longer:.2f} ms a token longer ({slowest / second - 1:.0%}) than "
            f"{names[order[1]]}, the next",
        )
