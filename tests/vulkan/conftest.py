"""A Vulkan device with core and synchronization validation, under which every test must stay silent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from dllama_gpu.vulkan import _native
    from dllama_gpu.vulkan.device import VulkanDevice
    from dllama_gpu.vulkan.limits import Tier


def _missing(reason: str) -> NoReturn:
    if os.environ.get("DLLAMA_GPU_REQUIRE_VULKAN_TESTS"):
        pytest.fail(f"{reason}, and DLLAMA_GPU_REQUIRE_VULKAN_TESTS forbids to skip")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of GPUs, by this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def device_index() -> int:
    """Of the driver that needs no GPU where it is installed, so that results are the same everywhere."""
    try:
        from dllama_gpu.vulkan import _native
    except ImportError:
        _missing("dllama-gpu was built without Vulkan's headers (libvulkan-dev)")
    try:
        found = _native.devices()
    except _native.VulkanError as error:
        _missing(f"{error}; on Debian: apt-get install mesa-vulkan-drivers")
    if not found:
        _missing("no Vulkan driver is installed; on Debian: apt-get install mesa-vulkan-drivers")
    return next((index for index, info in enumerate(found) if info.type == "cpu"), 0)


@pytest.fixture(scope="session")
def validated_device(device_index: int) -> _native.Device:
    """One for the whole run: opening it takes a while."""
    from dllama_gpu.vulkan import _native

    try:
        return _native.Device(device_index, validation=True)
    except _native.VulkanError as error:
        _missing(f"{error}; on Debian: apt-get install vulkan-validationlayers")


@pytest.fixture
def native_device(validated_device: _native.Device) -> Iterator[_native.Device]:
    """Fails the test for every message of the validation layers."""
    before = len(validated_device.validation_messages())
    yield validated_device
    assert validated_device.validation_messages()[before:] == []


@pytest.fixture(scope="session")
def validated_devices(
    device_index: int, validated_device: _native.Device
) -> Iterator[Callable[[Tier | None], VulkanDevice]]:
    """A device for each tier, made when it is first wanted and under validation."""
    from dllama_gpu.vulkan.device import VulkanDevice
    from dllama_gpu.vulkan.limits import Tier
    from dllama_gpu.vulkan.tiers import best_tier, missing_for

    devices: dict[Tier, VulkanDevice] = {}

    def device(tier: Tier | None = None) -> VulkanDevice:
        tier = best_tier(validated_device.info) if tier is None else tier
        for step in Tier:
            if step <= tier and (lack := missing_for(step, validated_device.info)) is not None:
                pytest.skip(f"{validated_device.info.name} has no {lack}")
        if tier not in devices:
            devices[tier] = VulkanDevice(device_index, tier=tier, validation=True)
        return devices[tier]

    yield device
    devices.clear()


@pytest.fixture
def vulkan_device(
    validated_devices: Callable[[Tier | None], VulkanDevice],
) -> Iterator[Callable[[Tier | None], VulkanDevice]]:
    """Devices by tier (None: the best); the test fails for every message of the validation layers."""
    used: list[tuple[VulkanDevice, int]] = []

    def device(tier: Tier | None = None) -> VulkanDevice:
        found = validated_devices(tier)
        used.append((found, len(found.gpu.native.validation_messages())))
        return found

    yield device
    for found, before in used:
        assert found.gpu.native.validation_messages()[before:] == []
