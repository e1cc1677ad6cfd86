"""Reading of the command line: a parser that answers in sentences, and the options that several commands share."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dllama_gpu.errors import DllamaError

Options = argparse.Namespace

WEIGHT_TYPES = ("q40", "q80", "f16", "bf16", "f32")

_LARGEST_NUMBER = (1 << 31) - 1


class UsageError(DllamaError):
    """The command line is wrong; `program` is the command whose `--help` explains it."""

    def __init__(self, message: str, program: str) -> None:
        super().__init__(f"{message}; see `{program} --help`")


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit. Options must be written out."""

    def __init__(
        self, prog: str, usage: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        message = message.removeprefix("argument ")
        if message.endswith("expected one argument"):
            message += " (one that begins with - is written --option=-value)"
        raise UsageError(message, self.prog)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Options:  # type: ignore[override]
        """The options in `args`. Raises UsageError, with the closest option there is for an unknown one."""
        options, rest = self.parse_known_args(args)
        if rest:
            name = rest[0].partition("=")[0]
            known = [text for action in self._actions for text in action.option_strings]
            close = difflib.get_close_matches(name, known, n=1)
            what = "option" if name.startswith("-") else "argument"
            self.error(f"unknown {what} {name!r}" + (f" (did you mean {close[0]}?)" if close else ""))
        return options


def whole_number(lowest: int, highest: int = _LARGEST_NUMBER) -> Callable[[str], int]:
    """A type for options: a whole number from `lowest` to `highest`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not lowest <= value <= highest:
            limits = f"at least {lowest}" if value < lowest else f"at most {highest}"
            raise argparse.ArgumentTypeError(f"{value} is out of range, it must be {limits}")
        return value

    return parse


def number(text: str) -> float:
    """A type for options: any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def add_model_arguments(parser: Parser) -> None:
    """Declares --model, --tokenizer and --weights."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="PATH",
        help="model: a GGUF or .m file, a Hugging Face folder, or hf:org/repo[:file.gguf], which is fetched",
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer: a .t or GGUF file, tokenizer.json, tokenizer.model, or a folder (default: the one of --model)",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHT_TYPES,
        help="convert the matrices to this number format while loading (default: files as they are, folders q80)",
    )


def add_device_argument(group: argparse._ArgumentGroup) -> None:
    """Declares --device."""
    group.add_argument(
        "--device",
        type=_device_name,
        default=os.environ.get("DLLAMA_GPU_DEVICE") or "auto",
        metavar="DEVICE",
        help="where to compute: cpu, vulkan, or vulkan:N for the GPU of that number in `dllama-gpu devices` (default: "
        "what DLLAMA_GPU_DEVICE says, else auto: a GPU if there is one, else the CPU)",
    )


def add_device_arguments(parser: Parser) -> None:
    """Declares what decides where and how the model is computed."""
    group = parser.add_argument_group("computation")
    add_device_argument(group)
    group.add_argument(
        "--gpu-layers",
        type=whole_number(0),
        metavar="N",
        help="the GPU computes N layers' worth of the model and the CPU the rest (default: all on the GPU if its "
        "memory holds it, else what the planner finds best)",
    )
    group.add_argument(
        "--nthreads",
        type=whole_number(1),
        metavar="N",
        help="CPU threads (default: one for each core this process may use)",
    )
    group.add_argument(
        "--pin-threads",
        action="store_true",
        help="keep each thread but the main one on one processor (Linux): steadier on an idle machine, slower on a "
        "busy one",
    )
    group.add_argument(
        "--buffer-float-type",
        choices=("q80", "f16", "f32"),
        default="q80",
        help="number format of activations that meet quantized weights and of what nodes send each other: q80 is fast, "
        "f32 exact, f16 as exact on a node and half as much to send (default: q80)",
    )
    group.add_argument(
        "--kv-cache-type",
        choices=("f16", "q80", "f32"),
        default="f16",
        help="number format of keys and values of past tokens: q80 takes about half the memory of f16 and loses a "
        "little, f32 takes twice as much (default: f16; GPUs: f16 only)",
    )


def _device_name(text: str) -> str:
    name = text.lower()
    if name not in ("auto", "cpu", "vulkan") and not re.fullmatch(r"vulkan:[0-9]{1,3}", name, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; it must be auto, cpu, vulkan or vulkan:N")
    return name
