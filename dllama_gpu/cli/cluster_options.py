"""Options of a root: which workers, how to share, the key."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

from dllama_gpu.cli.arguments import Options, Parser, UsageError, number
from dllama_gpu.errors import DllamaError

DEFAULT_TIMEOUT = 10.0
AUTO = "auto"
"""In place of a worker's address: those that are found."""
_LONGEST_TIMEOUT = 3600.0  # what workers accept
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def byte_size(text: str) -> int:
    """A type for options: bytes, with K, M, G or T for powers of 1024 (`1.5G`, `512MiB`)."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match and len(text) < 32 else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size above 0, such as 512M or 1.5G")
    return size


def shares(text: str) -> tuple[float, ...]:
    """A type for options: shares of the nodes, `4,1,1`, at least one of them above 0."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not any(found) or not all(math.isfinite(share) and share >= 0 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares like 4,1,1 (numbers from 0 up, not all 0)")
    return found


def seconds(text: str) -> float:
    """A type for options: seconds above 0."""
    value = number(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} seconds are out of range, it must be above 0 and at most 86400")
    return value


def _silence(text: str) -> float:
    value = seconds(text)
    if value > _LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text} seconds are out of range, it must be at most {_LONGEST_TIMEOUT:g}")
    return value


class _Addresses(argparse.Action):
    """Takes addresses behind spaces, commas or both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        """Stores the list."""
        addresses = [address for text in values or () for address in text.split(",") if address]
        if not addresses:
            parser.error(f"argument {option_string}: expected at least one address")
        setattr(namespace, self.dest, addresses)


def add_cluster_arguments(parser: Parser, *, trace: bool = True) -> None:
    """Declares what a root must know of its workers; `trace` for commands that do one thing and end."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--workers",
        nargs="+",
        action=_Addresses,
        metavar="HOST:PORT",
        help="share the model with these `dllama-gpu worker`s; `auto` finds the free ones on this network and uses "
        "those that make it faster",
    )
    group.add_argument(
        "--ratio",
        type=shares,
        metavar="R,R,…",
        help="shares of the nodes, this one first (default: measured and planned)",
    )
    group.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="the key that the workers were given (default: the one in DLLAMA_GPU_KEY, if set)",
    )
    group.add_argument(
        "--worker-timeout",
        type=_silence,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="how long a worker may be silent before it counts as lost (default: 10)",
    )
    group.add_argument(
        "--max-memory",
        type=byte_size,
        metavar="SIZE",
        help="memory that this node's share, or a GPU's part of the model, may take, e.g. 3G (default: what is free)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="FOLDER",
        help="where this node remembers the hashes of its models (default: this system's folder for caches)",
    )
    group.add_argument("--no-cache", action="store_true", help="compute the hashes anew and remember nothing")
    if not trace:
        parser.set_defaults(trace=None)
        return
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write a JSON file that shows when each node computed, waited and exchanged (chrome://tracing, Perfetto)",
    )


def check_cluster_options(options: Options, program: str) -> None:
    """Raises UsageError for options that say nothing without workers, or do not fit their number.

    Raises DllamaError when no trace can be written where --trace says.
    """
    if options.trace is not None:
        check_trace_path(options.trace)
    if options.no_cache and options.cache_dir is not None:
        raise UsageError("--no-cache leaves nothing for --cache-dir to say", program)
    if options.workers is None:
        # Without workers --max-memory bounds what a GPU takes.
        alone = ("max_memory",) if options.device == "cpu" else ()
        for name in ("ratio", "key_file", *alone, "no_cache", "cache_dir"):
            if getattr(options, name) not in (None, False):
                raise UsageError(f"--{name.replace('_', '-')} has a meaning with --workers only", program)
    elif AUTO in options.workers and options.ratio is not None:
        raise UsageError("--ratio shares among workers in a known order; name them in place of auto", program)
    elif options.ratio is not None and len(options.ratio) != 1 + len(options.workers):
        raise UsageError(
            f"--ratio has {len(options.ratio)} shares, but there are {1 + len(options.workers)} nodes, this one first",
            program,
        )


def check_trace_path(path: Path) -> None:
    """Raises DllamaError when no file can be written there, before anything else takes its time."""
    if path.is_dir():
        raise DllamaError(f"--trace {path} is a folder; name a file, such as {path / 'trace.json'}")
    if not path.absolute().parent.is_dir():
        raise DllamaError(f"--trace {path} cannot be written: there is no folder {path.parent}")
