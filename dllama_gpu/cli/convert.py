"""`dllama-gpu convert`: turns models and tokenizers of other formats into `.m` and `.t` files."""

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
    from dllama_gpu.model.source import ModelSource
    from dllama_gpu.tokenizer.t_file import TokenizerFile

PROGRAM = "dllama-gpu convert"
DESCRIPTION = """Turn a model into the model file (.m) and the tokenizer file (.t) of distributed-llama.

  convert gguf      IN.gguf OUT.m [OUT.t]   a GGUF file
  convert hf        FOLDER  OUT.m [OUT.t]   a Hugging Face folder (config.json, safetensors)
  convert llama     FOLDER  OUT.m [OUT.t]   a folder from Meta (params.json, consolidated.*.pth)
  convert tokenizer IN      OUT.t           tokenizer.json, tokenizer.model, a GGUF file, or a folder

All of these run as they are. Converting is for programs that read .m and .t files only, and finds better
scales for q40 than loading has the time for. Tensors go through memory one at a time. What was written is
read back and compared. Checkpoints from Meta are read without PyTorch, and nothing in them is executed."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("format", choices=("gguf", "hf", "llama", "tokenizer"), help="what to convert from")
    parser.add_argument("input", type=Path, metavar="IN", help="the file or folder to convert")
    parser.add_argument("outputs", type=Path, nargs="*", metavar="OUT", help="files to write: OUT.m, OUT.t")
    parser.add_argument(
        "-o", "--output", type=Path, action="append", default=[], metavar="OUT", help="another way to name them"
    )
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
    parser.add_argument("--force", action="store_true", help="write over files that are there already")


def run(options: Options) -> int:
    """Converts, and checks the result; what was written goes again where that fails."""
    targets = _targets(options)
    for target in targets:
        if target.exists() and options.input.exists() and target.samefile(options.input):
            raise UsageError(f"{target} is the model to convert itself; give another name", PROGRAM)
    for target in targets:
        check_target(target, overwrite=options.force)
    if options.format == "tokenizer":
        convert_tokenizer(options.input, targets[0])
    else:
        convert_model(options, targets[0], targets[1] if len(targets) == 2 else None)
    return SUCCESS


def _targets(options: Options) -> list[Path]:
    """The files to write. Raises UsageError where their number is wrong or they are the same."""
    targets = [*options.outputs, *options.output]
    if options.format == "tokenizer":
        if len(targets) != 1:
            raise UsageError(f"one file to write is wanted, OUT.t, not {len(targets)}", PROGRAM)
        return targets
    if len(targets) not in (1, 2):
        raise UsageError(f"one or two files to write are wanted, OUT.m and OUT.t, not {len(targets)}", PROGRAM)
    if len(targets) == 2 and targets[0].absolute() == targets[1].absolute():
        raise UsageError(f"model and tokenizer cannot both be written to {targets[0]}", PROGRAM)
    return targets


def convert_tokenizer(path: Path, target: Path) -> None:
    """Writes the tokenizer at `path` as a `.t` file and reads it back. Raises DllamaError when that fails."""
    from dllama_gpu.tokenizer.open_tokenizer import t_file_from

    tokenizer = t_file_from(path)
    with removed_on_failure(target):
        write_tokenizer(target, tokenizer)
    _report_tokenizer(target, tokenizer)


def convert_model(options: Options, model: Path, tokenizer_target: Path | None) -> None:
    """Writes the model, and its tokenizer where it is wanted. Raises DllamaError when something fails."""
    from dllama_gpu.model.convert import convert_to_m, converted_size
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.model.verify import verify_m
    from dllama_gpu.tokenizer.open_tokenizer import t_file_from

    weight_type = FloatType(options.weights)
    source = _open(options)
    try:
        tokenizer = None if tokenizer_target is None else t_file_from(options.input)
        check_space(model, converted_size(source, model, weight_type))
        with removed_on_failure(tokenizer_target):
            if tokenizer_target is not None and tokenizer is not None:
                write_tokenizer(tokenizer_target, tokenizer)
            with progress("converting", "bytes") as advance:
                convert_to_m(source, model, weight_type, options.method, advance)
            with removed_on_failure(model), progress("checking", "bytes") as advance:
                error = verify_m(model, source, weight_type, advance)
    finally:
        source.close()
    size = size_text(model.stat().st_size)
    loss = f"matrices in {options.weights} off by {100 * error:.2f} %"
    print(one_line(f"{model}: {size}, {loss}, read back and compared"))
    if tokenizer_target is not None and tokenizer is not None:
        _report_tokenizer(tokenizer_target, tokenizer)


def _open(options: Options) -> ModelSource:
    """The model to convert. Raises DllamaError when it is not of the format that was named."""
    if options.format == "gguf":
        from dllama_gpu.model.gguf_file import GgufFile

        return GgufFile(options.input)
    if options.format == "hf":
        from dllama_gpu.model.hf_folder import HfFolder

        _check_folder(options.input)
        return HfFolder(options.input)
    from dllama_gpu.model.llama_folder import LlamaFolder

    _check_folder(options.input)
    return LlamaFolder(options.input)


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DllamaError(f"{path} {what}; give the folder that the model was downloaded to")


def _report_tokenizer(path: Path, tokenizer: TokenizerFile) -> None:
    print(one_line(f"{path}: {len(tokenizer.tokens)} tokens, read back and compared"))


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
def removed_on_failure(path: Path | None) -> Iterator[None]:
    """Deletes the file at `path`, if any, when what is done inside fails or is interrupted."""
    try:
        yield
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise
