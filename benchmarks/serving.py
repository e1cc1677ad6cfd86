"""Measures serving: `python -m benchmarks.serving`; see METHODOLOGY.md, "Many users".

Prints the report as Markdown and saves it with all numbers in `results/`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load import LoadResult, Wish, ask, load, percentile
from benchmarks.machine import this_machine
from benchmarks.models import MODEL_NAMES, model_file
from benchmarks.servers import our_server, peer_server, why_no_peer_server
from dllama_gpu.cli.failures import guarded
from dllama_gpu.cpu.processors import default_threads

_RESULTS = Path(__file__).parent / "results"
_OURS, _PEER = "dllama-gpu api", "llama_cpp.server"
_USERS = (1, 4, 16)
_SEQ_LEN = 2048
_OUR_FIELDS = (("ignore_eos", True), ("stream_options", {"include_usage": True}))
_WORDS = [
    "the",
    "river",
    "house",
    "small",
    "green",
    "light",
    "morning",
    "road",
    "city",
    "water",
    "paper",
    "stone",
    "window",
    "garden",
    "winter",
    "summer",
    "letter",
    "music",
    "table",
    "bread",
    "market",
    "bridge",
    "silent",
    "heavy",
    "quick",
    "narrow",
    "bright",
    "open",
    "walked",
    "found",
    "carried",
    "asked",
    "wrote",
    "opened",
    "followed",
    "remembered",
    "because",
    "while",
    "before",
    "after",
    "under",
    "across",
    "without",
    "between",
    "every",
    "another",
    "little",
]
_REPETITIVE = "".join(
    f'{{"id": {number}, "name": "item {number}", "price": {number * 3}, "in_stock": true}},\n'
    for number in range(1, 13)
)
_ORDINARY = "The history of the lighthouse on the northern cape begins with a storm in the autumn of 1857, when"

_LONG_WORDS = 250  # the benchmark models' own vocabularies take 7 tokens a word, and the context holds 2048

Start = Callable[..., AbstractContextManager[int]]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    n_requests: int
    n_tokens: int
    prompt_words: int
    rounds: int


@dataclass(frozen=True)
class Reuse:
    """Seconds to the first token of a long prompt: never seen, and with another last sentence."""

    program: str
    cold: float
    warm: float


@dataclass(frozen=True)
class Guessing:
    """Tokens per second of one user's text, without guesses and with n-grams; whether the texts are the same."""

    prompt: str
    off: float
    ngram: float
    same_text: bool


