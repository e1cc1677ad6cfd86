"""Which of the nodes to use: the search for the subset that is fastest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dllama_gpu.graph.collective import Network
from dllama_gpu.graph.division import DoesNotFitError, divide
from dllama_gpu.graph.load import Outline
from dllama_gpu.graph.plan import ClusterPlan, check_names, decode_seconds, plan_outlined
from dllama_gpu.graph.profile import LinkBetween, NodeProfile, PlanOptions
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec

_MOST_NODES_FOR_ALL_SUBSETS = 10
_BOUNDLESS = 10**18  # bytes

_Kept = tuple[int, ...]
"""The nodes of a subset by their numbers, the root, 0, first."""


def best_subset(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    nodes: Sequence[NodeProfile],
    links: LinkBetween,
    options: PlanOptions,
) -> ClusterPlan:
    """The plan with the shortest time per token among those that use the root and any of the other nodes.

    All subsets of up to 10 nodes are tried; of more, one node after the other is left out, always the one without
    which the rest is fastest. `options.ratio` plays no part. Raises DoesNotFitError when the model fits none
    of them.
    """
    check_names(nodes)
    outline = Outline(spec, tensors, options)
    return _Search(outline, Network.of(nodes, links), nodes, options, {}).result()


def best_subsets(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    nodes: Sequence[NodeProfile],
    links: LinkBetween,
    options: PlanOptions,
) -> tuple[ClusterPlan, ClusterPlan]:
    """`best_subset` of the nodes as they are, and as if their memory were endless."""
    check_names(nodes)
    outline, network = Outline(spec, tensors, options), Network.of(nodes, links)
    known: dict[_Kept, float] = {}
    # In this order: what the first learns without having met a limit holds for the second.
    best = _Search(outline, network, nodes, options, known).result()
    return best, _Search(outline, network, nodes, options, known, is_boundless=True).result()


class _Search:
    """Keeps the fastest subset found so far, and why the first that failed did.

    `known` holds seconds per token of subsets, as far as they do not depend on the nodes' memory; it grows. With
    `is_boundless` memory is endless and decides between equals only, so that both searches go the same way.
    """

    def __init__(
        self,
        outline: Outline,
        network: Network,
        nodes: Sequence[NodeProfile],
        options: PlanOptions,
        known: dict[_Kept, float],
        *,
        is_boundless: bool = False,
    ) -> None:
        self._outline = outline
        self._network = network
        self._nodes = [replace(node, memory_bytes=_BOUNDLESS) for node in nodes] if is_boundless else list(nodes)
        self._memory = [node.memory_bytes for node in nodes]
        self._options = replace(options, ratio=None)
        self._known = known
        self._best: _Kept = ()
        self._least = math.inf
        self._failure: DoesNotFitError | None = None

    def result(self) -> ClusterPlan:
        """The plan for the fastest subset. Raises DoesNotFitError."""
        everyone = tuple(range(len(self._nodes)))
        if len(everyone) <= _MOST_NODES_FOR_ALL_SUBSETS:
            for kept in _subsets(everyone[1:]):
                self._attempt((0, *kept))
        else:
            self._leave_out_one_by_one(everyone)
        if not self._best:
            assert self._failure is not None
            raise self._failure
        return plan_outlined(self._outline, *self._parts(self._best), self._options)

    def _leave_out_one_by_one(self, kept: _Kept) -> None:
        self._attempt(kept)
        while len(kept) > 1:
            smaller = [(*kept[:i], *kept[i + 1 :]) for i in range(1, len(kept))]
            # Where nothing fits, the node with the least memory goes: it may not even hold what all nodes hold.
            seconds = [self._attempt(fewer) for fewer in smaller]
            leaving = min(range(1, len(kept)), key=lambda i: (seconds[i - 1], self._memory[kept[i]]))
            kept = smaller[leaving - 1]

    def _attempt(self, kept: _Kept) -> float:
        """Seconds per token with these nodes, infinite when the model does not fit."""
        try:
            seconds = self._seconds(kept)
        except DoesNotFitError as failure:
            self._failure = self._failure or failure
            return math.inf
        if seconds <= self._least:  # of equals the smaller set
            self._best, self._least = kept, seconds
        return seconds

    def _seconds(self, kept: _Kept) -> float:
        if kept not in self._known:
            nodes, network = self._parts(kept)
            division = divide(self._outline, nodes)
            seconds = min(
                decode_seconds([self._outline.load(shard) for shard in shards], nodes, network, self._options.wire)
                for shards in division.ways
            )
            if division.is_bound_by_memory:
                return seconds
            self._known[kept] = seconds
        return self._known[kept]

    def _parts(self, kept: _Kept) -> tuple[list[NodeProfile], Network]:
        return [self._nodes[i] for i in kept], self._network.among(kept)


def _subsets(nodes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All of them, the whole first, so that the failure told is that of all nodes."""
    for size in range(len(nodes), -1, -1):
        yield from itertools.combinations(nodes, size)
