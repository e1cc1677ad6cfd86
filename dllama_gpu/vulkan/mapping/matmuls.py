"""Products with weights as dispatches."""

from __future__ import annotations

from collections.abc import Iterator

from dllama_gpu.graph.graph import Activation as GateActivation
from dllama_gpu.graph.graph import (
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Matmul,
    Rows,
)
from dllama_gpu.vulkan import tuning as tune
from dllama_gpu.vulkan.activations import Activation
from dllama_gpu.vulkan.dispatch import Binding, Dispatch, long_grid, words
from dllama_gpu.vulkan.mapping.surroundings import (
    OUT_F32,
    TYPE_NUMBERS,
    RowCounts,
    Surroundings,
    by_tier,
    gelu,
    out_mode,
)
from dllama_gpu.vulkan.tuning import Tuning
from dllama_gpu.vulkan.weights import UNIT_COLUMNS, PackedMatrix, Shard

_PRODUCTS_A_READ = 4


def matmul(op: Matmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """Matmul."""
    x, out = around.activations[op.x], around.activations[op.out]
    rows = around.rows[op.out]
    yield from _multiply(around, x, around.matrices[op.weight], out, op.out_column, rows, counts.of(rows))


def gated_matmul(op: GatedMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """GatedMatmul."""
    x, out, tuning = around.activations[op.x], around.activations[op.out], around.tuning
    rows = around.rows[op.out]
    n_rows = counts.of(rows)
    if not n_rows:
        return
    matrix = around.matrices.get(gated_name(op))
    if matrix is None:
        yield from _gate_apart(op, around, n_rows)
        return
    type, mode, is_gelu = TYPE_NUMBERS[matrix.float_type], out_mode(out), gelu(op.activation)
    if tune.uses_matrices(tuning, matrix.float_type, x.packed, n_rows):
        yield from _on_matrix_units(around, x, matrix, out, 0, rows, n_rows, op.activation)
        return
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    together = tune.matvec_rows(tuning, n_rows)
    for shard in matrix.shards(tuning.limits.max_range):
        push = words(shard.n_rows, matrix.n_units, x_stride, out.row_words, shard.first_row // 2)
        work = _work(shard, matrix, n_rows)
        outputs = out.values("w"), out.scales("w")
        if together is not None:
            shape = tune.gated_matvec(tuning, together)
            yield Dispatch(
                "gated_matvec_dot" if dot else by_tier("gated_matvec", tuning),
                (shape.workgroup, type, shape.team, shape.rows, together, mode, is_gelu),
                (shard.units, shard.scales, *inputs, *outputs),
                push,
                long_grid(-(-shard.n_rows // 64), n_rows // together),
                work=work,
            )
        else:
            tile = tune.tile(tuning, dot, shard.n_rows, n_rows)
            yield Dispatch(
                "gated_matmul_dot" if dot else "gated_matmul",
                (*_tile_constants(tile, type), mode, int(rows is Rows.LOGITS), is_gelu),
                (around.step, shard.units, shard.scales, *inputs, *outputs),
                push,
                (-(-n_rows // tile.batch), -(-shard.n_rows // tile.rows), 1),
                work=work,
            )


def gated_name(op: GatedMatmul | ExpertGatedMatmul) -> str:
    """Key of gate and up together in `Surroundings.matrices`."""
    return f"{op.gate}+{op.up}"


def expert_gated_matmul(op: ExpertGatedMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """ExpertGatedMatmul: each choice of each row for itself."""
    x, ids, out = (around.activations[name] for name in (op.x, op.ids, op.out))
    tuning, matrix = around.tuning, around.matrices[gated_name(op)]
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    hidden = matrix.n_rows // matrix.n_experts // 2
    shape = tune.gated_matvec(tuning, 1)
    for shard in matrix.shards(tuning.limits.max_range):
        yield Dispatch(
            "expert_gated_matvec_dot" if dot else by_tier("expert_gated_matvec", tuning),
            (
                shape.workgroup,
                TYPE_NUMBERS[matrix.float_type],
                shape.team,
                shape.rows,
                out_mode(out),
                gelu(op.activation),
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
            work=counts.all * ids.width * _work(shard, matrix, 1) // matrix.n_experts,
        )


def expert_matmul(op: ExpertMatmul, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """ExpertMatmul: each row for itself."""
    x, ids, weights, out = (around.activations[name] for name in (op.x, op.ids, op.weights, op.out))
    tuning, matrix = around.tuning, around.matrices[op.down]
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    n_rows = matrix.n_rows // matrix.n_experts
    shape = tune.matvec(tuning, n_rows, matrix.n_units, 1)
    for number, shard in enumerate(matrix.shards(tuning.limits.max_range)):
        yield Dispatch(
            "expert_matvec_dot" if dot else by_tier("expert_matvec", tuning),
            (shape.workgroup, TYPE_NUMBERS[matrix.float_type], shape.team, shape.rows, int(number > 0)),
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
            work=counts.all * ids.width * _work(shard, matrix, 1) // matrix.n_experts,
        )


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
    tuning, type = around.tuning, TYPE_NUMBERS[matrix.float_type]
    if tune.uses_matrices(tuning, matrix.float_type, x.packed, n_rows):
        yield from _on_matrix_units(around, x, matrix, out, out_column, rows, n_rows)
        return
    inputs, x_stride, dot = _inputs(x, matrix, tuning)
    together = tune.matvec_rows(tuning, n_rows)
    for shard in matrix.shards(tuning.limits.max_range):
        push = words(shard.n_rows, matrix.n_units, x_stride, out.stride, out_column + shard.first_row)
        work = _work(shard, matrix, n_rows)
        if together is not None:
            shape = tune.matvec(tuning, shard.n_rows, matrix.n_units, together)
            yield Dispatch(
                "matvec_dot" if dot else by_tier("matvec", tuning),
                (shape.workgroup, type, shape.team, shape.rows, together),
                (shard.units, shard.scales, *inputs, out.values("w")),
                push,
                long_grid(-(-shard.n_rows // (shape.workgroup // shape.team * shape.rows)), n_rows // together),
                work=work,
            )
        else:
            tile = tune.tile(tuning, dot, shard.n_rows, n_rows)
            yield Dispatch(
                "matmul_dot" if dot else "matmul",
                (*_tile_constants(tile, type), OUT_F32, int(rows is Rows.LOGITS), 0),
                (around.step, shard.units, shard.scales, *inputs, out.values("w")),
                push,
                (-(-n_rows // tile.batch), -(-shard.n_rows // tile.rows), 1),
                work=work,
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
        (lanes, out_mode(out), gelu(op.activation)),
        (around.step, gate.values(), up.values(), out.values("w"), out.scales("w")),
        words(out.width, gate.stride // 4, out.row_words),
        (-(-out.width // (4 * lanes)), n_rows, 1),
    )


def _on_matrix_units(
    around: Surroundings,
    x: Activation,
    matrix: PackedMatrix,
    out: Activation,
    out_column: int,
    rows: Rows,
    n_rows: int,
    gate: GateActivation | None = None,
) -> Iterator[Dispatch]:
    """The input as f16, then its products; with `gate`, gate and up together."""
    tuning, size = around.tuning, around.tuning.limits.matrix
    assert size is not None
    halves, lanes, of_logits = around.scratch["halves"], tuning.plain_lanes, int(rows is Rows.LOGITS)
    n_parts = matrix.n_units * UNIT_COLUMNS[matrix.float_type] // 8
    yield Dispatch(
        "halves_matrix",
        (lanes, int(x.packed), of_logits),
        (around.step, x.values(), x.scales(), halves.values("w")),
        words(n_parts, x.stride // (8 if x.packed else 2), halves.stride // 4),
        (-(-n_parts // lanes), n_rows, 1),
    )
    outputs = (out.values("w"),) if gate is None else (out.values("w"), out.scales("w"))
    end = (out_mode(out), of_logits, 0 if gate is None else gelu(gate))
    for shard in matrix.shards(tuning.limits.max_range):
        tile = tune.matrix_tile(tuning, shard.n_rows, n_rows)
        part = tile.rows, tile.batch, tile.subgroup_rows, tile.subgroup_batch
        workgroup = tile.subgroups * tuning.limits.subgroup_size
        first = out_column + (shard.first_row if gate is None else shard.first_row // 2)
        yield Dispatch(
            "matmul_matrix" if gate is None else "gated_matmul_matrix",
            (workgroup, TYPE_NUMBERS[matrix.float_type], *part, size.m, size.n, size.k, *end),
            (around.step, shard.units, shard.scales, halves.values(), *outputs),
            words(shard.n_rows, matrix.n_units, halves.stride // 4, out.row_words, first),
            (-(-n_rows // tile.batch), -(-shard.n_rows // tile.rows), 1),
            subgroup_size=tuning.limits.subgroup_size,
            work=_work(shard, matrix, n_rows),
        )


def _inputs(x: Activation, matrix: PackedMatrix, tuning: Tuning) -> tuple[tuple[Binding, ...], int, bool]:
    """Bindings of a matmul's input, its stride in the shader's elements of 16 bytes, and whether it is int8."""
    dot = tune.uses_dot(tuning, matrix.float_type, x.packed)
    if dot:
        return (x.values(), x.scales()), x.stride // 16, True
    return (x.values(),), x.stride // 4, False


def _work(shard: Shard, matrix: PackedMatrix, n_rows: int) -> int:
    """Reading a weight takes as long as a few products with it."""
    return shard.n_rows * matrix.n_columns * max(n_rows, _PRODUCTS_A_READ)


def _tile_constants(tile: tune.TileShape, type: int) -> tuple[int, ...]:
    return tile.workgroup, type, tile.rows, tile.batch, tile.lane_rows, tile.lane_batch
