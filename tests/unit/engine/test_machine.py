from __future__ import annotations

import subprocess
import sys

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
    if sys.platform == "darwin":
        assert available is None  # macOS has no such number
    else:
        assert available is not None
        assert 0 < available <= total


def test_what_the_system_does_not_say_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_field", lambda path, name: "")
    monkeypatch.setattr(machine, "_SYSTEM", "Linux")
    assert machine.total_memory() is None
    assert machine.peak_memory() is None
