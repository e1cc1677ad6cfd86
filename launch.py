"""Gets a model by name and runs it, or one that is there by its path: `python3 launch.py`, nothing else needed.

The first start makes an environment, builds the package and downloads the model; later ones begin within seconds.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets a sentence, not a traceback)
    sys.exit(f"dllama-gpu needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import argparse
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from dllama_gpu.hub.catalogue import LISTED_SEQ_LEN
from launcher.catalogue import (
    CATALOGUE,
    DEFAULT_MODEL,
    HUB_PREFIX,
    ModelEntry,
    UnknownModelError,
    entry_of_file,
    entry_on_hub,
    find_model,
)
from launcher.console import Console
from launcher.environment import Environment, ensure_installed, ensure_python, environment_of
from launcher.guard import guarded
from launcher.store import ensure_model, is_verified

_ROOT = Path(__file__).resolve().parent
_MODELS = _ROOT / "models"
_DEFAULT_STEPS = 128
_NODE_COUNTS = (1, 2, 4, 8)
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
        print_catalogue()
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
    if options.download_only and entry.download is None:
        ensure_python(environment, console, assume_yes=options.yes)
    else:
        ensure_installed(environment, (), console, assume_yes=options.yes)
    if entry.download is not None:
        status, files = download(environment, entry.download, options.endpoint)
        if status != 0:
            return status
    else:
        folder = ensure_model(_MODELS, entry, environment.python, console) if folder is None else folder
        files = [folder / entry.model_file]
    if options.download_only:
        console.say(f"{entry.name} is in {files[0] if files[0].is_dir() else files[0].parent}")
        return 0
    command = run_command(environment, files, entry, options, extra)
    console.say(f"$ {_shell_line(command)}")
    return 0 if options.skip_run else run(command)


def choose_model(name: str) -> tuple[ModelEntry, Path | None]:
    """The model of this name in the catalogue or on the hub or, with the folder it is in, the file of this path.

    Raises UnknownModelError when there is none of these.
    """
    if name.startswith(HUB_PREFIX):
        return entry_on_hub(name, "a model of the hub"), None
    try:
        return find_model(name), None
    except UnknownModelError:
        path = Path(name)
        if not name or not path.exists():
            raise
        return entry_of_file(path), path.parent


def download(environment: Environment, name: str, endpoint: str | None) -> tuple[int, list[Path]]:
    """Gets a model of the hub; returns the exit status, and the paths of the model and of its tokenizer, if apart."""
    command = [str(environment.program), "download", name, "--into", str(_MODELS)]
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    return finished.returncode, [Path(line) for line in finished.stdout.splitlines()]


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This program's options, and what follows `--` for the run."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return _parser().parse_args(arguments[:at]), list(arguments[at + 1 :])


def run_command(
    environment: Environment,
    files: Sequence[Path],
    entry: ModelEntry,
    options: argparse.Namespace,
    extra: Sequence[str],
) -> list[str]:
    """The command line that runs the model as `options` (of this program) and `extra` arguments say.

    `files`: the model and, where it is apart, its tokenizer.
    """
    chats = entry.chats and options.prompt is None and sys.stdin.isatty()
    command = [str(environment.program), "api" if options.api else "chat" if chats else "inference"]
    command += ["--model", str(files[0])]
    if files[1:]:
        command += ["--tokenizer", str(files[1])]
    if command[1] == "inference":
        command += ["--prompt", entry.prompt if options.prompt is None else options.prompt]
        command += ["--chat"] if entry.chats else []
        command += ["--steps", str(options.steps), *entry.arguments]
    if options.nthreads is not None:
        command += ["--nthreads", str(options.nthreads)]
    if options.device is not None:
        command += ["--device", options.device]
    if options.workers:
        command += ["--workers", *options.workers]
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


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|vulkan(:[0-9]{1,3})?", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; it must be auto, cpu, vulkan or vulkan:N")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Get a model by name and run it. The first start prepares everything; later ones take seconds.",
        epilog="What follows -- goes to the command that runs the model as it is, for example: "
        "launch.py -- --temperature 0.8",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a name of --list (- and _ are the same), hf:org/repo or hf:org/repo:file.gguf of Hugging Face's hub, or "
        "the path of a GGUF or .m file or of a folder (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="list the models, what they need, and end")
    parser.add_argument(
        "--prompt", help="the text to continue, or the question (default: a chat, or a text that suits the model)"
    )
    parser.add_argument(
        "--steps",
        type=_whole_number(_LARGEST_NUMBER),
        default=_DEFAULT_STEPS,
        help="tokens to write (default: %(default)s)",
    )
    parser.add_argument("--api", action="store_true", help="serve the model through OpenAI's API")
    parser.add_argument("--nthreads", type=_whole_number(os.cpu_count() or 1), help="CPU threads to use")
    parser.add_argument("--device", type=_device, help="where to compute: auto, cpu, vulkan or vulkan:N")
    parser.add_argument("--workers", nargs="+", metavar="HOST:PORT", help="share the model with these workers, or auto")
    parser.add_argument("--endpoint", metavar="URL", help="the hub or its mirror (default: HF_ENDPOINT, else the hub)")
    parser.add_argument("--download-only", action="store_true", help="get the model's files, run nothing")
    parser.add_argument(
        "--skip-run", "-skip-run", action="store_true", help="make all ready and show the command, run nothing"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="install missing system packages without asking")
    return parser


def print_catalogue() -> None:
    """Writes a table of the models: size, and what each node needs of memory where 1, 2, 4 and 8 share it evenly."""
    width = max(len(entry.name) for entry in CATALOGUE)
    print(f"{'':<{width}} {'':>9}  GB of memory on each of N nodes")
    print(f"{'name':<{width}} {'size':>9} " + "".join(f"{f'N = {n}':>8}" for n in _NODE_COUNTS))
    for entry in CATALOGUE:
        size = f"{entry.size / 1e9:.1f} GB"
        needs = "".join(f"{entry.shape.memory_per_node(n) / 1e9:8.1f}" for n in _NODE_COUNTS) if entry.shape else ""
        print(
            f"{entry.name:<{width}} {size:>9} {needs}  {entry.description}{', downloaded' if _is_here(entry) else ''}"
        )
    print(f"\nMemory is that of weights and of a context of {LISTED_SEQ_LEN} tokens, about.")


def _is_here(entry: ModelEntry) -> bool:
    if entry.download is None:
        return all(is_verified(_MODELS / entry.name, file) for file in entry.files)
    return all((_MODELS / entry.name / name).exists() for name in entry.downloaded)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
