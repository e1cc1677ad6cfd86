"""Which part of a model a node computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.spec import ModelSpec

BLOCK = 32  # columns of a quantized matrix are cut at whole blocks


@dataclass(frozen=True)
class Span:
    """The half-open range [begin, end)."""

    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Shard:
    """One node's share of every layer and of the head; any part may be empty.

    `heads` are query heads, `hidden` elements of the feed-forward part, or of every expert that is among `experts`
    (None: all of them), `vocab` rows of the head.
    """

    rank: int
    n_nodes: int
    heads: Span
    hidden: Span
    vocab: Span
    experts: Span | None = None

    @property
    def has_feed_forward(self) -> bool:
        """Whether the node computes any of the feed-forward parts."""
        return bool(self.hidden) and (self.experts is None or bool(self.experts))

    def experts_of(self, spec: ModelSpec) -> Span:
        """Experts that the node computes, of all or a part of their elements."""
        return Span(0, spec.n_experts) if self.experts is None else self.experts

    def kv_heads(self, spec: ModelSpec) -> Span:
        """KV heads that the node's query heads read; neighbours share one where a group is cut."""
        if not self.heads:
            return Span(0, 0)
        group = spec.n_heads // spec.n_kv_heads
        return Span(self.heads.begin // group, (self.heads.end - 1) // group + 1)


def whole(spec: ModelSpec) -> Shard:
    """Everything, on one node."""
    return Shard(0, 1, Span(0, spec.n_heads), Span(0, spec.ffn_dim), Span(0, spec.vocab_size))


def split(total: int, unit: int, ratio: Sequence[float]) -> tuple[Span, ...]:
    """Cuts [0, total) into one span a ratio, as near to proportional as whole units allow (largest remainder).

    Every span but the last non-empty one is a multiple of `unit`. Raises DllamaError unless the ratios are finite, not
    negative and not all zero.
    """
    if not ratio or any(not math.isfinite(share) or share < 0 for share in ratio) or sum(ratio) <= 0:
        raise DllamaError(f"shares must be numbers from 0 up, at least one above 0, not {list(ratio)}")
    n_units = -(-total // unit)
    # Scaled first: the sum of huge shares could overflow.
    largest = max(ratio)
    scaled = [share / largest for share in ratio]
    exact = [share / sum(scaled) * n_units for share in scaled]
    units = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(ratio)), key=lambda i: (units[i] - exact[i], i))
    # Rounding may leave one unit more than there are nodes with a share: go round again.
    able = [i for i in by_remainder if ratio[i] > 0]
    for turn in range(n_units - sum(units)):
        units[able[turn % len(able)]] += 1
    spans, begin = [], 0
    for count in units:
        end = min(begin + count * unit, total)
        spans.append(Span(begin, end))
        begin = end
    return tuple(spans)


def head_unit(spec: ModelSpec) -> int:
    """The fewest neighbouring query heads whose columns are whole quantization blocks."""
    return math.lcm(spec.head_dim, BLOCK) // spec.head_dim


def shard_by_ratio(spec: ModelSpec, ratio: Sequence[float]) -> tuple[Shard, ...]:
    """Shards of one node each, in the order of `ratio`, for heads, hidden elements and vocabulary alike.

    Query heads are handed out in numbers whose columns are whole quantization blocks; a model with fewer such units
    than nodes leaves some nodes without heads.
    """
    heads = split(spec.n_heads, head_unit(spec), ratio)
    hidden = split(spec.ffn_dim, BLOCK, ratio)
    vocab = split(spec.vocab_size, BLOCK, ratio)
    n_nodes = len(ratio)
    return tuple(Shard(rank, n_nodes, heads[rank], hidden[rank], vocab[rank]) for rank in range(n_nodes))
