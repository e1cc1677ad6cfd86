"""The program `dllama-gpu`: finds the command and runs it.

Nothing heavy is imported before a command really runs, so `--version` and every `--help` answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

import dllama_gpu
from dllama_gpu.cli.arguments import Options, Parser, UsageError
from dllama_gpu.cli.failures import explain_lost_files, guarded

_PROGRAM = "dllama-gpu"
_COMMANDS = {
    "inference": "continue a prompt and say how fast it was",
    "chat": "talk with a model, on a terminal or over a pipe",
    "perplexity": "measure how well a model predicts a text",
    "api": "serve a model to many users through OpenAI's API",
    "devices": "show what this machine offers and which kernels are chosen",
    "worker": "lend this machine to a root elsewhere",
    "workers": "list the workers on this network",
    "plan": "say what a cluster would do with a model before anything is loaded",
    "download": "get a model from Hugging Face's hub or a mirror",
    "convert": "turn models of other formats into .m and .t files",
    "inspect": "show what a model or tokenizer file holds",
}


class Command(Protocol):
    """What the module of a command offers."""

    DESCRIPTION: str

    def add_arguments(self, parser: Parser) -> None:
        """Declares the command's options."""

    def run(self, options: Options) -> int:
        """Does the work and returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dllama-gpu` with these arguments (default: the command line's) and returns the exit status.

    0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C, 141 the reader of the output went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(_PROGRAM, lambda: _dispatch(words))


def api(arguments: Sequence[str] | None = None) -> int:
    """Runs `dllama-gpu-api`, another name of `dllama-gpu api`."""
    return main(["api", *(sys.argv[1:] if arguments is None else arguments)])


def _dispatch(words: Sequence[str]) -> int:
    if not words:
        _parser().print_help(sys.stderr)
        return 2
    if words[0] == "help":  # `help inference` is `inference --help`
        words = [*words[1:2], "--help", *words[2:]]
    name = words[0]
    if name.startswith("-"):
        _parser().parse_args(words)
        raise UsageError("a command comes first", _PROGRAM)
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        guess = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(_COMMANDS)}"
        raise UsageError(f"there is no command {name!r} ({guess})", _PROGRAM)
    command = cast(Command, importlib.import_module(f"dllama_gpu.cli.{name}"))
    parser = Parser(prog=f"{_PROGRAM} {name}", description=command.DESCRIPTION)
    command.add_arguments(parser)
    options = parser.parse_args(words[1:])
    explain_lost_files(_PROGRAM)
    return command.run(options)


def _parser() -> Parser:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in _COMMANDS.items())
    parser = Parser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} COMMAND [OPTION ...]",
        description=dllama_gpu.__doc__.splitlines()[0] if dllama_gpu.__doc__ else None,
        epilog=f"commands:\n{commands}\n\n`{_PROGRAM} COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"{_PROGRAM} {dllama_gpu.__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
