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
WIDE = replace(SMALL, subgroup_size=32)  # teams of several of lavapipe's subgroups


def on_processor(tier: Tier, own: DeviceLimits) -> Tuning:
    return for_device(_possible(replace(SMALL, is_cpu=True), own), tier)


@dataclass(frozen=True)
class Setting:
    """A tier with the choices for another device than the one that the tests run on."""

    name: str
    tier: Tier
    limits: DeviceLimits
    busy_lanes: int | None = None
    """In place of the usual choice."""

    def tuning(self, own: DeviceLimits) -> Tuning:
        """What of it is possible on a device with the limits `own`."""
        tuning = for_device(_possible(self.limits, own), self.tier)
        return tuning if self.busy_lanes is None else replace(tuning, busy_lanes=self.busy_lanes)


def _possible(limits: DeviceLimits, own: DeviceLimits) -> DeviceLimits:
    """`limits` with the matrix units that there are, and teams that are not smaller than a subgroup."""
    return replace(limits, subgroup_size=max(limits.subgroup_size, own.subgroup_size), matrix=own.matrix)


SETTINGS = [
    Setting("base", Tier.BASE, WIDE),
    # A device that is busy with little: short teams, large tiles; in between, tiles of both sizes.
    Setting("subgroup", Tier.SUBGROUP, WIDE, busy_lanes=0),
    Setting("dot", Tier.DOT, SMALL, busy_lanes=300),
    Setting("dot-processor", Tier.DOT, replace(SMALL, is_cpu=True)),
    Setting("matrix", Tier.MATRIX, replace(SMALL, is_cpu=True)),
    # The shapes of a GPU that much keeps busy; tests/vulkan/ops/test_matrix_tiles.py has all tiles of matrix units.
    Setting("dot-busy", Tier.DOT, WIDE),
    Setting("matrix-busy", Tier.MATRIX, WIDE),
]


def rounding(runner: PlanRunner, float_type: FloatType) -> float:
    """Tolerance of a matmul: on matrix units its factors are rounded to f16, but for F32 weights."""
    return 5e-4 if runner.tier is Tier.MATRIX and float_type is not FloatType.F32 else 2e-5
