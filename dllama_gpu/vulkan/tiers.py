"""Which family of shaders a GPU can run, decided by what its driver reports."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dllama_gpu.errors import DllamaError
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.limits import DeviceLimits, MatrixSize, Tier
from dllama_gpu.vulkan.shaders import has_shader
from dllama_gpu.vulkan.tuning import LEAST_MATRIX_TILE

TIER_VARIABLE = "DLLAMA_GPU_VULKAN_TIER"


def missing_for(tier: Tier, info: _native.DeviceInfo) -> str | None:
    """The first thing that a GPU lacks for `tier` itself, in words; None if nothing."""
    features, operations = info.features, info.subgroup.operations
    if tier is Tier.SUBGROUP and not operations >= {"basic", "arithmetic"}:
        return "subgroup arithmetic in compute shaders"
    if tier is Tier.DOT and not features.integer_dot_product:
        return "integer dot products"
    if tier is Tier.MATRIX:
        return _missing_for_matrices(info)
    return None


def best_tier(info: _native.DeviceInfo) -> Tier:
    """The highest tier for which, and for all below which, nothing is missing.

    Processors have no matrix units: what their drivers offer is for trying it out, by name.
    """
    best = Tier.BASE
    for tier in Tier:
        if missing_for(tier, info) is not None or (tier is Tier.MATRIX and info.type == "cpu"):
            break
        best = tier
    return best


def chosen_tier(info: _native.DeviceInfo, variables: Mapping[str, str] = os.environ) -> Tier:
    """The best tier, or the other one that DLLAMA_GPU_VULKAN_TIER names.

    Raises DllamaError for a name that there is not, or a tier that the GPU lacks something for.
    """
    best, wanted = best_tier(info), variables.get(TIER_VARIABLE)
    if not wanted:
        return best
    names = [tier.name.lower() for tier in Tier]
    if wanted.lower() not in names:
        raise DllamaError(f"{TIER_VARIABLE} is {wanted!r}; it must be one of {', '.join(names)}")
    tier = Tier(names.index(wanted.lower()))
    for step in Tier:
        if step <= tier and (lack := missing_for(step, info)) is not None:
            raise DllamaError(
                f"{TIER_VARIABLE} asks for {wanted}, but {info.name} has no {lack}; {best.name.lower()} works"
            )
    return tier


def limits_of(info: _native.DeviceInfo) -> DeviceLimits:
    """What of a GPU's limits decides how shaders are run."""
    limits = info.limits
    return DeviceLimits(
        subgroup_size=info.subgroup.size,
        max_invocations=min(limits.max_workgroup_invocations, limits.max_workgroup_size[0]),
        shared_bytes=limits.max_shared_memory_size,
        max_range=min(limits.max_storage_buffer_range, (1 << 32) - 1),
        offset_alignment=limits.min_storage_buffer_offset_alignment,
        is_cpu=info.type == "cpu",
        matrix=matrix_size(info),
    )


def matrix_size(info: _native.DeviceInfo) -> MatrixSize | None:
    """The largest product of f16 with f32 sums that the tiles of shaders/matmul_matrix.glsl are whole ones of."""
    types = ("f16", "f16", "f32", "f32")
    sizes = [
        MatrixSize(found.m, found.n, found.k)
        for found in info.cooperative_matrices
        if (found.a_type, found.b_type, found.c_type, found.result_type) == types
        and {found.m, found.n} <= {8, 16}
        and found.k in (8, 16, 32)
    ]
    return max(sizes, key=lambda size: size.m * size.n * size.k, default=None)


def _missing_for_matrices(info: _native.DeviceInfo) -> str | None:
    features, limits = info.features, info.limits
    if not features.cooperative_matrix or not features.float16:
        return "cooperative matrices of f16"
    if not has_shader("matmul_matrix"):
        return "shaders for cooperative matrices in this build, whose glslang was too old for them"
    if matrix_size(info) is None:
        return "cooperative matrices of f16 with f32 sums of a size that the shaders know"
    if limits.max_shared_memory_size < LEAST_MATRIX_TILE.shared_bytes:
        return f"{-(-LEAST_MATRIX_TILE.shared_bytes // 1024)} KiB of shared memory for cooperative matrices"
    if (
        info.subgroup.size * LEAST_MATRIX_TILE.subgroups > limits.max_workgroup_invocations
        or "basic" not in info.subgroup.operations
    ):
        return f"workgroups of {LEAST_MATRIX_TILE.subgroups} subgroups for cooperative matrices"
    return None
