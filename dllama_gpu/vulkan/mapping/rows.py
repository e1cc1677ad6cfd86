"""Embeddings, norms and choices of the best as dispatches."""

from __future__ import annotations

from collections.abc import Iterator

from dllama_gpu.graph.graph import (
    Embed,
    RmsNorm,
    Rows,
    TopCandidates,
    TopExperts,
)
from dllama_gpu.vulkan.dispatch import Dispatch, words
from dllama_gpu.vulkan.mapping.surroundings import (
    TYPE_NUMBERS,
    RowCounts,
    Surroundings,
    by_tier,
    out_mode,
)
from dllama_gpu.vulkan.tuning import Tuning, norm_lanes

CANDIDATE_LIST = 1024
CANDIDATE_WINDOW = 256


def embed(op: Embed, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """Rows of the embedding."""
    matrix, out, lanes = around.matrices[op.weight], around.activations[op.out], around.tuning.plain_lanes
    for shard in matrix.shards(around.tuning.limits.max_range):
        yield Dispatch(
            "embed",
            (lanes, TYPE_NUMBERS[matrix.float_type]),
            (around.step, shard.units, shard.scales, out.values("w")),
            words(shard.first_row, shard.n_rows, matrix.n_units, out.width, out.stride, float(op.scale)),
            (-(-matrix.n_units // lanes), counts.all, 1),
        )


def rms_norm(op: RmsNorm, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """RmsNorm; a workgroup for each row."""
    x, out = around.activations[op.x], around.activations[op.out]
    add = around.activations[op.add] if op.add is not None else x
    n_rows = counts.of(around.rows[op.out])
    if not n_rows:
        return
    of_logits = around.rows[op.out] is Rows.LOGITS
    gathers = of_logits and around.rows[op.x] is Rows.ALL
    lanes = norm_lanes(around.tuning, x.width)
    yield Dispatch(
        by_tier("rms_norm", around.tuning),
        (lanes, out_mode(out), int(op.add is not None), int(of_logits), int(gathers)),
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


def top_experts(op: TopExperts, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """TopExperts; a workgroup for each row."""
    logits, ids, weights = (around.activations[name] for name in (op.logits, op.ids, op.weights))
    list_size = 1 << max(1, logits.width - 1).bit_length()
    yield Dispatch(
        "top_experts",
        (around.tuning.plain_lanes, list_size, int(op.normalize)),
        (around.step, logits.values(), ids.values("w"), weights.values("w")),
        words(logits.width, logits.stride, ids.width, weights.stride),
        (counts.all, 1, 1),
    )


def top_candidates(op: TopCandidates, around: Surroundings, counts: RowCounts) -> Iterator[Dispatch]:
    """TopCandidates: slices of a row side by side, then the best of their best."""
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


def n_slices(n_logits: int, tuning: Tuning) -> int:
    """Slices of a row of logits that workgroups look through."""
    return -(-n_logits // tuning.slice_size)
