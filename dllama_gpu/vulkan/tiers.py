"""Which family of shaders a GPU can run, decided by what its driver reports."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dllama_gpu.errors import DllamaError
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.limits import DeviceLimits, Tier

TIER_VARIABLE = "DLLAMA_GPU_VULKAN_TIER"


def missing_for(tier: Tier, info: _native.DeviceInfo) -> str | None:
    """The first thing that a GPU lacks for `tier` itself, in words; None if nothing."""
    features, operations = info.features, info.subgroup.operations
    if tier is Tier.SUBGROUP and not operations >= {"basic", "arithmetic"}:
        return "subgroup arithmetic in compute shaders"
    if tier is Tier.DOT and not features.integer_dot_product:
        return "integer dot products"
    return None


def best_tier(info: _native.DeviceInfo) -> Tier:
    """The highest tier for which, and for all below which, nothing is missing."""
    best = Tier.BASE
    for tier in Tier:
        if missing_for(tier, info) is not None:
            break
        best = tier
    return best


def chosen_tier(info: _native.DeviceInfo, variables: Mapping[str, str] = os.environ) -> Tier:
    """The best tier, or the lower one that DLLAMA_GPU_VULKAN_TIER names.

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
    )
