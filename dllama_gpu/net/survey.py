"""The ways between all nodes of a session: measuring them, and who stays where two nodes cannot reach each other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.profile import Link
from dllama_gpu.net.cluster_program import Worker
from dllama_gpu.net.links import measure_link
from dllama_gpu.net.loading import wait_patiently
from dllama_gpu.net.messages import LinkReport, MeasureLink, printable

_ROOT = 0


@dataclass(frozen=True)
class Missing:
    """The way from node `first` to node `second` (ranks) that could not be measured, and why.

    A node that no longer answers at all has no way to itself.
    """

    first: int
    second: int
    sentence: str


@dataclass(frozen=True)
class Survey:
    """The ways that were measured, by the ranks of their ends, the lower first, and those that are not there."""

    links: dict[tuple[int, int], Link]
    missing: list[Missing]


def survey(workers: Sequence[Worker]) -> Survey:
    """Measures the ways between the root and `workers`, whose ranks are 1, 2, …, and among these.

    Ways that have no machine in common are measured at the same time.
    """
    machines = [_ROOT, *map(_machine, workers)]
    found = Survey({}, [])
    gone: set[int] = set()
    for together in rounds(machines):
        pairs = [pair for pair in together if gone.isdisjoint(pair)]
        with ThreadPoolExecutor(max(len(pairs), 1)) as pool:
            outcomes = list(pool.map(lambda pair: _measure(workers, *pair), pairs))
        for pair, outcome in zip(pairs, outcomes, strict=True):
            if isinstance(outcome, Link):
                found.links[pair] = outcome
            else:
                found.missing.append(outcome)
                if outcome.first == outcome.second:
                    gone.add(outcome.second)
    return found


def rounds(machines: Sequence[object]) -> list[list[tuple[int, int]]]:
    """All pairs of nodes, node i on `machines[i]`, in rounds: within one, no machine has to do with two pairs."""
    left = list(itertools.combinations(range(len(machines)), 2))
    found = []
    while left:
        together: list[tuple[int, int]] = []
        busy: set[object] = set()
        for pair in left:
            used = {machines[node] for node in pair}
            if busy.isdisjoint(used):
                together.append(pair)
                busy |= used
        found.append(together)
        left = [pair for pair in left if pair not in together]
    return found


def left_out(missing: Sequence[Missing]) -> dict[int, list[Missing]]:
    """The nodes to do without, each with the ways that it misses, so that every two of the others reach each other.

    Those that no longer answer go; then, as long as a way is missing, the node with the most missing ways, of equals
    the one that others cannot reach.
    """
    leaving = {way.second: [way] for way in missing if way.first == way.second}
    while ways := [way for way in missing if leaving.keys().isdisjoint((way.first, way.second))]:
        n_missing = Counter(node for way in ways for node in (way.first, way.second))
        n_unreached = Counter(way.second for way in ways)
        worst = max(n_missing, key=lambda node: (n_missing[node], n_unreached[node]))
        leaving[worst] = [way for way in ways if worst in (way.first, way.second)]
    return leaving


def explain(name: str, ways: Sequence[Missing]) -> str:
    """Why the worker `name` is one of those to do without."""
    if ways[0].first == ways[0].second:
        return ways[0].sentence
    others = f"; so it is with {len(ways) - 1} more" if len(ways) > 1 else ""
    return f"{name} cannot take part: {ways[0].sentence}{others}"


def _machine(worker: Worker) -> object:
    try:
        return _ROOT if worker.is_on_this_machine else worker.host
    except DllamaError:  # it is gone, which the measurement will find
        return worker


def _measure(workers: Sequence[Worker], first: int, second: int) -> Link | Missing:
    target = workers[second - 1]
    if first == _ROOT:
        try:
            return measure_link(target.channel)
        except DllamaError as error:
            return Missing(second, second, str(error))
    asked = workers[first - 1]
    try:
        host, port = target.reachable_at()
    except DllamaError as error:
        return Missing(second, second, str(error))
    try:
        asked.channel.send(MeasureLink(host, port))
        report = wait_patiently(asked.channel, LinkReport)
    except DllamaError as error:
        return Missing(first, first, str(error))
    if report.link is not None:
        return report.link
    return Missing(first, second, f"{asked.name} cannot reach {target.name}: {printable(report.failure)}")
