"""The GPUs of this machine. Works, and says what is missing, also where there is no Vulkan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dllama_gpu.vulkan.errors import GpuError, NoGpuError, driver_advice

if TYPE_CHECKING:
    from dllama_gpu.vulkan import _native

_PREFERENCE = ("discrete", "integrated", "virtual", "other")
"""Types of GPUs, best first; a driver that computes on processors is none."""


def find_gpus() -> list[_native.DeviceInfo]:
    """All Vulkan devices by index, those that are no real GPUs too.

    Raises NoGpuError, with what to install, where there are none.
    """
    try:
        from dllama_gpu.vulkan import _native
    except ImportError as error:
        raise NoGpuError(
            "this dllama-gpu was built without GPU support, because Vulkan's headers were missing; install them "
            "(libvulkan-dev on Debian and Ubuntu, vulkan-headers elsewhere) and build it again"
        ) from error
    try:
        found = _native.devices()
    except _native.VulkanError as error:
        raise NoGpuError(f"{error}; {driver_advice()}") from error
    if not found:
        raise NoGpuError(f"no Vulkan driver found a GPU; {driver_advice()}")
    return found


def best_gpu(gpus: Sequence[_native.DeviceInfo]) -> int | None:
    """Index of the GPU to use where none is named: a graphics card before a processor's own, else the first."""
    real = [index for index, info in enumerate(gpus) if info.type in _PREFERENCE]
    return min(real, key=lambda index: (_PREFERENCE.index(gpus[index].type), index), default=None)


def index_of(wanted: int | None) -> int:
    """The index of the `wanted` GPU, checked, or of the best one; of a driver on processors only if there is no other.

    Raises GpuError for an index that there is not, NoGpuError as `find_gpus` does.
    """
    gpus = find_gpus()
    if wanted is None:
        return best_gpu(gpus) or 0
    if wanted >= len(gpus):
        known = ", ".join(f"vulkan:{index} ({info.name})" for index, info in enumerate(gpus))
        raise GpuError(f"there is no GPU vulkan:{wanted}; this machine has {known}")
    return wanted


def free_memory_of(info: _native.DeviceInfo) -> int:
    """Bytes of its own memory that this process may still take, as far as the driver says."""
    return max((heap.budget for heap in info.heaps if heap.device_local), default=0)
