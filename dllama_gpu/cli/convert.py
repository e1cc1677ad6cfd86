"""`dllama-gpu convert`: turns a GGUF file into `.m` and `.t` files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser, UsageError
from dllama_gpu.cli.display import progress, size_text
from dllama_gpu.cli.failures import SUCCESS
from dllama_gpu.cli.terminal_text import one_line
from dllama_gpu.errors import DllamaError

if TYPE_CHECKING:
    from dllama_gpu.tokenizer.t_file import TokenizerFile

PROGRAM = "dllama-gpu convert"
DESCRIPTION = """Turn a GGUF file into the model file (.m) and the tokenizer file (.t) of distributed-llama.

GGUF files run as they are; converting is for programs that read .m and .t files only. What was written
is read back and compared with the GGUF file."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("format", choices=("gguf",), help="what to convert from")
    parser.add_argument("input", type=Path, metavar="IN.gguf", help="the model to convert")
    parser.add_argument("model", type=Path, metavar="OUT.m", help="model file to write")
    parser.add_argument("tokenizer", type=Path, metavar="OUT.t", help="tokenizer file to write")
    parser.add_argument(
        "--weights",
        choices=("q40", "q80", "f16", "f32"),
        default="q40",
        help="number format of the matrices (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=("search", "absmax"),
        default="search",
        help="how q40 scales are found: search loses less, absmax gives the same bytes as distributed-llama's "
        "converters (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="write over OUT.m and OUT.t if they are there already")


def run(options: Options) -> int:
    """Converts, and checks the result; what was written goes again where that fails."""
    targets = (options.model, options.tokenizer)
    if options.model.absolute() == options.tokenizer.absolute():
        raise UsageError(f"model and tokenizer cannot both be written to {options.model}", PROGRAM)
    for target in targets:
        if target.exists() and options.input.exists() and target.samefile(options.input):
            raise UsageError(f"{target} is the model to convert itself; give another name", PROGRAM)
    for target in targets:
        check_target(target, overwrite=options.force)

    from dllama_gpu.model.convert import convert_gguf_to_m, converted_size
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.model.gguf_file import GgufFile
    from dllama_gpu.model.verify import verify_m
    from dllama_gpu.tokenizer.gguf_vocabulary import t_file_from_gguf

    weight_type = FloatType(options.weights)
    source = GgufFile(options.input)
    try:
        tokenizer = t_file_from_gguf(options.input, source.metadata)
        check_space(options.model, converted_size(source, options.model, weight_type))
        with removed_on_failure(options.tokenizer):
            write_tokenizer(options.tokenizer, tokenizer)
            with progress("converting", "bytes") as advance:
                convert_gguf_to_m(source, options.model, weight_type, options.method, advance)
            with removed_on_failure(options.model), progress("checking", "bytes") as advance:
                error = verify_m(options.model, source, weight_type, advance)
    finally:
        source.close()
    size = size_text(options.model.stat().st_size)
    loss = f"matrices in {options.weights} off by {100 * error:.2f} %"
    print(one_line(f"{options.model}: {size}, {loss}, read back and compared"))
    print(one_line(f"{options.tokenizer}: {len(tokenizer.tokens)} tokens, read back and compared"))
    return SUCCESS


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises DllamaError where no file can be written to `path`, or one is there that may not be overwritten."""
    folder = path.parent
    if not folder.is_dir():
        raise DllamaError(f"{path} cannot be written: there is no folder {folder}; make it first")
    if path.is_dir():
        raise DllamaError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise DllamaError(f"{path} is a device or pipe; give the name of an ordinary file")
    if path.exists() and not overwrite:
        raise DllamaError(f"{path} is there already; give another name, or --force to write over it")
    if not os.access(folder, os.W_OK):
        raise DllamaError(f"{path} cannot be written: you may not write into the folder {folder}; give another one")


def check_space(path: Path, needed: int) -> None:
    """Raises DllamaError when the disk of `path` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DllamaError(
            f"{path} needs {size_text(needed)}, {size_text(free)} free in {path.parent.absolute()}; "
            "free some space, or give a folder on another disk"
        )


def write_tokenizer(path: Path, tokenizer: TokenizerFile) -> None:
    """Writes a `.t` file and reads it back. Raises DllamaError when either fails."""
    from dllama_gpu.tokenizer.t_file import read_t_file, write_t_file

    write_t_file(path, tokenizer)
    if read_t_file(path) != tokenizer:
        raise DllamaError(f"{path} reads back otherwise than it was written; convert again")


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Deletes `path` when what is done inside fails or is interrupted."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
