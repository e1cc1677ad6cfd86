"""Cutting a model into shares: as fast as possible within every node's memory."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.load import Outline, SegmentLoad
from dllama_gpu.graph.profile import NodeProfile
from dllama_gpu.graph.shard import BLOCK, Shard, Span, head_unit, split

_NOTHING = Span(0, 0)
_BISECTIONS = 60

Counts = list[int]
"""Units of one part that each node gets."""


class DoesNotFitError(DllamaError):
    """The nodes have too little memory for the model."""


@dataclass(frozen=True)
class Part:
    """Something that is cut: heads, hidden elements or rows of the vocabulary."""

    total: int
    unit: int
    load: SegmentLoad
    """All of it, on one node, in one step."""
    memory_bytes: int
    """All of it, on one node."""

    @property
    def n_units(self) -> int:
        """Pieces to hand out; the last may be smaller."""
        return -(-self.total // self.unit)

    @property
    def unit_memory(self) -> float:
        """Bytes that one unit takes."""
        return self.memory_bytes / self.n_units

    def unit_seconds(self, node: NodeProfile) -> float:
        """Decode time of one unit."""
        return self.load.decode_bytes / self.n_units / node.bytes_per_second

    def spans(self, counts: Counts) -> list[Span]:
        """The units of each node, one node's behind the other's."""
        ends = [0]
        for count in counts:
            ends.append(min(ends[-1] + count * self.unit, self.total))
        return [Span(begin, end) for begin, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Division:
    """Ways to cut a model, each with the nodes' shards by rank."""

    ways: list[tuple[Shard, ...]]
    is_bound_by_memory: bool
    """Whether more memory would give other ways."""


