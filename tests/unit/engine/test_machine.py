from __future__ import annotations

import sys

import numpy as np
import pytest

from dllama_gpu.engine import machine


def test_the_processor_has_a_name() -> None:
    assert machine.cpu_name()


def test_peak_memory_grows_with_what_the_process_touches() -> None:
    before = machine.peak_memory()
    touched = np.ones(64 << 20, np.uint8)
    after = machine.peak_memory()
    assert before is not None
    assert after is not None
    assert after - before > 32 << 20
    assert touched.nbytes <= after < 1 << 44


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
