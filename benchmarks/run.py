"""Measures dllama-gpu beside llama.cpp on the same weights: `scripts/bench`, or `python -m benchmarks.run`.

METHODOLOGY.md, in this folder, says what is measured and why so.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import children
from benchmarks.findings import (
    LEAST_AGREEMENT,
    PHASES,
    Comparison,
    Contention,
    Results,
    Round,
    Settings,
    agreement,
    rate,
)
from benchmarks.machine import this_machine
from benchmarks.measure import Job, Measurement
from benchmarks.models import MODEL_NAMES, model_file
from benchmarks.report import markdown
from benchmarks.work import work_of_model
from dllama_gpu.cpu.processors import available_threads
from dllama_gpu.errors import DllamaError
from launcher.guard import guarded

_RESULTS = Path(__file__).parent / "results"
_DEFAULT_MODELS = "smollm2,llama-3.2-1b"
_DEFAULT_THREADS = "1,2"
_READ_BYTES = (64 << 20, 1 << 30)  # least and most: below, the measurement is too short; above, no cache matters


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for and returns the exit status."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    thread_counts = _thread_counts(options.threads)
    files = {name: model_file(name) for name in options.models.split(",")}
    peer_python = _peer_python(options)
    machine = this_machine()
    if machine.load_average is not None and machine.load_average > 0.5:
        _say(f"other programs use this machine (load average {machine.load_average:.2f}); the numbers will be noisy")
    comparisons = [
        _compare(name, path, n_threads, settings, peer_python)
        for name, path in files.items()
        for n_threads in thread_counts
    ]
    contentions: list[Contention] = []
    if options.contended:
        for name, path in files.items():
            contentions += _contend(name, path, max(thread_counts), settings, peer_python)
    results = Results(datetime.date.today().isoformat(), machine, settings, comparisons, contentions)
    print(markdown(results))
    if not options.quick:
        _save(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure dllama-gpu beside llama.cpp; see benchmarks/METHODOLOGY.md."
    )
    parser.add_argument(
        "--models", default=_DEFAULT_MODELS, metavar="NAME,…", help=f"from {', '.join(MODEL_NAMES)} (%(default)s)"
    )
    parser.add_argument("--threads", default=_DEFAULT_THREADS, metavar="N,…", help="thread counts (%(default)s)")
    parser.add_argument("--rounds", type=int, help="how often each program is started (5)")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="(%(default)s)")
    parser.add_argument("--decode-tokens", type=int, metavar="N", help="(64)")
    parser.add_argument(
        "--contended", action="store_true", help="also measure decode while another process keeps a processor busy"
    )
    parser.add_argument("--quick", action="store_true", help="one short round, not saved: does everything still work?")
    parser.add_argument("--no-peer", action="store_true", help="measure dllama-gpu alone")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python interpreter that has llama-cpp-python (this one)",
    )
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    default_rounds, default_decode_tokens, repetitions = (1, 16, 1) if options.quick else (5, 64, 3)
    rounds = default_rounds if options.rounds is None else options.rounds
    decode_tokens = default_decode_tokens if options.decode_tokens is None else options.decode_tokens
    for name, value in (
        ("--rounds", rounds),
        ("--prompt-tokens", options.prompt_tokens),
        ("--decode-tokens", decode_tokens),
    ):
        if value < 1:
            raise DllamaError(f"{name} must be 1 or more, not {value}")
    return Settings(options.prompt_tokens, decode_tokens, repetitions, rounds)


def _thread_counts(text: str) -> list[int]:
    limit = available_threads()
    counts = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if not all(1 <= count <= limit for count in counts):
        raise DllamaError(f"--threads must be numbers from 1 to {limit}, the processors available here, not {text!r}")
    return counts


def _peer_python(options: argparse.Namespace) -> str | None:
    """The interpreter for the peer, or None, with a sentence, when there is none."""
    if options.no_peer:
        return None
    reason = children.why_no_peer(options.peer_python)
    if reason is None:
        return str(options.peer_python)
    _say(
        f"llama.cpp is not measured: {reason}; install the package's `bench` extra, "
        "or name an interpreter that has llama-cpp-python with --peer-python"
    )
    return None


def _compare(model: str, path: Path, n_threads: int, settings: Settings, peer_python: str | None) -> Comparison:
    """Starts both programs and the read loop in turn, round after round."""
    job = _job(path, n_threads, settings)
    work = work_of_model(path, settings.prompt_tokens)
    read_bytes = min(max(work.decode_bytes, _READ_BYTES[0]), _READ_BYTES[1])
    rounds = []
    for index in range(settings.rounds):
        before = children.measure_read_rate(n_threads, read_bytes, settings.decode_tokens)
        ours = children.measure_ours(job)
        after = children.measure_read_rate(n_threads, read_bytes, settings.decode_tokens)
        peer = children.measure_peer(job, peer_python) if peer_python is not None else None
        if peer is not None and not agreement(ours, peer) > LEAST_AGREEMENT:
            raise DllamaError(
                f"dllama-gpu and llama.cpp disagree about {path}: their logits correlate with "
                f"{agreement(ours, peer):.3f} only, so comparing their speed means nothing"
            )
        rounds.append(Round(ours, peer, (before + after) / 2))
        shown = f"dllama-gpu {_rates(ours, settings)}" + (f", llama.cpp {_rates(peer, settings)}" if peer else "")
        _say(f"{model}, threads {n_threads}, round {index + 1} of {settings.rounds}, prefill/decode: {shown}")
    return Comparison(model, n_threads, path.stat().st_size, work, rounds)


def _contend(model: str, path: Path, n_threads: int, settings: Settings, peer_python: str | None) -> list[Contention]:
    """Decode of both programs, in turn alone and beside a busy process."""
    job = _job(path, n_threads, settings)
    programs: dict[str, Callable[[Job], Measurement]] = {"dllama-gpu": children.measure_ours}
    if peer_python is not None:
        programs["llama.cpp"] = functools.partial(children.measure_peer, python=peer_python)
    contentions = [Contention(model, n_threads, program, [], []) for program in programs]
    with children.confined_to(n_threads):
        for index in range(settings.rounds):
            for contention in contentions:
                measure = programs[contention.program]
                contention.alone.append(rate(measure(job), "decode", settings))
                with children.busy_process():
                    contention.contended.append(rate(measure(job), "decode", settings))
                _say(
                    f"{model}, threads {n_threads}, round {index + 1} of {settings.rounds}, "
                    f"{contention.program} decode: {contention.alone[-1]:.1f} alone, "
                    f"{contention.contended[-1]:.1f} beside a busy process"
                )
    return contentions


def _job(path: Path, n_threads: int, settings: Settings) -> Job:
    return Job(str(path), n_threads, settings.prompt_tokens, settings.decode_tokens, settings.repetitions)


def _rates(measurement: Measurement, settings: Settings) -> str:
    return "/".join(f"{rate(measurement, phase, settings):.1f}" for phase in PHASES)


def _save(results: Results) -> None:
    _RESULTS.mkdir(exist_ok=True)
    stem = f"{results.date}-{results.machine.slug}"
    (_RESULTS / f"{stem}.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    (_RESULTS / f"{stem}.md").write_text(markdown(results), encoding="utf-8")
    _say(f"saved as {_RESULTS / stem}.json and .md")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
