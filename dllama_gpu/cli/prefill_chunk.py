"""How many tokens of a prompt are computed in one step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, whole_number

if TYPE_CHECKING:
    from dllama_gpu.graph.batch import Device

_ROWS, _CARD_ROWS = 128, 512


def add_prefill_chunk_argument(group: argparse._ArgumentGroup) -> None:
    """Declares --prefill-chunk."""
    group.add_argument(
        "--prefill-chunk",
        type=whole_number(1, 8192),
        metavar="N",
        help="rows of a step at most: tokens of prompts and texts computed together "
        f"(default: {_ROWS}, on a graphics card alone {_CARD_ROWS})",
    )


def prefill_chunk(options: Options, device: Device) -> int:
    """What --prefill-chunk says, or what suits the device.

    A graphics card has units for more rows at once than a processor, but nodes of a cluster wait for the slowest.
    """
    if options.prefill_chunk is not None:
        return int(options.prefill_chunk)
    return _CARD_ROWS if options.workers is None and getattr(device, "is_graphics_card", False) else _ROWS
