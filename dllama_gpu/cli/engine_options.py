"""Options of commands that serve many requests."""

from __future__ import annotations

import argparse

from dllama_gpu.cli.arguments import Options, Parser, whole_number
from dllama_gpu.cli.cluster_options import seconds
from dllama_gpu.cli.prefill_chunk import add_prefill_chunk_argument
from dllama_gpu.cli.speculative_options import NGRAM, add_speculative_arguments

DEFAULT_CONTEXT = 4096


def add_engine_arguments(parser: Parser, *, slots: int | None = 4) -> None:
    """Declares how many requests run at once, and how; `slots` is the default of --slots, None is one user alone."""
    group = parser.add_argument_group("engine")
    if slots is None:
        parser.set_defaults(slots=1, max_queue=0)
    else:
        _add_many_users(group, slots)
    group.add_argument(
        "--max-seq-len",
        type=whole_number(1),
        metavar="N",
        help=f"tokens that a slot holds, prompt and answer together (default: the model's context, {DEFAULT_CONTEXT} "
        "at most)",
    )
    add_prefill_chunk_argument(group)
    group.add_argument(
        "--recover-seconds",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long requests wait for a lost worker or device before they fail (default: 60)",
    )
    add_speculative_arguments(parser, default=NGRAM)


def _add_many_users(group: argparse._ArgumentGroup, slots: int) -> None:
    group.add_argument(
        "--slots",
        type=whole_number(1, 256),
        default=slots,
        metavar="N",
        help="requests that run at the same time, each with a KV cache of its own (default: %(default)s)",
    )
    group.add_argument(
        "--max-queue",
        type=whole_number(0),
        default=64,
        metavar="N",
        help="requests that may wait for a slot; more are refused (default: %(default)s)",
    )


def context_length(options: Options, model_max: int) -> int:
    """Positions of a slot: what --max-seq-len says within the model's own context."""
    return min(options.max_seq_len or DEFAULT_CONTEXT, model_max)
