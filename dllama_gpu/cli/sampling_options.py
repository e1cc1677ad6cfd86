"""The options that say how tokens are chosen."""

from __future__ import annotations

import secrets
from dataclasses import asdict

from dllama_gpu.cli.arguments import Options, Parser, UsageError, number, whole_number
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError

_DEFAULTS = SamplingParams()
_WITHOUT_EFFECT = asdict(SamplingParams(temperature=1, top_p=1))


def add_sampling_arguments(parser: Parser) -> None:
    """Declares the options; `SamplingParams` says what each does and in which order."""
    group = parser.add_argument_group("sampling")
    for flags, name, what in (
        (("--temperature",), "temperature", "0 always takes the likeliest token, 1 draws as the model says"),
        (("--topp", "--top-p"), "top_p", "draw among the likeliest tokens that together have this probability; 1: all"),
        (("--minp", "--min-p"), "min_p", "draw among tokens at least so likely as this part of the likeliest; 0: all"),
        (("--repetition-penalty",), "repetition_penalty", "divides the logits of tokens in prompt and text; 1: off"),
        (("--presence-penalty",), "presence_penalty", "taken off the logits of generated tokens"),
        (("--frequency-penalty",), "frequency_penalty", "the same, once for each time the token came"),
    ):
        default = getattr(_DEFAULTS, name)
        group.add_argument(
            *flags, dest=name, type=number, default=default, metavar="F", help=f"{what} (default: {default:g})"
        )
    group.add_argument(
        "--topk",
        "--top-k",
        dest="top_k",
        type=whole_number(0),
        default=_DEFAULTS.top_k,
        metavar="N",
        help="draw among the N likeliest tokens; 0: all (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        metavar="N",
        help="the same seed draws the same text (default: another one each time)",
    )


def sampling_params(options: Options, program: str) -> SamplingParams:
    """What the options ask for, with a seed in any case, so that it can be shown and used again.

    Raises UsageError for a number out of range.
    """
    try:
        return SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=secrets.randbits(32) if options.seed is None else options.seed,
        )
    except DllamaError as error:
        raise UsageError(str(error), program) from None


def describe_sampling(params: SamplingParams) -> str:
    """The settings that have an effect, for people."""
    settings = {name: value for name, value in asdict(params).items() if value != _WITHOUT_EFFECT[name]}
    if params.is_greedy:
        settings = {name: value for name, value in settings.items() if name.endswith("penalty")}
    words = [f"{name} {value}" for name, value in settings.items()]
    return ", ".join(["greedy", *words] if params.is_greedy else words)
