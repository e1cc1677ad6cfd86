"""`dllama-gpu perplexity`: measures how well a model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser, add_device_arguments, add_model_arguments, whole_number
from dllama_gpu.cli.cluster_options import add_cluster_arguments, check_cluster_options
from dllama_gpu.cli.display import progress
from dllama_gpu.cli.failures import INTERRUPTED, SUCCESS
from dllama_gpu.cli.text_file import read_text

if TYPE_CHECKING:
    from dllama_gpu.engine.perplexity import PerplexityResult

PROGRAM = "dllama-gpu perplexity"
DESCRIPTION = """Measure how well a model predicts a text: the lower the perplexity, the better.

The text is cut into consecutive windows. In each, every token but the first is predicted from those
before it in the window; nothing is put before the first one. What is left behind the last full window
is not counted. The result goes to standard output."""

_MAX_ROWS = 128


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    add_model_arguments(parser)
    parser.add_argument("--file", required=True, type=Path, metavar="FILE", help="UTF-8 text; - reads standard input")
    parser.add_argument(
        "--window", type=whole_number(2), default=512, metavar="N", help="tokens in a window (default: %(default)s)"
    )
    add_device_arguments(parser)
    add_cluster_arguments(parser)


def run(options: Options) -> int:
    """Measures and prints."""
    check_cluster_options(options, PROGRAM)
    text = read_text(options.file)

    from dllama_gpu.cli.loading import load_program, make_device, open_chosen_model
    from dllama_gpu.engine.perplexity import check_window, measure_perplexity, windows

    device = make_device(options, PROGRAM)
    with open_chosen_model(options) as model:
        # A special token's name in a plain text is text like any other.
        ids = model.tokenizer.encode(text, add_bos=False, parse_special=False)
        window = windows(len(ids), options.window)[0]
        check_window(window, model.spec.max_seq_len)
        seq_len = len(window) - 1
        latest: list[PerplexityResult] = []
        status = SUCCESS
        with (
            load_program(
                model,
                device,
                options,
                seq_len=seq_len,
                max_rows=min(seq_len, _MAX_ROWS),
                max_logit_rows=min(seq_len, _MAX_ROWS),
            ) as loaded,
            progress("predicting", "windows") as advance,
        ):

            def report(result: PerplexityResult, n_windows: int) -> None:
                latest[:] = [result]
                advance(result.n_windows, n_windows)

            try:
                measure_perplexity(loaded.program, ids, options.window, report)
            except KeyboardInterrupt:
                status = INTERRUPTED
    for result in latest:
        print_result(result, len(ids))
    return status


def print_result(result: PerplexityResult, n_tokens: int) -> None:
    """Writes the result, also one that was interrupted."""
    plural = "" if result.n_windows == 1 else "s"
    print(f"nll mean    {result.nll_mean:.6f}")
    print(f"perplexity  {result.perplexity:.4f}")
    print(f"tokens      {result.n_predicted} predicted, of {n_tokens} in the text ({result.n_windows} window{plural})")
    print(f"speed       {result.tokens_per_second:.2f} tokens/s")
