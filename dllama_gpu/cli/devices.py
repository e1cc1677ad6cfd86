"""`dllama-gpu devices`: shows what this machine offers."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser
from dllama_gpu.cli.display import size_text
from dllama_gpu.cli.failures import SUCCESS

if TYPE_CHECKING:
    from dllama_gpu.graph.batch import Device
    from dllama_gpu.vulkan import _native

DESCRIPTION = """Show what this machine offers: its processor with the kernels chosen for it, and every GPU with the
shaders chosen for it. Each GPU is tested against the CPU on random data and measured, which takes a few seconds."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--no-test", action="store_true", help="no self-test (what is remembered of an earlier one is shown), no speed"
    )


def run(options: Options) -> int:
    """Prints one line a fact, a device after the other."""
    from dllama_gpu.vulkan.discovery import find_gpus
    from dllama_gpu.vulkan.errors import NoGpuError

    _show(_cpu_facts(measured=not options.no_test))
    try:
        gpus = find_gpus()
    except NoGpuError as error:
        print()
        _show([("GPU", f"none: {error}")])
        return SUCCESS
    for index, info in enumerate(gpus):
        print()
        _show(_gpu_facts(index, info))
        _show(_tested_facts(index, measured=not options.no_test))
    return SUCCESS


def _show(facts: list[tuple[str, str]]) -> None:
    for label, text in facts:
        print(f"{label:<12} {text}", flush=True)


def _cpu_facts(measured: bool) -> list[tuple[str, str]]:
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
    return [
        ("device", "cpu"),
        ("name", cpu_name()),
        ("machine", f"{platform.machine()}, {platform.system()}"),
        ("threads", f"{available_threads()} usable, of {os.cpu_count() or 1} processors"),
        ("features", ", ".join(_native.cpu_features()) or "none that the kernels use"),
        ("kernels", device.kernels + (f" (also possible: {', '.join(others)})" if others else "")),
        ("memory", ", ".join(memory) or "unknown"),
        *([("speed", _speed(CpuDevice()))] if measured else []),
    ]


def _gpu_facts(index: int, info: _native.DeviceInfo) -> list[tuple[str, str]]:
    from dllama_gpu.vulkan.discovery import free_memory_of
    from dllama_gpu.vulkan.limits import Tier
    from dllama_gpu.vulkan.tiers import best_tier, missing_for

    features = info.features
    known = {
        "16-bit storage": features.storage_16bit,
        "8-bit storage": features.storage_8bit,
        "fp16": features.float16,
        "int8": features.int8,
        "subgroup arithmetic": "arithmetic" in info.subgroup.operations,
        "subgroup size control": features.subgroup_size_control,
        "integer dot product": features.integer_dot_product,
        "accelerated integer dot product": features.integer_dot_product_accelerated,
        "cooperative matrices": features.cooperative_matrix,
        "memory budget": features.memory_budget,
    }
    best = best_tier(info)
    lacking = None if best is max(Tier) else missing_for(Tier(best + 1), info)
    missing = lacking and f"for {Tier(best + 1).name.lower()} it lacks {lacking}"
    total = max((heap.n_bytes for heap in info.heaps if heap.device_local), default=0)
    sort = {"cpu": "a driver on processors, no GPU", "other": "GPU of an unknown sort"}
    facts = [
        ("device", f"vulkan:{index}"),
        ("name", info.name),
        ("driver", f"{info.driver} {info.driver_version}, Vulkan {info.api_version}"),
        (
            "type",
            sort.get(info.type, f"{info.type} GPU")
            + (", shares the processor's memory" if info.unified_memory else ""),
        ),
        ("memory", f"{size_text(total)} in all, {size_text(free_memory_of(info))} available"),
        ("tier", best.name.lower() + (f" ({missing})" if missing else "")),
        ("features", ", ".join(name for name, there in known.items() if there) or "none that the shaders use"),
    ]
    if lacks := [name for name, there in known.items() if not there]:
        facts.append(("missing", ", ".join(lacks)))
    subgroup = f"subgroups of {info.subgroup.size}"
    if info.subgroup.max_size > info.subgroup.min_size > 0:
        subgroup += f" ({info.subgroup.min_size} to {info.subgroup.max_size})"
    limits = info.limits
    facts.append(
        (
            "limits",
            f"{subgroup}, {limits.max_workgroup_invocations} invocations, {limits.max_shared_memory_size >> 10} KiB "
            f"shared, {size_text(limits.max_storage_buffer_range)} seen of a buffer",
        )
    )
    return facts


def _tested_facts(index: int, measured: bool) -> list[tuple[str, str]]:
    from dllama_gpu.cli.gpu_check import recalled_verdict, verdict_of
    from dllama_gpu.errors import DllamaError
    from dllama_gpu.vulkan.device import VulkanDevice

    try:
        verdict = verdict_of(index, again=True) if measured else recalled_verdict(index)
        if verdict is None:
            return [("self-test", "not yet made with this driver; it is at the first use")]
        facts = [
            ("wrong", f"{tier.name.lower()} shaders, not used: {'; '.join(wrong)}")
            for tier, wrong in verdict.wrong.items()
        ]
        if verdict.tier is None:
            return [*facts, ("self-test", "failed with all shaders; this GPU is not used")]
        took = "" if verdict.seconds is None else f" ({verdict.seconds:.1f} s)"
        facts.append(("self-test", f"passed with the {verdict.tier.name.lower()} shaders{took}"))
        if measured:
            facts.append(("speed", _speed(VulkanDevice(index, tier=verdict.tier))))
        return facts
    except DllamaError as error:
        return [("self-test", f"not possible: {error}")]


def _speed(device: Device) -> str:
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.net.measure import measure_speed

    speed = measure_speed(device, FloatType.Q40)
    return (
        f"matmuls of Q40 read {speed.bytes_per_second / 1e9:.1f} GB/s for one row, reach "
        f"{speed.flops_per_second / 1e9:.0f} GFLOP/s for many; an op costs {1e6 * speed.op_seconds:.0f} µs"
    )
