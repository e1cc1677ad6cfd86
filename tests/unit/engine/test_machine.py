from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dllama_gpu.engine import machine


def test_the_processor_has_a_name() -> None:
    assert machine.cpu_name()


def test_peak_memory_grows_with_what_the_process_touches() -> None:
    # In a process of its own, as this one may have had more than that before.
    code = (
        "from dllama_gpu.engine.machine import peak_memory\n"
        "print(peak_memory()); touched = b'x' * (64 << 20); print(peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = (int(line) for line in done.stdout.split())
    assert 64 << 20 <= after - before <= 72 << 20
    assert before < 64 << 20


def test_available_memory_is_a_part_of_all_memory() -> None:
    total, available = machine.total_memory(), machine.available_memory()
    assert total is not None
    assert total > 64 << 20
    assert available is not None
    assert 0 < available <= total


def test_a_limit_of_a_cgroup_around_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = tmp_path / "fs" / "slice" / "service"
    service.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slice/service\n")
    monkeypatch.setattr(machine, "_SYSTEM", "Linux")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "_CGROUP_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    (service / "memory.max").write_text("max\n")
    (service / "memory.current").write_text("5000\n")
    assert machine.available_memory() == 800 * 1024
    (service.parent / "memory.max").write_text("500000\n")
    (service.parent / "memory.current").write_text("300000\n")
    (service.parent / "memory.stat").write_text("anon 200000\ninactive_file 50000\n")
    assert machine.available_memory() == 500_000 - 300_000 + 50_000
    (service / "memory.max").write_text("4000\n")
    assert machine.available_memory() == 0


def test_the_available_memory_of_macos_is_what_vm_stat_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\n"
        "Pages active:                            400000.\n"
        "Pages inactive:                           20000.\n"
        "Pages speculative:                          300.\n"
    )
    monkeypatch.setattr(machine, "_SYSTEM", "Darwin")
    monkeypatch.setattr(machine, "_output", lambda *command: text)
    assert machine.available_memory() == 16384 * 30300
    monkeypatch.setattr(machine, "_output", lambda *command: "")
    assert machine.available_memory() is None


def test_what_the_system_does_not_say_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_field", lambda path, name: "")
    monkeypatch.setattr(machine, "_SYSTEM", "Linux")
    assert machine.total_memory() is None
    assert machine.peak_memory() is None
