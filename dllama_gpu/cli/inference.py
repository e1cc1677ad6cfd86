"""`dllama-gpu inference`: continues a prompt and says how fast it was."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import (
    Options,
    Parser,
    UsageError,
    add_device_arguments,
    add_model_arguments,
    whole_number,
)
from dllama_gpu.cli.chat_template_option import add_chat_template_argument, check_chat_template
from dllama_gpu.cli.cluster_options import add_cluster_arguments, check_cluster_options
from dllama_gpu.cli.display import TextOutput, blank_line, note, progress, size_text
from dllama_gpu.cli.failures import INTERRUPTED, SUCCESS
from dllama_gpu.cli.prefill_chunk import add_prefill_chunk_argument, prefill_chunk
from dllama_gpu.cli.sampling_options import add_sampling_arguments, describe_sampling, sampling_params
from dllama_gpu.cli.speculative_options import OFF, add_speculative_arguments, has_speculation, make_drafter
from dllama_gpu.cli.text_file import read_text

if TYPE_CHECKING:
    from dllama_gpu.engine.events import FinishReason
    from dllama_gpu.engine.generation import Generation
    from dllama_gpu.tokenizer.tokenizer import Tokenizer

PROGRAM = "dllama-gpu inference"
DESCRIPTION = """Continue a prompt, or answer it with --chat.

The text goes to standard output as it is made; what is said about model and speed goes to
standard error. On a terminal the prompt is shown before the text; a pipe or a file gets the
generated text alone."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    add_model_arguments(parser)
    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    source.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="the same out of a UTF-8 file; - reads standard input"
    )
    prompt.add_argument(
        "--chat", action="store_true", help="the prompt is a question: wrap it in the model's chat template"
    )
    add_chat_template_argument(prompt)
    prompt.add_argument("--system", metavar="TEXT", help="system message for --chat")
    text = parser.add_argument_group("generation")
    text.add_argument(
        "--steps",
        type=whole_number(1),
        default=128,
        metavar="N",
        help="tokens to generate at most, the prompt not counted (default: %(default)s)",
    )
    text.add_argument("--ignore-eos", action="store_true", help="go on when the model ends its text")
    text.add_argument(
        "--max-seq-len",
        type=whole_number(1),
        metavar="N",
        help="context to use, in tokens; lowers the model's own, never raises it",
    )
    add_prefill_chunk_argument(text)
    text.add_argument("--no-benchmark", action="store_true", help="do not print how fast it was")
    add_sampling_arguments(parser)
    add_speculative_arguments(parser, default=OFF)
    add_device_arguments(parser)
    add_cluster_arguments(parser)


def run(options: Options) -> int:
    """Generates the text."""
    sampling = sampling_params(options, PROGRAM)
    if (options.system is not None or options.chat_template is not None) and not options.chat:
        raise UsageError("--system and --chat-template say how to ask with --chat; add it", PROGRAM)
    check_chat_template(options.chat_template, PROGRAM)
    check_cluster_options(options, PROGRAM)
    prompt = options.prompt if options.prompt_file is None else read_text(options.prompt_file)

    from dllama_gpu.cli.loading import load_program, make_device, open_chosen_model
    from dllama_gpu.engine.generation import EMPTY_PROMPT, Generation, GenerationRequest
    from dllama_gpu.engine.loading import generation_seq_len
    from dllama_gpu.engine.speculation import MAX_DRAFT, Speculation

    device = make_device(options, PROGRAM)
    with open_chosen_model(options) as model:
        ids = encode_prompt(model.tokenizer, prompt, options)
        if not ids and options.prompt_file is None:
            raise UsageError(EMPTY_PROMPT, PROGRAM)
        seq_len = generation_seq_len(model.spec, len(ids), options.steps, options.max_seq_len)
        most_checked = 1 + (MAX_DRAFT if has_speculation(options) else 0)
        with load_program(
            model,
            device,
            options,
            seq_len=seq_len,
            max_rows=max(min(prefill_chunk(options, device), len(ids)), most_checked),
            max_logit_rows=most_checked,
        ) as loaded:
            drafter = make_drafter(options, model, device, n_slots=1, seq_len=seq_len)
            note("sampling", describe_sampling(sampling))
            blank_line()
            request = GenerationRequest(
                prompt=ids,
                max_tokens=options.steps,
                sampling=sampling,
                end_ids=frozenset() if options.ignore_eos else frozenset(model.tokenizer.eos_ids),
                n_known_ids=model.tokenizer.vocab_size,
            )
            speculation = None if drafter is None else Speculation(drafter)
            generation = Generation(loaded.program, request, speculation=speculation)
            try:
                print_text(generation, model.tokenizer, shown_prompt="" if options.chat else prompt)
            except KeyboardInterrupt:
                if not options.no_benchmark:
                    print_benchmark(generation, "stopped by Ctrl-C", loaded.seconds)
                return INTERRUPTED
    if not options.no_benchmark:
        print_benchmark(generation, describe_end(generation.finish_reason, seq_len), loaded.seconds)
    return SUCCESS


def encode_prompt(tokenizer: Tokenizer, prompt: str, options: Options) -> list[int]:
    """Ids of the prompt, as a chat if that is wanted. Raises DllamaError when its template cannot be used."""
    if not options.chat:
        return tokenizer.encode(prompt)
    from dllama_gpu.tokenizer.chat_template import ChatTemplate, encode_chat

    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    template = ChatTemplate.for_tokenizer(tokenizer, options.chat_template)
    return encode_chat(template, tokenizer, [*system, {"role": "user", "content": prompt}])


def print_text(generation: Generation, tokenizer: Tokenizer, shown_prompt: str) -> None:
    """Writes the text as it is made; a long prompt gets a progress display first."""
    output = TextOutput()
    stream = tokenizer.stream()
    with progress("reading the prompt", "tokens") as advance:
        texts = map(stream.push, generation.tokens(advance))
        first = next(texts, "")
    try:
        output.show_prompt(shown_prompt)
        for piece in chain((first,), texts):
            output.write(piece)
        output.write(stream.flush())
    finally:
        output.end()


def describe_end(reason: FinishReason | None, seq_len: int) -> str:
    """Why the text ended, for people."""
    from dllama_gpu.engine.events import FinishReason

    if reason is FinishReason.END_TOKEN:
        return "the model ended its text"
    if reason is FinishReason.CONTEXT_FULL:
        return f"the context of {seq_len} position{'' if seq_len == 1 else 's'} is full"
    return "as many tokens as --steps says"


def print_benchmark(generation: Generation, end: str, load_seconds: float) -> None:
    """Writes the benchmark block."""
    from dllama_gpu.engine.machine import peak_memory

    statistics = generation.statistics
    blank_line()
    for label, n_tokens, seconds in (
        ("prefill", statistics.n_prompt_tokens, statistics.prefill_seconds),
        ("decode", statistics.n_decoded_tokens, statistics.decode_seconds),
    ):
        rate = f"{n_tokens / seconds:10.2f} tokens/s {1000 * seconds / n_tokens:9.2f} ms/token" if n_tokens else ""
        note(label, f"{n_tokens:6d} {'token ' if n_tokens == 1 else 'tokens'} {rate}")
    if generation.n_drafted:
        note("guesses", f"{generation.n_drafted:6d} checked, {generation.n_accepted} right")
    if statistics.time_to_first_token is not None:
        note("first token", f"{1000 * statistics.time_to_first_token:9.2f} ms")
    note("loading", f"{1000 * load_seconds:9.2f} ms")
    peak = peak_memory()
    note("peak memory", "unknown" if peak is None else size_text(peak))
    note("end", end)
