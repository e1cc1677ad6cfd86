"""Results of the cluster benchmark as Markdown."""

from __future__ import annotations

import statistics

from benchmarks.cluster_findings import ClusterResults, ExchangeFinding, original_bytes_per_token
from benchmarks.findings import PHASES, Spread, rate
from benchmarks.report import spread_text, table


def markdown(results: ClusterResults) -> str:
    """The whole report; `benchmarks/METHODOLOGY.md` says what its numbers mean."""
    machine = results.machine
    load = "" if machine.load_average is None else f", load average {machine.load_average:.2f} before the run"
    heading = [
        f"# {results.date}, clusters on {machine.processor}",
        "",
        f"{machine.n_processors} processors; {machine.system}, Python {machine.python}; commit {machine.commit}{load}.",
        "All nodes are processes of this one machine. Method: `benchmarks/METHODOLOGY.md`.",
    ]
    parts = ["\n".join(heading), _traffic(results), _all_reduces(results), _tokens(results)]
    if results.rounds:
        parts += [_speed(results), _start(results)]
    return "\n\n".join(parts) + "\n"


def _traffic(results: ClusterResults) -> str:
    rows = []
    for finding in results.exchanges:
        job = finding.job
        if job.whole_token and finding.network == "loopback":
            original = original_bytes_per_token(finding.n_nodes, job.width, job.n_layers)
            others = finding.bytes_sent[1:]
            rows.append(
                [
                    str(finding.n_nodes),
                    job.algorithm,
                    f"{finding.bytes_sent[0] / 1e3:.0f}",
                    f"{statistics.fmean(others) / 1e3:.0f}",
                    f"{original / 1e3:.0f}",
                    f"**{statistics.fmean(finding.bytes_sent) / original:.2f}**",
                ]
            )
    header = ["nodes", "all-reduce", "root sends, kB", "a worker sends, kB", "distributed-llama, kB", "ratio"]
    return (
        "## Bytes per token\n\nDim 4096, 32 layers (Llama 3.1 8B), Q80, one row. What distributed-llama's nodes send "
        "is computed: (n − 1) times a row, twice a layer.\n\n" + table(header, rows)
    )


def _all_reduces(results: ClusterResults) -> str:
    rows = [
        [
            finding.network,
            str(finding.n_nodes),
            str(finding.job.n_rows),
            finding.job.algorithm,
            f"{1e6 * finding.median_seconds:.0f}",
            f"{1e6 * finding.mean_seconds:.0f}",
            f"{1e6 * _percentile(finding, 90):.0f}",
        ]
        for finding in results.exchanges
        if not finding.job.whole_token
    ]
    header = ["network", "nodes", "rows", "all-reduce", "median, µs", "mean, µs", "90th percentile, µs"]
    return (
        f"## One all-reduce\n\nRows of 4096 numbers in Q80. The slow network has 1 Gb/s and a round trip of 0.3 ms "
        f"({results.slow_network}). More nodes than processors take turns.\n\n" + table(header, rows)
    )


def _tokens(results: ClusterResults) -> str:
    rows = [
        [finding.network, str(finding.n_nodes), finding.job.algorithm, f"{1e3 * finding.median_seconds:.2f}"]
        for finding in results.exchanges
        if finding.job.whole_token
    ]
    return "## All exchanges of a token\n\nThe same model.\n\n" + table(
        ["network", "nodes", "all-reduce", "median, ms"], rows
    )


def _speed(results: ClusterResults) -> str:
    settings, rows = results.settings, []
    for phase in PHASES:
        alone = [rate(one.alone, phase, settings) for one in results.rounds]
        two = [rate(one.warm.measurement, phase, settings) for one in results.rounds]
        gain = Spread.of(b / a for a, b in zip(alone, two, strict=True))
        expected = [one.warm.expected_tokens_per_second for one in results.rounds]
        reached = Spread.of(b / e for b, e in zip(two, expected, strict=True))
        rows.append(
            [
                phase,
                f"{statistics.median(alone):.1f}",
                f"{statistics.median(two):.1f}",
                f"**{gain.median:.2f}** ({spread_text(gain)})",
                f"{statistics.median(expected):.1f}" if phase == "decode" else "–",
                f"{reached.median:.2f} ({spread_text(reached)})" if phase == "decode" else "–",
            ]
        )
    header = ["phase", "1 node, tokens/s", "2 nodes, tokens/s", "gain", "expected", "reached / expected"]
    latency, jitter = (
        statistics.median(1e6 * getattr(one.warm, name) for one in results.rounds)
        for name in ("link_latency_seconds", "link_jitter_seconds")
    )
    return (
        f"## {results.model} on one and two nodes\n\nOne thread a node, equal shares, loopback, Q4_0 weights, Q80 "
        f"exchanges; prompt of {settings.prompt_tokens} tokens, then {settings.decode_tokens} one by one. The planner "
        f"measured a latency of {latency:.0f} µs and a jitter of {jitter:.0f} µs.\n\n" + table(header, rows)
    )


def _start(results: ClusterResults) -> str:
    rows = []
    for name in ("cold", "warm"):
        found = [getattr(one, name) for one in results.rounds]
        rows.append(
            [
                name,
                f"{statistics.median(one.connect_seconds for one in found):.2f}",
                f"{statistics.median(one.load_seconds for one in found):.2f}",
                f"{statistics.median(one.sent_bytes for one in found) / 2**20:.0f}",
            ]
        )
    return (
        "## Start\n\nThe same, the second node's cache and the root's memory of hashes first empty, then full.\n\n"
        + table(["caches", "connect and measure, s", "load, s", "weights sent, MiB"], rows)
    )


def _percentile(finding: ExchangeFinding, percent: int) -> float:
    return statistics.quantiles(finding.seconds, n=100)[percent - 1]
