"""The self-test at first use, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllama_gpu.cpu.device import CpuDevice


def test_the_shaders_of_the_best_tier_pass(device_index: int) -> None:
    from dllama_gpu.cli.gpu_check import wrong_with
    from dllama_gpu.vulkan.device import VulkanDevice

    assert wrong_with(VulkanDevice(device_index), CpuDevice(1)) == []


def test_a_tier_that_fails_is_replaced_by_the_next(device_index: int) -> None:
    from dllama_gpu.cli.gpu_check import judge
    from dllama_gpu.vulkan.limits import Tier

    tried: list[Tier] = []

    def check(tier: Tier) -> list[str]:
        tried.append(tier)
        return ["matmul: wrong"] if tier > Tier.BASE else []

    verdict = judge(Tier.DOT, check)
    assert (verdict.tier, tried) == (Tier.BASE, [Tier.DOT, Tier.SUBGROUP, Tier.BASE])
    assert verdict.wrong == {Tier.DOT: ["matmul: wrong"], Tier.SUBGROUP: ["matmul: wrong"]}
    assert judge(Tier.SUBGROUP, lambda _: ["all is wrong"]).tier is None


def test_a_verdict_is_remembered_for_the_same_shaders(device_index: int, tmp_path: Path) -> None:
    from dllama_gpu.cli.gpu_check import Verdict, recall, remember
    from dllama_gpu.vulkan.limits import Tier

    path = tmp_path / "folder" / "verdict"
    for verdict in (
        Verdict(Tier.DOT),
        Verdict(Tier.BASE, {Tier.SUBGROUP: ["a", "b"]}),
        Verdict(None, {Tier.BASE: ["c"]}),
    ):
        remember(path, "one", verdict)
        assert recall(path, "one") == verdict
        assert recall(path, "other") is None
    for damage in (
        b"",
        b"[]",
        b"{}",
        b'{"shaders": "one", "tier": 99, "wrong": {}}',
        b'{"shaders": "one", "tier": 1, "wrong": 3}',
    ):
        path.write_bytes(damage)
        assert recall(path, "one") is None


def test_memory_that_others_hold_is_no_verdict(
    device_index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dllama_gpu.cli import gpu_check
    from dllama_gpu.vulkan import _native
    from dllama_gpu.vulkan.errors import GpuMemoryError

    monkeypatch.setattr(gpu_check, "cache_folder", lambda: tmp_path)
    _native.fail_allocations(1)
    with pytest.raises(GpuMemoryError, match="no memory left"):
        gpu_check.verdict_of(device_index)
    assert gpu_check.recalled_verdict(device_index) is None
    assert not gpu_check.verdict_of(device_index).wrong


def test_wrong_results_are_told_and_not_used(
    device_index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dllama_gpu.cli import gpu_check
    from dllama_gpu.vulkan.errors import GpuError
    from dllama_gpu.vulkan.limits import Tier

    monkeypatch.setattr(gpu_check, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(
        gpu_check, "wrong_with", lambda device, _: ["matmul: off"] if device.gpu.tier > Tier.BASE else []
    )
    assert gpu_check.open_checked(device_index).gpu.tier is Tier.BASE
    shown = capsys.readouterr().err
    assert "computes wrong results with the dot shaders, which are not used: matmul: off." in shown
    assert gpu_check.open_checked(device_index).gpu.tier is Tier.BASE
    assert "matmul: off" in capsys.readouterr().err, "it is said at every start, not only at the first"
    monkeypatch.setattr(gpu_check, "wrong_with", lambda *_: ["off"])
    gpu_check.verdict_of(device_index, again=True)
    with pytest.raises(GpuError, match="wrong results with all shaders"):
        gpu_check.open_checked(device_index)
    capsys.readouterr()
    assert not gpu_check.passes(device_index)
    assert "is not used, the CPU computes: it computes wrong results" in capsys.readouterr().err
