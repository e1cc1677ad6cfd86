"""`dllama-gpu convert`: turns a GGUF file into `.m` and `.t` files."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.cli.arguments import Options, Parser, UsageError
from dllama_gpu.cli.display import progress, size_text
from dllama_gpu.cli.failures import SUCCESS
from dllama_gpu.errors import DllamaError

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


def run(options: Options) -> int:
    """Converts, and checks the result."""
    if options.model.absolute() == options.tokenizer.absolute():
        raise UsageError(f"model and tokenizer cannot both be written to {options.model}", PROGRAM)
    if options.tokenizer.exists() and options.input.exists() and options.tokenizer.samefile(options.input):
        raise UsageError(f"{options.tokenizer} is the model to convert itself; give another name", PROGRAM)

    from dllama_gpu.model.convert import convert_gguf_to_m
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.model.gguf_file import GgufFile
    from dllama_gpu.model.verify import verify_m
    from dllama_gpu.tokenizer.gguf_vocabulary import t_file_from_gguf
    from dllama_gpu.tokenizer.t_file import read_t_file, write_t_file

    weight_type = FloatType(options.weights)
    source = GgufFile(options.input)
    try:
        tokenizer = t_file_from_gguf(options.input)
        with progress("converting", "bytes") as advance:
            convert_gguf_to_m(source, options.model, weight_type, options.method, advance)
        with progress("checking", "bytes") as advance:
            error = verify_m(options.model, source, weight_type, advance)
    finally:
        source.close()
    size = size_text(options.model.stat().st_size)
    print(f"{options.model}: {size}, matrices in {options.weights} off by {100 * error:.2f} %, read back and compared")
    write_t_file(options.tokenizer, tokenizer)
    if read_t_file(options.tokenizer) != tokenizer:
        raise DllamaError(f"{options.tokenizer} reads back otherwise than it was written; convert again")
    print(f"{options.tokenizer}: {len(tokenizer.tokens)} tokens, read back and compared")
    return SUCCESS
