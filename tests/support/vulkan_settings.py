"""Tiers with the choices of devices that tests of the Vulkan ops imitate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.tuning import Tuning, for_device

if TYPE_CHECKING:
    from tests.support.plan_runner import PlanRunner

SMALL = DeviceLimits(subgroup_size=8, max_invocations=256, shared_bytes=16 << 10)  # the least that any device has
WIDE = replace(SMALL, subgroup_size=32)  # teams of several of this driver's subgroups


def on_processor(tier: Tier) -> Tuning:
    return for_device(replace(SMALL, is_cpu=True), tier)


@dataclass(frozen=True)
class Setting:
    """A tier with a device's usual choices."""

    name: str
    tier: Tier
    tuning: Tuning


SETTINGS = [
    Setting("base", Tier.BASE, for_device(WIDE, Tier.BASE)),
    # A device that is busy with little: short teams, large tiles; in between, tiles of both sizes.
    Setting("subgroup", Tier.SUBGROUP, replace(for_device(WIDE, Tier.SUBGROUP), busy_lanes=0)),
    Setting("dot", Tier.DOT, replace(for_device(SMALL, Tier.DOT), busy_lanes=300)),
    Setting("dot-processor", Tier.DOT, on_processor(Tier.DOT)),
    Setting("matrix", Tier.MATRIX, on_processor(Tier.MATRIX)),
]


def rounding(runner: PlanRunner, float_type: FloatType) -> float:
    """Tolerance of a matmul: on matrix units its factors are rounded to f16, but for F32 weights."""
    return 5e-4 if runner.tier is Tier.MATRIX and float_type is not FloatType.F32 else 2e-5