def divide(outline: Outline, nodes: Sequence[NodeProfile]) -> Division:
    """Ways to cut the model for `nodes` that respect their memory, the root first; the best is among them.

    Each part is balanced for itself, since all nodes wait for each other behind each of them. Heads are cut anywhere
    and, where there are enough of them, at whole groups of a KV head. Every expert is cut like a feed-forward part, or
    experts are handed out whole in the same proportion.

    Raises DoesNotFitError saying how much memory is missing when there is no way.
    """
    spec = outline.spec
    unit = head_unit(spec)
    grouped = math.lcm(unit, spec.n_heads // spec.n_kv_heads)
    units = [unit] if unit == grouped or spec.n_heads < grouped * len(nodes) else [unit, grouped]
    cutters = [_Cutter(outline, nodes, heads) for heads in units]
    cutters[0].check_bare_nodes()
    for method in (_Cutter.by_speed, _Cutter.by_memory):
        found = [shards for cutter in cutters if (shards := method(cutter)) is not None]
        if found:
            whole = [way for shards in found for way in _whole_experts(outline, nodes, shards)]
            fitting = [way for way in whole if _fits(outline, nodes, way)]
            is_bound = any(cutter.met_a_limit for cutter in cutters) or len(fitting) < len(whole)
            return Division(found + fitting, is_bound)
    raise cutters[0].out_of_memory()


def _whole_experts(
    outline: Outline, nodes: Sequence[NodeProfile], shards: tuple[Shard, ...]
) -> Iterator[tuple[Shard, ...]]:
    """The same shares with whole experts, handed out by speed or as `shards` has cut them."""
    spec = outline.spec
    if len(nodes) == 1 or not spec.architecture.has_experts:
        return
    for ratio in ([node.bytes_per_second for node in nodes], [float(len(shard.hidden)) for shard in shards]):
        yield tuple(
            replace(shard, hidden=Span(0, spec.ffn_dim), experts=experts)
            for shard, experts in zip(shards, split(spec.n_experts, 1, ratio), strict=True)
        )


def _fits(outline: Outline, nodes: Sequence[NodeProfile], shards: tuple[Shard, ...]) -> bool:
    return all(outline.load(shard).memory_bytes <= node.memory_bytes for node, shard in zip(nodes, shards, strict=True))


def fill(n_units: int, first: Sequence[float], each: Sequence[float], limits: Sequence[int]) -> Counts | None:
    """Hands out units so that the last node to finish finishes as early as possible.

    Node i is done with k units at first[i] + k·each[i] and takes at most limits[i]. Of equals the earlier gets the unit
    left over. None when the limits are too narrow.
    """
    if sum(limits) < n_units:
        return None

    def done_at(time: float) -> Counts:
        pairs = zip(first, each, limits, strict=True)
        return [min(limit, max(0, math.floor((time - start) / step))) for start, step, limit in pairs]

    alone = [(limit >= n_units, start + step * n_units) for start, step, limit in zip(first, each, limits, strict=True)]
    early, late = 0.0, min((time for can_do_all, time in alone if can_do_all), default=max(time for _, time in alone))
    counts = done_at(early)
    for _ in range(_BISECTIONS):
        if n_units - sum(counts) <= len(counts):  # these go one by one
            break
        middle = (early + late) / 2
        tried = done_at(middle)
        if sum(tried) <= n_units:
            early, counts = middle, tried
        else:
            late = middle
    queue = [(first[i] + (counts[i] + 1) * each[i], each[i], i) for i in range(len(counts)) if counts[i] < limits[i]]
    heapq.heapify(queue)
    for _ in range(n_units - sum(counts)):
        _, step, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < limits[i]:
            heapq.heappush(queue, (first[i] + (counts[i] + 1) * step, step, i))
    return counts


class _Cutter:
    """One way of cutting heads, and the nodes to cut for."""

    def __init__(self, outline: Outline, nodes: Sequence[NodeProfile], heads_unit: int) -> None:
        spec = outline.spec
        self.outline = outline
        self.nodes = nodes
        attention, feed_forward, head = outline.part_loads()
        self.heads = self.part(spec.n_heads, heads_unit, attention, self.shard(1, heads=Span(0, spec.n_heads)))
        self.hidden = self.part(spec.ffn_dim, BLOCK, feed_forward, self.shard(1, hidden=Span(0, spec.ffn_dim)))
        self.vocab = self.part(spec.vocab_size, BLOCK, head, self.shard(1, vocab=Span(0, spec.vocab_size)))
        self.parts = (self.heads, self.hidden, self.vocab)
        self.met_a_limit = False

    def part(self, total: int, unit: int, load: SegmentLoad, all_of_it: Shard) -> Part:
        return Part(total, unit, load, self.memory(all_of_it) - self.memory(self.shard(1)))

    def shard(self, rank: int, heads: Span = _NOTHING, hidden: Span = _NOTHING, vocab: Span = _NOTHING) -> Shard:
        return Shard(rank, max(2, len(self.nodes)), heads, hidden, vocab)

    def shards(self, counts: Sequence[Counts]) -> tuple[Shard, ...]:
        cut = (part.spans(units) for part, units in zip(self.parts, counts, strict=True))
        return tuple(Shard(rank, len(self.nodes), *spans) for rank, spans in enumerate(zip(*cut, strict=True)))

    def memory(self, shard: Shard) -> int:
        return self.outline.load(shard).memory_bytes

    def room(self, shards: Sequence[Shard]) -> list[int]:
        """Bytes that each node has left, below 0 where its share does not fit."""
        return [node.memory_bytes - self.memory(shard) for node, shard in zip(self.nodes, shards, strict=True)]

    def by_speed(self) -> tuple[Shard, ...] | None:
        """Shares in proportion to speed; what does not fit a node goes to the others. None when they cannot take it."""
        limits = [[part.n_units for part in self.parts] for _ in self.nodes]
        while True:
            counts: list[Counts] = []
            for number, part in enumerate(self.parts):
                balanced = self.balanced(part, [of_node[number] for of_node in limits])
                if balanced is None:
                    return None
                counts.append(balanced)
            shards = self.shards(counts)
            room = self.room(shards)
            if min(room) >= 0:
                return shards
            self.met_a_limit = True
            for i, left in enumerate(room):
                if left < 0:
                    limits[i] = self.lowered(i, limits[i], [of_part[i] for of_part in counts], -left)

    def balanced(self, part: Part, limits: Sequence[int]) -> Counts | None:
        fixed = [part.load.n_ops * node.op_seconds for node in self.nodes]
        return fill(part.n_units, fixed, [part.unit_seconds(node) for node in self.nodes], limits)

    def lowered(self, i: int, limits: Sequence[int], counts: Sequence[int], excess: int) -> list[int]:
        """New limits of node i, whose share is `excess` bytes too large; one at least is lower.

        At first all parts are lowered alike and hidden elements, which are cut finely, fill what rounding leaves. Where
        that was still too much, hidden elements alone make room as long as there are any.
        """
        heads, hidden, vocab = counts
        once_lowered = limits[0] < self.heads.n_units
        too_many = math.ceil(excess / self.hidden.unit_memory)
        if hidden >= too_many and (once_lowered or heads == vocab == 0):
            return [limits[0], hidden - too_many, limits[2]]
        budget = self.budget(i)
        scale = budget / (budget + excess)
        heads, vocab = math.floor(heads * scale), math.floor(vocab * scale)
        left = budget - heads * self.heads.unit_memory - vocab * self.vocab.unit_memory
        return [heads, min(limits[1], max(0, math.floor(left / self.hidden.unit_memory))), vocab]

    def budget(self, i: int) -> int:
        """Bytes of node i beside what it holds without any share."""
        return self.nodes[i].memory_bytes - self.memory(self.shard(i))

    def by_memory(self) -> tuple[Shard, ...] | None:
        """Shares in proportion to memory, coarse units first, for what only just fits. None when it does not."""
        room = [self.budget(i) for i in range(len(self.nodes))]
        heads = self.fitting_heads(room)
        if heads is None:
            return None
        room = self.room(self.shards([heads, [0] * len(room), [0] * len(room)]))
        vocab = self.by_room(self.vocab, room)
        if vocab is None:
            return None
        room = self.room(self.shards([heads, [0] * len(room), vocab]))
        hidden = self.by_room(self.hidden, room)
        if hidden is None:
            return None
        shards = self.shards([heads, hidden, vocab])
        return shards if min(self.room(shards)) >= 0 else None

    def fitting_heads(self, room: Sequence[int]) -> Counts | None:
        """Heads by room, with the KV heads that a cut group puts on both sides."""
        limits = self.limits(self.heads, room)
        nothing = [0] * len(room)
        while (counts := self.by_room(self.heads, room, limits)) is not None:
            left = self.room(self.shards([counts, nothing, nothing]))
            if min(left) >= 0:
                break
            limits = [counts[i] - 1 if left[i] < 0 else limits[i] for i in range(len(left))]
        return counts

    def limits(self, part: Part, room: Sequence[int]) -> list[int]:
        return [min(part.n_units, max(0, math.floor(left / part.unit_memory))) for left in room]

    def by_room(self, part: Part, room: Sequence[int], limits: Sequence[int] | None = None) -> Counts | None:
        each = [1.0 / max(left, 1) for left in room]
        return fill(part.n_units, [0.0] * len(room), each, self.limits(part, room) if limits is None else limits)

    def check_bare_nodes(self) -> None:
        """Raises DoesNotFitError for a node that cannot even hold what all nodes hold."""
        for i, node in enumerate(self.nodes):
            if (short := -self.budget(i)) > 0:
                raise DoesNotFitError(
                    f"{node.name} has {size_text(node.memory_bytes)} of memory, {size_text(short)} less than a node "
                    "needs before it gets any share; leave it out"
                )

    def out_of_memory(self) -> DoesNotFitError:
        """Says by how much the memory of all nodes together is too small, or that it is only too scattered."""
        available = sum(node.memory_bytes for node in self.nodes)
        bare = available - sum(map(self.budget, range(len(self.nodes))))
        needed = bare + sum(part.memory_bytes for part in self.parts)
        names = self.nodes[0].name if len(self.nodes) == 1 else f"these {len(self.nodes)} nodes"
        way_out = "add a node, or lower --max-seq-len or --slots"
        if needed > available:
            return DoesNotFitError(
                f"the model needs {size_text(needed)} (weights, KV cache, activations), but {names} can give "
                f"{size_text(available)}: {size_text(needed - available)} are missing; {way_out}"
            )
        return DoesNotFitError(
            f"the model needs {size_text(needed)} of the {size_text(available)} that {names} can give, but cannot be "
            f"cut to fit so closely; {way_out}"
        )


def size_text(n_bytes: float) -> str:
    """A size for messages: `4.71 GB`, `530.0 MB`, `8.5 kB`."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
