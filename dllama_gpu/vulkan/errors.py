"""Failures of GPUs as sentences. Knows nothing of the native module, which may not have been built."""

from __future__ import annotations

import sys

from dllama_gpu.errors import DllamaError


class GpuError(DllamaError):
    """A GPU failed, or cannot be had."""


class GpuMemoryError(GpuError):
    """A GPU has too little memory free: other programs may hold it, so that it says nothing about the GPU itself."""


class NoGpuError(GpuError):
    """This system offers none."""


def driver_advice() -> str:
    """How a person gets a Vulkan driver on this system."""
    if sys.platform == "win32":
        return "install the graphics card's driver, which brings Vulkan"
    if sys.platform == "darwin":
        return "run `brew install vulkan-loader molten-vk`"
    return (
        "for AMD, Intel and Raspberry Pi install mesa-vulkan-drivers (Arch: vulkan-radeon or vulkan-intel), for NVIDIA "
        "its own driver"
    )
