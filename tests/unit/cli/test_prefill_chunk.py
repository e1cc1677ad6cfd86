"""--prefill-chunk, and what is taken where it is not given."""

from __future__ import annotations

from argparse import Namespace

import pytest

from dllama_gpu.cli.prefill_chunk import prefill_chunk
from dllama_gpu.cpu.device import CpuDevice


class Card(CpuDevice):
    """The CPU that passes for a graphics card."""

    is_graphics_card = True


@pytest.mark.parametrize(
    ("device", "workers", "given", "rows"),
    [
        (CpuDevice, None, None, 128),
        (Card, None, None, 512),
        (Card, ["10.0.0.2:9999"], None, 128),
        (Card, None, 7, 7),
        (CpuDevice, None, 700, 700),
    ],
)
def test_a_card_alone_computes_more_rows_at_once(
    device: type[CpuDevice], workers: list[str] | None, given: int | None, rows: int
) -> None:
    assert prefill_chunk(Namespace(prefill_chunk=given, workers=workers), device(1)) == rows
