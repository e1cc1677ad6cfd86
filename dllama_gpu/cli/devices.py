"""`dllama-gpu devices`: shows what this machine offers."""

from __future__ import annotations

import os
import platform

from dllama_gpu.cli.arguments import Options, Parser
from dllama_gpu.cli.display import size_text
from dllama_gpu.cli.failures import SUCCESS

DESCRIPTION = """Show what this machine offers: its processor, the instruction sets that matter, the kernels
chosen for them and the memory there is."""


def add_arguments(parser: Parser) -> None:
    """There are no options."""


def run(options: Options) -> int:
    """Prints one line a fact."""
    from dllama_gpu.cpu import _native
    from dllama_gpu.cpu.device import CpuDevice
    from dllama_gpu.cpu.processors import available_threads
    from dllama_gpu.engine.machine import available_memory, cpu_name, total_memory

    device = CpuDevice(n_threads=1)
    others = [kernels for kernels in _native.kernel_names() if kernels != device.kernels]
    memory = [
        f"{size_text(size)} {what}"
        for size, what in ((total_memory(), "in all"), (available_memory(), "available"))
        if size is not None
    ]
    for label, text in (
        ("device", "cpu"),
        ("name", cpu_name()),
        ("machine", f"{platform.machine()}, {platform.system()}"),
        ("threads", f"{available_threads()} usable, of {os.cpu_count() or 1} processors"),
        ("features", ", ".join(_native.cpu_features()) or "none that the kernels use"),
        ("kernels", device.kernels + (f" (also possible: {', '.join(others)})" if others else "")),
        ("memory", ", ".join(memory) or "unknown"),
    ):
        print(f"{label:<12} {text}")
    return SUCCESS
