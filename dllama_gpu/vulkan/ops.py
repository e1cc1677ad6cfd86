"""Graph ops as dispatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dllama_gpu.graph.graph import Activation as GateActivation
from dllama_gpu.graph.graph import (
    Attention,
    BufferType,
    CacheType,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TopCandidates,
    TopExperts,
)
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import RopeStyle
from dllama_gpu.vulkan import tuning as tune
from dllama_gpu.vulkan.activations import Activation, round_up
from dllama_gpu.vulkan.dispatch import Access, Binding, Dispatch, long_grid, words
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.tuning import Tuning
from dllama_gpu.vulkan.weights import PackedMatrix

_TYPE_NUMBERS = {  # as in shaders/weight.glsl
    FloatType.F32: 0,
    FloatType.F16: 1,
    FloatType.BF16: 2,
    FloatType.Q40: 3,
    FloatType.Q41: 4,
    FloatType.Q80: 5,
}
_CACHE_NUMBERS = {CacheType.F16: 0, CacheType.Q80: 1, CacheType.F32: 2}  # as in shaders/kv_cache.glsl
_F32, _ROUNDED, _Q80 = 0, 1, 2  # as in shaders/q80.glsl
CANDIDATE_LIST = 1024
CANDIDATE_WINDOW = 256


@dataclass(frozen=True)
class Surroundings:
    """What ops of a graph refer to by name."""

    tuning: Tuning
    activations: dict[str, Activation]
    rows: dict[str, Rows]
    matrices: dict[str, PackedMatrix]
    """By weight name; gate and up of a GatedMatmul that fit together are one, under `gated_name`."""
    vectors: dict[tuple[str, ...], Binding]
    """Norms and biases by weight names: those that a shader wants together are one."""
    frequencies: dict[tuple[float, ...], Binding]
    caches: dict[str, KvCache]
    seq_len: int
    """Padded, positions that a slot of the cache has room for."""
    n_slots: int
    step: Binding
    scratch: dict[str, Activation]

    def cache(self, name: str, half: str, access: Access) -> tuple[Binding, Binding]:
        """Keys or values of a layer, and their scales; without scales, which shaders then leave alone, twice."""
        cache, allocation = self.caches[name], f"{name}.{half}"
        n_elements = _cache_elements(cache, self.n_slots, self.seq_len)
        if cache.type is not CacheType.Q80:
            everything = Binding(allocation, 0, n_elements * (2 if cache.type is CacheType.F16 else 4), access)
            return everything, everything
        return Binding(allocation, 0, n_elements, access), Binding(allocation, n_elements, n_elements // 8, access)


@dataclass(frozen=True)
class RowCounts:
    """Rows to record for; steps with fewer use the recording too."""

    all: int
    logits: int

    def of(self, rows: Rows) -> int:
        """Those of a buffer."""
        return self.logits if rows is Rows.LOGITS else self.all


def dispatches(op: Op, around: Surroundings, counts: RowCounts) -> list[Dispatch]:
    """What computes an op; nothing when it has no rows."""
    return list(_MAPPERS[type(op)](op, around, counts))


def vectors_of(op: RopeStore) -> tuple[str, ...]:
    """Weights that the shader wants one behind the other: biases of q, k and v, norms of q and k; what there is."""
    return (*(op.biases or ()), *(op.norms or ()))


def gated_name(op: GatedMatmul | ExpertGatedMatmul) -> str:
    """Key of gate and up together in `Surroundings.matrices`."""
    return f"{op.gate}+{op.up}"


def cache_bytes(cache: KvCache, n_slots: int, seq_len: int) -> int:
    """Bytes of the keys, or of the values, of a layer; shaders/kv_cache.glsl."""
    n_elements = _cache_elements(cache, n_slots, seq_len)
    return {
        CacheType.F16: 2 * n_elements,
        CacheType.F32: 4 * n_elements,
        CacheType.Q80: n_elements + n_elements // 8,
    }[cache.type]


def attention_partials(op: Attention, cache: KvCache, tuning: Tuning, n_rows: int, seq_len: int) -> int:
    """Numbers a row that the parts of attention leave behind; 0 when positions are not cut into parts."""
    n_splits = _attention_plan(op, cache, tuning, n_rows, seq_len).n_splits
    return 0 if n_splits == 1 else op.n_heads * n_splits * (cache.head_dim + 2)


def n_slices(n_logits: int, tuning: Tuning) -> int:
    """Slices of a row of logits that workgroups look through."""
    return -(-n_logits // tuning.slice_size)


def _embed(op: Embed, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    matrix, out, lanes = around.matrices[op.weight], around.activations[op.out], around.tuning.plain_lanes
    for shard in matrix.shards(around.tuning.limits.max_range):
        yield Dispatch(
            "embed",
            (lanes, _TYPE_NUMBERS[matrix.float_type]),
            (around.step, shard.units, shard.scales, out.values("w")),
            words(shard.first_row, shard.n_rows, matrix.n_units, out.width, out.stride, float(op.scale)),
            (-(-matrix.n_units // lanes), counts.all, 1),
        )


def _rope_angles(op: RopeAngles, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    out, n = around.activations[op.out], len(op.frequencies)
    lanes = around.tuning.plain_lanes
    yield Dispatch(
        "rope_angles",
        (lanes,),
        (around.step, around.frequencies[op.frequencies], out.values("w")),
        words(n, out.stride, float(op.scale)),
        (-(-n // lanes), counts.all, 1),
    )


def _rms_norm(op: RmsNorm, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    x, out = around.activations[op.x], around.activations[op.out]
    add = around.activations[op.add] if op.add is not None else x
    n_rows = counts.of(around.rows[op.out])
    if not n_rows:
        return
    of_logits = around.rows[op.out] is Rows.LOGITS
    gathers = of_logits and around.rows[op.x] is Rows.ALL
    lanes = around.tuning.sum_lanes
    yield Dispatch(
        _by_tier("rms_norm", around.tuning),
        (lanes, _out_mode(out), int(op.add is not None), int(of_logits), int(gathers)),
        (
            around.step,
            x.values("rw"),
            add.values(),
            around.vectors[op.weight,],
            out.values("w"),
            out.scales("w"),
        ),
        words(x.width, x.stride // 4, add.stride // 4, out.row_words, float(op.epsilon)),
        (n_rows, 1, 1),
    )


def _matmul(op: Matmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    x, out = around.activations[op.x], around.activations[op.out]
    rows = around.rows[op.out]
    yield from _multiply(around, x, around.matrices[op.weight], out, op.out_column, rows, counts.of(rows))


def _multiply(
    around: Surroundings,
    x: Activation,
    matrix: PackedMatrix,
    out: Activation,
    out_column: int,
    rows: Rows,
    n_rows: int,
) -> Iterator[Dispatch]:
    if not n_rows:
        return
    tuning, type = around.tuning, _TYPE_NUMBERS[matrix.float_type]
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    together = tune.matvec_rows(tuning, n_rows)
    for shard in matrix.shards(tuning.limits.max_range):
        push = words(shard.n_rows, matrix.n_units, x_stride, out.stride, out_column + shard.first_row)
        if together is not None:
            shape = tune.matvec(tuning, shard.n_rows, matrix.n_units, together)
            yield Dispatch(
                "matvec_dot" if dot else _by_tier("matvec", tuning),
                (shape.workgroup, type, shape.team, shape.rows, together),
                (shard.units, shard.scales, *inputs, out.values("w")),
                push,
                long_grid(-(-shard.n_rows // (shape.workgroup // shape.team * shape.rows)), n_rows // together),
            )
        else:
            tile = tune.tile(tuning, dot, n_rows)
            yield Dispatch(
                "matmul_dot" if dot else "matmul",
                (*_tile_constants(tile, type), _F32, int(rows is Rows.LOGITS), 0),
                (around.step, shard.units, shard.scales, *inputs, out.values("w")),
                push,
                (-(-n_rows // tile.batch), -(-shard.n_rows // tile.rows), 1),
            )


def _gated_matmul(op: GatedMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    x, out, tuning = around.activations[op.x], around.activations[op.out], around.tuning
    rows = around.rows[op.out]
    n_rows = counts.of(rows)
    if not n_rows:
        return
    matrix = around.matrices.get(gated_name(op))
    if matrix is None:
        yield from _gate_apart(op, around, n_rows)
        return
    type, mode, gelu = _TYPE_NUMBERS[matrix.float_type], _out_mode(out), _gelu(op.activation)
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    together = tune.matvec_rows(tuning, n_rows)
    for shard in matrix.shards(tuning.limits.max_range):
        push = words(shard.n_rows, matrix.n_units, x_stride, out.row_words, shard.first_row // 2)
        outputs = out.values("w"), out.scales("w")
        if together is not None:
            shape = tune.gated_matvec(tuning, together)
            yield Dispatch(
                "gated_matvec_dot" if dot else _by_tier("gated_matvec", tuning),
                (shape.workgroup, type, shape.team, shape.rows, together, mode, gelu),
                (shard.units, shard.scales, *inputs, *outputs),
                push,
                long_grid(-(-shard.n_rows // 64), n_rows // together),
            )
        else:
            tile = tune.tile(tuning, dot, n_rows)
            yield Dispatch(
                "gated_matmul_dot" if dot else "gated_matmul",
                (*_tile_constants(tile, type), mode, int(rows is Rows.LOGITS), gelu),
                (around.step, shard.units, shard.scales, *inputs, *outputs),
                push,
                (-(-n_rows // tile.batch), -(-shard.n_rows // tile.rows), 1),
            )


def _gate_apart(op: GatedMatmul, around: Surroundings, n_rows: int) -> Iterator[Dispatch]:
    """Gate and up by themselves, for two number formats."""
    x, out, lanes = around.activations[op.x], around.activations[op.out], around.tuning.plain_lanes
    rows = around.rows[op.out]
    gate, up = around.scratch["gate"], around.scratch["up"]
    for name, into in ((op.gate, gate), (op.up, up)):
        yield from _multiply(around, x, around.matrices[name], into, 0, rows, n_rows)
    yield Dispatch(
        "gate",
        (lanes, _out_mode(out), _gelu(op.activation)),
        (around.step, gate.values(), up.values(), out.values("w"), out.scales("w")),
        words(out.width, gate.stride // 4, out.row_words),
        (-(-out.width // (4 * lanes)), n_rows, 1),
    )


def _rope_store(op: RopeStore, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
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
            _CACHE_NUMBERS[cache.type],
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


@dataclass(frozen=True)
class _AttentionPlan:
    lanes: int
    heads: int
    head_units: int
    n_groups: int  # workgroups for each row and part
    n_splits: int


def _attention_plan(op: Attention, cache: KvCache, tuning: Tuning, n_rows: int, seq_len: int) -> _AttentionPlan:
    head_units = _units_of(cache.head_dim)
    lanes = tune.attention_lanes(tuning, head_units)
    heads = tune.attention_heads(tuning, min(op.group, op.n_heads), head_units, lanes)
    n_groups = cache.n_kv_heads * -(-op.group // heads)
    n_splits = tune.attention_splits(tuning, n_groups * n_rows, seq_len)
    return _AttentionPlan(lanes, heads, head_units, n_groups, n_splits)


def _attention(op: Attention, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
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
        (plan.lanes, _out_mode(into), plan.heads, plan.head_units, int(splits), _CACHE_NUMBERS[cache.type]),
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
    )
    if splits:
        lanes = max(8, min(64, plan.lanes))
        yield Dispatch(
            "attention_merge",
            (lanes, _out_mode(into), plan.head_units),
            (around.step, partials.values(), into.values("w"), into.scales("w")),
            push,
            (op.n_heads, n_rows, 1),
        )
    if blocks_cross_heads:
        lanes = tuning.plain_lanes
        yield Dispatch(
            "quantize",
            (lanes, _out_mode(out)),
            (around.step, into.values(), out.values("w"), out.scales("w")),
            words(out.width, into.stride // 4, out.row_words),
            (-(-out.width // (4 * lanes)), n_rows, 1),
        )


def _top_experts(op: TopExperts, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    logits, ids, weights = (around.activations[name] for name in (op.logits, op.ids, op.weights))
    list_size = 1 << max(1, logits.width - 1).bit_length()
    yield Dispatch(
        "top_experts",
        (around.tuning.plain_lanes, list_size, int(op.normalize)),
        (around.step, logits.values(), ids.values("w"), weights.values("w")),
        words(logits.width, logits.stride, ids.width, weights.stride),
        (counts.all, 1, 1),
    )


def _expert_gated_matmul(op: ExpertGatedMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    x, ids, out = (around.activations[name] for name in (op.x, op.ids, op.out))
    tuning, matrix = around.tuning, around.matrices[gated_name(op)]
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    hidden = matrix.n_rows // matrix.n_experts // 2
    shape = tune.gated_matvec(tuning, 1)
    for shard in matrix.shards(tuning.limits.max_range):
        yield Dispatch(
            "expert_gated_matvec_dot" if dot else _by_tier("expert_gated_matvec", tuning),
            (
                shape.workgroup,
                _TYPE_NUMBERS[matrix.float_type],
                shape.team,
                shape.rows,
                _out_mode(out),
                _gelu(op.activation),
            ),
            (around.step, ids.values(), shard.units, shard.scales, *inputs, out.values("w"), out.scales("w")),
            words(
                hidden,
                matrix.n_units,
                x_stride,
                out.row_words,
                ids.width,
                op.first_expert + shard.first_row // (2 * hidden),
                shard.n_rows // (2 * hidden),
            ),
            (-(-hidden // 32), ids.width, counts.all),
        )


def _expert_matmul(op: ExpertMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    x, ids, weights, out = (around.activations[name] for name in (op.x, op.ids, op.weights, op.out))
    tuning, matrix = around.tuning, around.matrices[op.down]
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    n_rows = matrix.n_rows // matrix.n_experts
    shape = tune.matvec(tuning, n_rows, matrix.n_units, 1)
    for number, shard in enumerate(matrix.shards(tuning.limits.max_range)):
        yield Dispatch(
            "expert_matvec_dot" if dot else _by_tier("expert_matvec", tuning),
            (shape.workgroup, _TYPE_NUMBERS[matrix.float_type], shape.team, shape.rows, int(number > 0)),
            (around.step, ids.values(), weights.values(), shard.units, shard.scales, *inputs, out.values("rw")),
            words(
                n_rows,
                matrix.n_units,
                x_stride,
                out.stride,
                ids.width,
                weights.stride,
                op.first_expert + shard.first_row // n_rows,
                shard.n_rows // n_rows,
            ),
            (-(-n_rows // (shape.workgroup // shape.team * shape.rows)), counts.all, 1),
        )


def _top_candidates(op: TopCandidates, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    if not counts.logits:
        return
    logits, values = around.activations[op.logits], around.activations[op.values]
    keys, sums = around.scratch["candidate_keys"], around.scratch["candidate_sums"]
    tuning, k = around.tuning, values.width
    slices = n_slices(logits.width, tuning)
    constants = (tuning.sum_lanes, CANDIDATE_LIST, CANDIDATE_WINDOW)
    yield Dispatch(
        "top_candidates",
        constants,
        (around.step, logits.values(), keys.values("w"), sums.values("w")),
        words(logits.width, logits.stride, tuning.slice_size, k),
        (slices, counts.logits, 1),
    )
    yield Dispatch(
        "merge_candidates",
        constants,
        (
            around.step,
            keys.values(),
            sums.values(),
            values.values("w"),
            around.activations[op.ids].values("w"),
            around.activations[op.log_sum_exp].values("w"),
        ),
        words(slices, k, op.first_id),
        (counts.logits, 1, 1),
    )


_MAPPERS: dict[type[Op], Callable[[Any, Surroundings, RowCounts], Iterator[Dispatch]]] = {
    Embed: _embed,
    RopeAngles: _rope_angles,
    RmsNorm: _rms_norm,
    Matmul: _matmul,
    GatedMatmul: _gated_matmul,
    RopeStore: _rope_store,
    Attention: _attention,
    TopExperts: _top_experts,
    ExpertGatedMatmul: _expert_gated_matmul,
    ExpertMatmul: _expert_matmul,
    TopCandidates: _top_candidates,
}


def _inputs(x: Activation, matrix: PackedMatrix, tuning: Tuning) -> tuple[tuple[Binding, ...], int, bool]:
    """Bindings of a matmul's input, its stride in the shader's elements of 16 bytes, and whether it is int8."""
    dot = tune.uses_dot(tuning, matrix.float_type, x.packed)
    if dot:
        return (x.values(), x.scales()), x.stride // 16, True
    return (x.values(),), x.stride // 4, False


def _tile_constants(tile: tune.TileShape, type: int) -> tuple[int, ...]:
    return tile.workgroup, type, tile.rows, tile.batch, tile.lane_rows, tile.lane_batch


def _gelu(activation: GateActivation) -> int:
    return int(activation is GateActivation.GELU_TANH)


def _by_tier(shader: str, tuning: Tuning) -> str:
    return shader + "_subgroup" if tuning.tier >= Tier.SUBGROUP else shader


def _out_mode(out: Activation) -> int:
    if out.type is BufferType.Q80:
        return _Q80 if out.packed else _ROUNDED
    return _F32


def _units_of(head_dim: int) -> int:
    return round_up(head_dim, 8) // 8


def _cache_elements(cache: KvCache, n_slots: int, seq_len: int) -> int:
    return n_slots * cache.n_kv_heads * seq_len * 8 * _units_of(cache.head_dim)
