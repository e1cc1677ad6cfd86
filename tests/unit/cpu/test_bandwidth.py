"""The read loop that measures memory: how fast is the machine's affair, that it ends with a rate is ours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.bandwidth import read_rates


@pytest.mark.parametrize("n_bytes", [0, 8, 120, (1 << 20) + 8, (3 << 20) + 136])
def test_any_size_is_read(n_bytes: int) -> None:
    rates = read_rates(1, n_bytes, n_passes=2)
    assert len(rates) == 2
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to read"):
        _native.read_rate(_native.ThreadPool(1, False), np.empty(0, np.uint64))
