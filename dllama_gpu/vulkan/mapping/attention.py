"""What has to do with positions as dispatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dllama_gpu.graph.graph import (
    Attention,
    BufferType,
    KvCache,
    RopeAngles,
    RopeStore,
)
from dllama_gpu.model.spec import RopeStyle
from dllama_gpu.vulkan import tuning as tune
from dllama_gpu.vulkan.dispatch import Dispatch, words
from dllama_gpu.vulkan.mapping.surroundings import (
    CACHE_NUMBERS,
    RowCounts,
    Surroundings,
    out_mode,
    units_of,
)
from dllama_gpu.vulkan.tuning import Tuning


def rope_angles(op: RopeAngles, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """Cosines and sines of the rows' positions."""
    out, n = around.activations[op.out], len(op.frequencies)
    lanes = around.tuning.plain_lanes
    yield Dispatch(
        "rope_angles",
        (lanes,),
        (around.step, around.frequencies[op.frequencies], out.values("w")),
        words(n, out.stride, float(op.scale)),
        (-(-n // lanes), counts.all, 1),
    )


def rope_store(op: RopeStore, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """RopeStore; a workgroup for each head of a row."""
    qkv, cache = around.activations[op.qkv], around.caches[op.cache]
    angles = around.activations[op.angles] if op.angles is not None else qkv
    names = vectors_of(op)
    features = op.angles is not None, op.biases is not None, op.norms is not None
    keys, key_scales = around.cache(op.cache, "keys", "w")
    values, value_scales = around.cache(op.cache, "values", "w")
    yield Dispatch(
        "rope_store",
        (
            around.tuning.plain_lanes,
            int(op.style is RopeStyle.HALF_SPLIT),
            *map(int, features),
            cache.head_dim,
            CACHE_NUMBERS[cache.type],
        ),
        (
            around.step,
            qkv.values("rw"),
            angles.values(),
            keys,
            values,
            around.vectors[names] if names else around.step,
            key_scales,
            value_scales,
        ),
        words(
            op.n_heads,
            cache.n_kv_heads,
            cache.head_dim,
            qkv.stride,
            angles.stride,
            around.seq_len,
            float(op.epsilon),
        ),
        (op.n_heads + 2 * cache.n_kv_heads, counts.all, 1),
    )


def vectors_of(op: RopeStore) -> tuple[str, ...]:
    """Weights that the shader wants one behind the other: biases of q, k and v, norms of q and k; what there is."""
    return (*(op.biases or ()), *(op.norms or ()))


def attention(op: Attention, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """Attention: parts of the positions side by side where rows and heads are few, then their sum."""
    qkv, out, cache = around.activations[op.qkv], around.activations[op.out], around.caches[op.cache]
    tuning, n_rows = around.tuning, counts.all
    plan = _attention_plan(op, cache, tuning, n_rows, around.seq_len)
    blocks_cross_heads = out.type is BufferType.Q80 and cache.head_dim % 32 != 0
    into = around.scratch["attended"] if blocks_cross_heads else out
    push = words(
        op.n_heads,
        cache.n_kv_heads,
        op.group,
        op.first_head,
        cache.head_dim,
        qkv.stride,
        around.seq_len,
        plan.n_splits,
        tuning.min_split,
        into.row_words,
        float(op.scale),
        op.window or around.seq_len,
    )
    splits = plan.n_splits > 1
    partials = around.scratch["partials"] if splits else into
    keys, key_scales = around.cache(op.cache, "keys", "r")
    values, value_scales = around.cache(op.cache, "values", "r")
    yield Dispatch(
        "attention",
        (plan.lanes, out_mode(into), plan.heads, plan.head_units, int(splits), CACHE_NUMBERS[cache.type]),
        (
            around.step,
            qkv.values(),
            keys,
            values,
            partials.values("w"),
            partials.scales("w"),
            key_scales,
            value_scales,
        ),
        push,
        (plan.n_splits, plan.n_groups, n_rows),
        work=2 * n_rows * op.n_heads * cache.head_dim * min(around.seq_len, op.window or around.seq_len),
    )
    if splits:
        lanes = max(8, min(64, plan.lanes))
        yield Dispatch(
            "attention_merge",
            (lanes, out_mode(into), plan.head_units),
            (around.step, partials.values(), into.values("w"), into.scales("w")),
            push,
            (op.n_heads, n_rows, 1),
        )
    if blocks_cross_heads:
        lanes = tuning.plain_lanes
        yield Dispatch(
            "quantize",
            (lanes, out_mode(out)),
            (around.step, into.values(), out.values("w"), out.scales("w")),
            words(out.width, into.stride // 4, out.row_words),
            (-(-out.width // (4 * lanes)), n_rows, 1),
        )


def attention_partials(op: Attention, cache: KvCache, tuning: Tuning, n_rows: int, seq_len: int) -> int:
    """Numbers a row that the parts of attention leave behind; 0 when positions are not cut into parts."""
    n_splits = _attention_plan(op, cache, tuning, n_rows, seq_len).n_splits
    return 0 if n_splits == 1 else op.n_heads * n_splits * (cache.head_dim + 2)


@dataclass(frozen=True)
class _AttentionPlan:
    lanes: int
    heads: int
    head_units: int
    n_groups: int  # workgroups for each row and part
    n_splits: int


def _attention_plan(op: Attention, cache: KvCache, tuning: Tuning, n_rows: int, seq_len: int) -> _AttentionPlan:
    head_units = units_of(cache.head_dim)
    lanes = tune.attention_lanes(tuning, head_units)
    heads = tune.attention_heads(tuning, min(op.group, op.n_heads), head_units, lanes)
    n_groups = cache.n_kv_heads * -(-op.group // heads)
    n_splits = tune.attention_splits(tuning, n_groups * n_rows, seq_len)
    return _AttentionPlan(lanes, heads, head_units, n_groups, n_splits)
