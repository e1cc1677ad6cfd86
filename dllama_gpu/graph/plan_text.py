"""A plan as tables for people."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dllama_gpu.graph.advice import Outlook
from dllama_gpu.graph.division import size_text
from dllama_gpu.graph.plan import ClusterPlan, NodePlan
from dllama_gpu.graph.profile import LinkBetween, NodeProfile
from dllama_gpu.model.spec import ModelSpec


def describe(outlook: Outlook, spec: ModelSpec) -> str:
    """Shares, memory, traffic and speeds of the plan for all nodes, and how the best of them compare."""
    shown = outlook.plan or outlook.best
    lines = [] if outlook.problem is None else [f"not with all nodes: {outlook.problem}", ""]
    lines += [shares_table(shown, spec), ""]
    if shown.links:
        lines += [links_table(shown), ""]
    lines += speed_lines(shown)
    if outlook.plan is not None and outlook.best.names != outlook.plan.names:
        lines.append(f"best nodes   {', '.join(outlook.best.names)}: {outlook.best.tokens_per_second:.2f} tokens/s")
    if outlook.advice is not None:
        lines.append(f"advice       {outlook.advice}")
    return "\n".join(lines)


def measurements(nodes: Sequence[NodeProfile], links: LinkBetween) -> str:
    """What every node and every way between two of them reaches."""
    rows = [["node", "reads weights", "computes", "an op takes"]]
    for node in nodes:
        speeds = (f"{node.bytes_per_second / 1e9:.2f} GB/s", f"{node.flops_per_second / 1e9:.1f} GFLOPS")
        rows.append([node.name, *speeds, f"{1e6 * node.op_seconds:.1f} us"])
    ways = [["link", "latency", "jitter", "bandwidth"]]
    for first, second in itertools.combinations([node.name for node in nodes], 2):
        link = links(first, second)
        latency, jitter = (f"{1e3 * seconds:.3f} ms" for seconds in (link.latency_seconds, link.jitter_seconds))
        ways.append([f"{first} - {second}", latency, jitter, f"{link.bytes_per_second / 1e6:.0f} MB/s"])
    return f"{_table(rows)}\n\n{_table(ways)}"


def shares_table(plan: ClusterPlan, spec: ModelSpec) -> str:
    """One line a node: its share, its memory, its time for a token."""
    header = [
        "node",
        "heads",
        "KV heads",
        "hidden",
        "vocabulary",
        "weights",
        "KV cache",
        "buffers",
        "memory",
        "of",
        "ms",
    ]
    totals = ["all", spec.n_heads, spec.n_kv_heads, spec.ffn_dim, spec.vocab_size]
    sums = [
        size_text(sum(column))
        for column in zip(
            *(
                (n.weight_bytes, n.kv_cache_bytes, n.buffer_bytes, n.memory_bytes, n.node.memory_bytes)
                for n in plan.nodes
            ),
            strict=True,
        )
    ]
    rows = [_node_cells(node, spec) for node in plan.nodes]
    return _table([header, *rows, [str(cell) for cell in (*totals, *sums, "")]])


def links_table(plan: ClusterPlan) -> str:
    """One line a pair of nodes: kB for each token, both directions together, for both all-reduce algorithms."""
    rows = [["link", "kB/token direct", "kB/token reduce-scatter"]]
    for link in plan.links:
        sizes = (f"{size / 1000:.1f}" for size in (link.bytes.direct, link.bytes.reduce_scatter))
        rows.append([f"{link.first} - {link.second}", *sizes])
    return _table(rows)


def speed_lines(plan: ClusterPlan) -> list[str]:
    """What is predicted, one labelled line each."""
    exchanges = f", {1000 * plan.exchange_seconds:.1f} ms in {plan.n_exchanges} exchanges ({plan.algorithm.value})"
    return [
        f"decode       {plan.tokens_per_second:.2f} tokens/s: {1000 * plan.compute_seconds:.1f} ms computing"
        + (exchanges if plan.links else ""),
        f"prefill      {plan.prefill_tokens_per_second:.1f} tokens/s",
        *([f"slowest      {plan.bottleneck}"] if plan.links else []),
    ]


def _node_cells(node: NodePlan, spec: ModelSpec) -> list[str]:
    shard = node.shard
    parts = (shard.heads, shard.kv_heads(spec), shard.hidden, shard.vocab)
    counts = [str(len(span)) for span in parts]
    if shard.experts is not None:
        counts[2] = f"{len(shard.experts)} experts"
    sizes = (node.weight_bytes, node.kv_cache_bytes, node.buffer_bytes, node.memory_bytes, node.node.memory_bytes)
    return [
        node.node.name,
        *counts,
        *map(size_text, sizes),
        f"{1000 * node.decode_seconds:.1f}",
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
