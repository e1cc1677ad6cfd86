"""Each op of a graph as dispatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dllama_gpu.graph.graph import (
    Attention,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    TopCandidates,
    TopExperts,
)
from dllama_gpu.vulkan.dispatch import Dispatch
from dllama_gpu.vulkan.mapping import attention, matmuls, rows
from dllama_gpu.vulkan.mapping.surroundings import RowCounts, Surroundings


def dispatches(op: Op, around: Surroundings, counts: RowCounts) -> list[Dispatch]:
    """What computes an op; nothing when it has no rows."""
    return list(_MAPPERS[type(op)](op, around, counts))


_MAPPERS: dict[type[Op], Callable[[Any, Surroundings, RowCounts], Iterator[Dispatch]]] = {
    Embed: rows.embed,
    RopeAngles: attention.rope_angles,
    RmsNorm: rows.rms_norm,
    Matmul: matmuls.matmul,
    GatedMatmul: matmuls.gated_matmul,
    RopeStore: attention.rope_store,
    Attention: attention.attention,
    TopExperts: rows.top_experts,
    ExpertGatedMatmul: matmuls.expert_gated_matmul,
    ExpertMatmul: matmuls.expert_matmul,
    TopCandidates: rows.top_candidates,
}
