"""A runner for each tier, whose ops the tests here compare with the NumPy oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dllama_gpu.vulkan.limits import Tier
from tests.support.vulkan_settings import SETTINGS, Setting

if TYPE_CHECKING:
    from dllama_gpu.vulkan import _native
    from tests.support.plan_runner import PlanRunner


@pytest.fixture(scope="session", params=SETTINGS, ids=lambda setting: setting.name)
def setting_runner(request: pytest.FixtureRequest, validated_device: _native.Device) -> PlanRunner:
    from dllama_gpu.vulkan.tiers import limits_of, missing_for
    from tests.support.plan_runner import PlanRunner

    setting: Setting = request.param
    info = validated_device.info
    for tier in Tier:
        if tier <= setting.tier and (lack := missing_for(tier, info)) is not None:
            pytest.skip(f"{info.name} has no {lack}")
    tuning = setting.tuning(limits_of(info))
    return PlanRunner(validated_device, tuning.limits, setting.tier, tuning)


@pytest.fixture
def runner(setting_runner: PlanRunner, native_device: _native.Device) -> PlanRunner:
    """One for each setting, and no message of the validation layers during a test."""
    return setting_runner
