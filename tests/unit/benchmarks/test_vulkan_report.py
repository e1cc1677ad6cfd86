"""The report of a GPU, from numbers that are known."""

from __future__ import annotations

from benchmarks.machine import Machine
from benchmarks.measure import Measurement
from benchmarks.vulkan_report import Beside, GpuFinding, GpuResults, GpuSettings, markdown

MACHINE = Machine("A Processor (R) 3000", 2, 8 << 30, "Linux", "3.12", "abc", 0.0)
FINDING = GpuFinding(
    model="small",
    matrix_bytes=10**9,
    token_seconds=0.1,
    users_seconds=0.4,
    prompt_seconds=2.0,
    prompt_macs=10**12,
    dispatches=246,
    barriers=245,
    submits=1,
    kernels={"matvec 32": (60, 0.05)},
)


def measurement(program: str, seconds: float) -> Measurement:
    return Measurement(program, [seconds], [seconds], 1.0, 1 << 30, [1.0, 2.0, 4.0, seconds])


def results(*besides: Beside) -> GpuResults:
    settings = GpuSettings(prompt_tokens=64, decode_tokens=16, copy_bytes=1, repetitions=1)
    return GpuResults("2026-01-01", MACHINE, settings, "vulkan:0 (GPU)", "driver 1", 20e9, [FINDING], list(besides))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_follow_from_seconds() -> None:
    row = next(line for line in markdown(results()).splitlines() if line.startswith("| small"))
    assert cells(row) == ["small", "1.00 GB", "10.0", "50%", "20.0", "32.0", "1.000", "246 / 245 / 1"]
    assert "| matvec 32 | 60" in markdown(results())


def test_programs_stand_beside_one_another_and_a_missing_one_does_not() -> None:
    gpu, cpu, peer = measurement("ours on a GPU", 4.0), measurement("ours", 2.0), measurement("theirs", 8.0)
    text = markdown(results(Beside("small", gpu, cpu, peer), Beside("large", gpu, cpu, None)))
    rows = [cells(line) for line in text.splitlines() if line.startswith(("| small | ", "| large | "))]
    rows = [row for row in rows if "ours" in row[1] or "llama" in row[1]]
    assert [row[:4] for row in rows] == [
        ["small", "Vulkan, ours", "4.0", "16.0"],
        ["small", "CPU, ours", "8.0", "32.0"],
        ["small", "Vulkan, llama.cpp", "2.0", "8.0"],
        ["large", "Vulkan, ours", "4.0", "16.0"],
        ["large", "CPU, ours", "8.0", "32.0"],
    ]
    assert rows[1][4] == "1.0000"
    assert text.count("- CPU, ours: ours") == 1
