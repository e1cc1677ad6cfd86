"""Gets a model by name and runs it, or one that is there by its path: `python3 launch.py`, nothing else needed.

The first start makes an environment, builds the package and downloads the model; later ones begin within seconds.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets a sentence, not a traceback)
    sys.exit(f"dllama-gpu needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import argparse
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.catalogue import CATALOGUE, DEFAULT_MODEL, ModelEntry, UnknownModelError, entry_of_file, find_model
from launcher.console import Console
from launcher.environment import Environment, ensure_installed, ensure_python, environment_of
from launcher.guard import guarded
from launcher.store import ensure_model, is_verified

_ROOT = Path(__file__).resolve().parent
_MODELS = _ROOT / "models"
_DEFAULT_STEPS = 128
_SECONDS_TO_END = 10
_LARGEST_NUMBER = (1 << 31) - 1
_SIGNAL_HINTS = {
    "SIGKILL": ", probably by the system for want of memory; try a smaller --max-seq-len behind --",
    "SIGBUS": ": the model file was cut short, or its disk went away, while it was read; check that it is complete",
}


def main(arguments: Sequence[str]) -> int:
    """Runs the program with these command line arguments and returns its exit status."""
    options, extra = parse_arguments(arguments)
    if options.list:
        _print_catalogue()
        return 0
    try:
        entry, folder = choose_model(options.model)
    except UnknownModelError as error:
        print(error, file=sys.stderr)
        return 2
    if folder is not None and options.download_only:
        print(f"{options.model} is a file that is here already; --download-only takes a name.", file=sys.stderr)
        return 2
    console = Console()
    environment = environment_of(_ROOT)
    if options.download_only:
        ensure_python(environment, console, assume_yes=options.yes)
    else:
        ensure_installed(environment, (), console, assume_yes=options.yes)
    if folder is None:
        folder = ensure_model(_MODELS, entry, environment.python, console)
    if options.download_only:
        console.say(f"{entry.name} is in {folder}")
        return 0
    command = run_command(environment, folder, entry, options, extra)
    console.say(f"$ {_shell_line(command)}")
    return 0 if options.skip_run else run(command)


def choose_model(name: str) -> tuple[ModelEntry, Path | None]:
    """The model of this name in the catalogue or, with the folder it is in, the file of this path.

    Raises UnknownModelError when there is neither.
    """
    try:
        return find_model(name), None
    except UnknownModelError:
        path = Path(name)
        if not path.is_file():
            raise
        return entry_of_file(path), path.parent


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This program's options, and what follows `--` for the run."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return _parser().parse_args(arguments[:at]), list(arguments[at + 1 :])


def run_command(
    environment: Environment, folder: Path, entry: ModelEntry, options: argparse.Namespace, extra: Sequence[str]
) -> list[str]:
    """The command line that runs the model in `folder` as `options` (of this program) and `extra` arguments say."""
    command = [str(environment.program), "inference", "--model", str(folder / entry.model_file)]
    command += ["--prompt", entry.prompt if options.prompt is None else options.prompt]
    command += ["--steps", str(options.steps), *entry.arguments]
    if options.nthreads is not None:
        command += ["--nthreads", str(options.nthreads)]
    if options.device is not None:
        command += ["--device", options.device]
    return [*command, *extra]


def run(command: Sequence[str]) -> int:
    """Runs the command on this terminal and returns its exit status, as a shell would give it."""
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the run got it too, and ends by itself
        try:
            process.wait(_SECONDS_TO_END)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
        return 130
    if status < 0:
        print(f"The run was ended by signal {-status}{_signal_hint(-status)}.", file=sys.stderr)
        return 128 - status
    return status


def _signal_hint(number: int) -> str:
    """Signals have other numbers on other systems."""
    name = signal.Signals(number).name if number in {known.value for known in signal.Signals} else ""
    return _SIGNAL_HINTS.get(name, "")


def _whole_number(highest: int) -> Callable[[str], int]:
    """A type for options: a whole number from 1 to `highest`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {highest}")
        return int(text)

    return parse


def _shell_line(command: Sequence[str]) -> str:
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Get a model by name and run it. The first start prepares everything; later ones take seconds.",
        epilog="What follows -- goes to `dllama-gpu inference` as it is, for example: launch.py -- --temperature 0.8",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a name of --list, or the path of a GGUF or .m file (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="list the models and end")
    parser.add_argument("--prompt", help="the text to continue (default: one that suits the model)")
    parser.add_argument(
        "--steps",
        type=_whole_number(_LARGEST_NUMBER),
        default=_DEFAULT_STEPS,
        help="tokens to write (default: %(default)s)",
    )
    parser.add_argument("--nthreads", type=_whole_number(os.cpu_count() or 1), help="CPU threads to use")
    parser.add_argument("--device", choices=("auto", "cpu"), help="where to compute")
    parser.add_argument("--download-only", action="store_true", help="get the model's files, build and run nothing")
    parser.add_argument("--skip-run", action="store_true", help="make all ready and show the command, run nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="install missing system packages without asking")
    return parser


def _print_catalogue() -> None:
    width = max(len(entry.name) for entry in CATALOGUE)
    for entry in CATALOGUE:
        present = all(is_verified(_MODELS / entry.name, file) for file in entry.files)
        note = ", downloaded" if present else ""
        print(f"{entry.name:<{width}}  {entry.description} ({entry.size / 1e6:.0f} MB{note})")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