def main() -> int:
    """Runs everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODEL_NAMES, default="smollm2")
    parser.add_argument("--model-file", type=Path, help="measure this GGUF file in place of a benchmark model")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama-cpp-python[server]")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a short run that is not saved")
    options = parser.parse_args()
    size = Size(max(_USERS), 16, 60, 1) if options.quick else Size(32, 64, 100, 3)
    model = options.model_file or model_file(options.model)

    programs: dict[str, tuple[Start, tuple[tuple[str, object], ...]]] = {}
    programs[_OURS] = (lambda: our_server(model, options.threads, max(_USERS), _SEQ_LEN), _OUR_FIELDS)
    reason = "--no-peer" if options.no_peer else why_no_peer_server(options.peer_python)
    if reason is None:
        programs[_PEER] = (lambda: peer_server(options.peer_python, model, options.threads, _SEQ_LEN), ())
    else:
        _say(f"llama-cpp-python's server is not measured: {reason}")

    loads: dict[str, list[LoadResult]] = {}
    reuses = []
    for name, (start, extra) in programs.items():
        with start() as port:
            loads[name] = list(_loads(port, size, extra))
            reuses.append(_reuse(name, port, size, extra))
    guesses = _guessing(model, options.threads, size)
    report = _report(model.name, options.threads, size, loads, reuses, guesses)
    print(report)
    if not options.quick:
        _save(report, loads, reuses, guesses)
    return 0


def _loads(port: int, size: Size, extra: tuple[tuple[str, object], ...]) -> Iterator[LoadResult]:
    """The median of the rounds for each number of users; each round has prompts of its own."""
    # Whoever first has a slot waits for the system to hand out its memory, so all have been used before.
    load(port, [Wish(prompt(f"warm-up {i}", size.prompt_words), 8, extra) for i in range(max(_USERS))], max(_USERS))
    for n_users in _USERS:
        rounds = []
        for number in range(size.rounds):
            wishes = [
                Wish(prompt(f"{n_users} {number} {i}", size.prompt_words), size.n_tokens, extra)
                for i in range(size.n_requests)
            ]
            rounds.append(load(port, wishes, n_users))
            _say(f"{n_users} users, round {number + 1}: {rounds[-1].tokens_per_second:.1f} tokens/s")
        yield sorted(rounds, key=lambda one: one.tokens_per_second)[len(rounds) // 2]


def _reuse(name: str, port: int, size: Size, extra: tuple[tuple[str, object], ...]) -> Reuse:
    cold, warm = [], []
    for number in range(max(size.rounds, 2)):
        beginning = prompt(f"long {number}", _LONG_WORDS)
        cold.append(ask(port, Wish(f"{beginning} And then the first", 4, extra)).first_token_seconds)
        warm.append(ask(port, Wish(f"{beginning} But now another", 4, extra)).first_token_seconds)
    return Reuse(name, percentile(cold, 50), percentile(warm, 50))


def _guessing(model: Path, n_threads: int, size: Size) -> list[Guessing]:
    rates: dict[tuple[str, str], tuple[float, str]] = {}
    prompts = {"repetitive (JSON rows)": _REPETITIVE, "ordinary (prose)": _ORDINARY}
    for mode in ("off", "ngram"):
        with our_server(model, n_threads, 1, _SEQ_LEN, "--speculative", mode) as port:
            for name, text in prompts.items():
                answers = [ask(port, Wish(text, 3 * size.n_tokens, _OUR_FIELDS)) for _ in range(size.rounds + 1)][1:]
                rates[mode, name] = percentile([answer.decode_rate for answer in answers], 50), answers[0].text
    return [
        Guessing(name, rates["off", name][0], rates["ngram", name][0], rates["off", name][1] == rates["ngram", name][1])
        for name in prompts
    ]


def prompt(seed: str, n_words: int) -> str:
    """Words in an order that no other seed gives."""
    chosen = random.Random(seed).choices(_WORDS, k=n_words)
    return "Chapter one. " + " ".join(chosen)


def _report(
    model: str,
    n_threads: int,
    size: Size,
    loads: dict[str, list[LoadResult]],
    reuses: Sequence[Reuse],
    guesses: Sequence[Guessing],
) -> str:
    machine = this_machine()
    load_text = "" if machine.load_average is None else f", load average {machine.load_average:.2f} after the run"
    lines = [
        f"# Serving, {_today()}, {machine.processor}",
        "",
        f"{model}, {n_threads} threads; {machine.system}, commit {machine.commit}{load_text}. "
        f"{size.n_requests} requests of {size.prompt_words} words, {size.n_tokens} tokens each, "
        f"{size.rounds} rounds. Method: `benchmarks/METHODOLOGY.md`.",
        "",
        "| server | users | tokens/s in all | against one | first token p50, p95 ms | between tokens p50, p95 ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in loads.items():
        for result in results:
            first, between = ((f(50), f(95)) for f in (result.first_token, result.inter_token))
            lines.append(
                f"| {name} | {result.n_users} | {result.tokens_per_second:.1f} "
                f"| {result.tokens_per_second / results[0].tokens_per_second:.2f} × "
                f"| {1e3 * first[0]:.0f}, {1e3 * first[1]:.0f} | {1e3 * between[0]:.1f}, {1e3 * between[1]:.1f} |"
            )
    lines += ["", "| server | first token of a new long prompt, ms | with another end, ms | |", "|---|---|---|---|"]
    for reuse in reuses:
        lines.append(
            f"| {reuse.program} | {1e3 * reuse.cold:.0f} | {1e3 * reuse.warm:.0f} | {reuse.cold / reuse.warm:.1f} × |"
        )
    lines += [
        "",
        "| text | one token a step, tokens/s | `--speculative ngram` | | same text |",
        "|---|---|---|---|---|",
    ]
    for guess in guesses:
        lines.append(
            f"| {guess.prompt} | {guess.off:.1f} | {guess.ngram:.1f} | {guess.ngram / guess.off:.2f} × "
            f"| {'yes' if guess.same_text else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def _save(
    report: str, loads: dict[str, list[LoadResult]], reuses: Sequence[Reuse], guesses: Sequence[Guessing]
) -> None:
    stem = _RESULTS / f"{_today()}-serving-{this_machine().slug}"
    numbers = {
        "machine": asdict(this_machine()),
        "loads": {name: [asdict(result) for result in results] for name, results in loads.items()},
        "reuse": [asdict(reuse) for reuse in reuses],
        "speculative": [asdict(guess) for guess in guesses],
    }
    stem.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(report, encoding="utf-8")
    _say(f"saved as {stem}.json and .md")


def _today() -> str:
    return datetime.date.today().isoformat()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded("benchmarks.serving", main))
