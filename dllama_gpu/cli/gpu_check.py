"""The self-test of a GPU at its first use: a tier whose shaders compute something else is not used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dllama_gpu
from dllama_gpu.cli.display import note
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.self_test import CUT_BYTES, Failure, compare_devices, cut_cases, tile_cases
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Device
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.device import VulkanDevice
from dllama_gpu.vulkan.discovery import find_gpus
from dllama_gpu.vulkan.errors import GpuError, GpuMemoryError
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.pipeline_cache import cache_folder, cache_key, write_quietly
from dllama_gpu.vulkan.shaders import shaders_digest
from dllama_gpu.vulkan.tiers import chosen_tier

Check = Callable[[Tier], list[str]]
"""What is wrong with a tier, one sentence a kind of op."""


@dataclass(frozen=True)
class Verdict:
    """The highest tier that passed, None if none did, and what was wrong with those above it."""

    tier: Tier | None
    wrong: dict[Tier, list[str]] = field(default_factory=dict)
    seconds: float | None = None
    """How long the test took; None where an earlier one was remembered."""


def open_checked(index: int) -> VulkanDevice:
    """The `index`th GPU with the highest tier that passes the self-test; says loudly what does not.

    Raises GpuError when not even the lowest passes, the GPU cannot be opened, or has no memory for the test.
    """
    verdict = _told_verdict(index)
    name = _name(index)
    for tier, wrong in verdict.wrong.items():
        note(
            "warning",
            f"{name} computes wrong results with the {tier.name.lower()} shaders, which are not used: "
            f"{'; '.join(wrong)}. A newer driver may help; please report it",
        )
    if verdict.tier is None:
        raise GpuError(f"{name} computes wrong results with all shaders; use --device cpu, or try a newer driver")
    return VulkanDevice(index, tier=verdict.tier)


def passes(index: int) -> bool:
    """Whether the `index`th GPU can be used at all; says why not, for a choice that the program makes itself."""
    try:
        if _told_verdict(index).tier is not None:
            return True
        reason = "it computes wrong results with all shaders; a newer driver may help"
    except GpuError as error:
        reason = str(error)
    note("warning", f"{_name(index)} is not used, the CPU computes: {reason}")
    return False


def _told_verdict(index: int) -> Verdict:
    verdict = verdict_of(index)
    if verdict.seconds is not None and not verdict.wrong:
        time_taken = f"{verdict.seconds:.1f} s; remembered for this driver"
        note("self-test", f"{_name(index)} computes what the CPU does ({time_taken})")
    return verdict


def _name(index: int) -> str:
    return f"vulkan:{index} ({find_gpus()[index].name})"


def verdict_of(index: int, *, again: bool = False) -> Verdict:
    """The self-test of the `index`th GPU, or what is remembered of it for this driver and these shaders."""
    remembered = None if again else recalled_verdict(index)
    if remembered is not None:
        return remembered

    def check(tier: Tier) -> list[str]:
        return wrong_with(VulkanDevice(index, tier=tier), CpuDevice(1))

    info = find_gpus()[index]
    verdict = judge(chosen_tier(info), check)
    remember(_path(info), _tested(), verdict)
    return verdict


def recalled_verdict(index: int) -> Verdict | None:
    """What is remembered of the `index`th GPU with this driver and these shaders."""
    return recall(_path(find_gpus()[index]), _tested())


def judge(highest: Tier, check: Check) -> Verdict:
    """Tries `highest`, then what lies below it, until nothing is wrong."""
    started = time.perf_counter()
    wrong: dict[Tier, list[str]] = {}
    for tier in sorted((tier for tier in Tier if tier <= highest), reverse=True):
        found = check(tier)
        if not found:
            return Verdict(tier, wrong, time.perf_counter() - started)
        wrong[tier] = found
    return Verdict(None, wrong, time.perf_counter() - started)


def remember(path: Path, digest: str, verdict: Verdict) -> None:
    """Writes a verdict; `digest` says of which shaders."""
    stored = {
        "shaders": digest,
        "tier": None if verdict.tier is None else int(verdict.tier),
        "wrong": {str(int(tier)): wrong for tier, wrong in verdict.wrong.items()},
    }
    write_quietly(path, json.dumps(stored).encode())


def recall(path: Path, digest: str) -> Verdict | None:
    """What `remember` wrote, None where that is missing, damaged or about other shaders."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["shaders"] != digest:
            return None
        tier = None if stored["tier"] is None else Tier(stored["tier"])
        return Verdict(
            tier, {Tier(int(number)): [str(text) for text in texts] for number, texts in stored["wrong"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _tested() -> str:
    """What a verdict is about: the shaders, and the release, which decides how they are run."""
    return f"{dllama_gpu.__version__} {shaders_digest()}"


def _path(info: _native.DeviceInfo) -> Path:
    # Another choice of the highest tier is another question.
    return cache_folder() / f"{cache_key(info)}.{chosen_tier(info).name.lower()}.self-test"


def wrong_with(device: VulkanDevice, trusted: Device) -> list[str]:
    """One sentence for each kind of op that `device` computes otherwise than `trusted`.

    Raises GpuMemoryError: that other programs hold the memory is no fault of the shaders, and not remembered.
    """
    try:
        failures = compare_devices(device, trusted)
        failures += compare_devices(device.seeing(CUT_BYTES), trusted, cut_cases)
        if device.gpu.tier is Tier.MATRIX:
            failures += compare_devices(device, trusted, tile_cases)
    except DllamaError as error:
        failures = [Failure("self-test", str(error), error)]
    for failure in failures:
        if isinstance(failure.error, GpuMemoryError):
            raise failure.error
    return [f"{failure.case}: {failure.what}" for failure in failures]
