"""What --device names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from dllama_gpu.cli.arguments import Options
from dllama_gpu.cli.display import note
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.machine import available_memory
from dllama_gpu.graph.batch import Device
from dllama_gpu.vulkan.discovery import best_gpu, find_gpus, free_memory_of, index_of
from dllama_gpu.vulkan.errors import NoGpuError


@dataclass(frozen=True)
class DeviceChoice:
    """The CPU, or the GPU with this index; decided once, opened any number of times."""

    gpu: int | None

    def open(self, options: Options) -> Device:
        """The device with the --nthreads and --pin-threads of `options`. Raises DllamaError when it cannot be had."""
        if self.gpu is None:
            return CpuDevice(options.nthreads, pin=options.pin_threads)

        from dllama_gpu.cli.gpu_check import open_checked

        return open_checked(self.gpu)

    def open_alone(self, options: Options) -> Device:
        """As `open`, for a model that no other machine shares: the CPU helps a GPU whose memory is too small."""
        if self.gpu is None:
            return self.open(options)

        from dllama_gpu.cli.gpu_check import open_checked
        from dllama_gpu.engine.split_device import SplitDevice

        gpu = open_checked(self.gpu)
        return SplitDevice(
            gpu,
            functools.cache(lambda: CpuDevice(options.nthreads, pin=options.pin_threads)),
            available_memory,
            tell=lambda text: note("share", text),
            max_memory=options.max_memory,
            gpu_layers=options.gpu_layers,
            shares_memory=gpu.gpu.info.unified_memory,
        )

    def free_memory(self) -> int | None:
        """Bytes that a model may take there now, None if unknown."""
        return available_memory() if self.gpu is None else free_memory_of(find_gpus()[self.gpu])


def choose_device(name: str) -> DeviceChoice:
    """`auto` is the best GPU, or the CPU with a line that says why (no GPU, or its self-test fails); `cpu`; `vulkan` or
    `vulkan:N`.

    Raises GpuError when the GPU asked for is not there.
    """
    if name == "cpu":
        return DeviceChoice(None)
    if name == "auto":
        return DeviceChoice(_real_gpu())
    number = name.partition(":")[2]
    return DeviceChoice(index_of(int(number) if number else None))


def free_memory(device: Device) -> int | None:
    """Bytes that a model on `device` may take, None if unknown: of a GPU its own memory, else the machine's."""
    own = getattr(device, "free_memory", None)
    return available_memory() if own is None else cast(Callable[[], int], own)()


def _real_gpu() -> int | None:
    try:
        gpus = find_gpus()
    except NoGpuError as error:
        note("no GPU", f"computing on the CPU ({error})")
        return None
    index = best_gpu(gpus)
    if index is None:
        note("no GPU", f"computing on the CPU; {gpus[0].name} only imitates one (--device vulkan uses it)")
        return None

    from dllama_gpu.cli.gpu_check import passes

    return index if passes(index) else None
