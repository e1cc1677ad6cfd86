"""Results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.findings import (
    PHASES,
    Comparison,
    Results,
    Spread,
    agreement,
    rate,
    ratios,
    times_of_bound,
    times_of_own_reading,
    times_of_reading,
)
from benchmarks.measure import Measurement

_MIB = 2**20
_NONE = "–"
_OURS, _PEER = "dllama-gpu", "llama.cpp"


def markdown(results: Results) -> str:
    """The whole report; `benchmarks/METHODOLOGY.md` says what its numbers mean."""
    parts = [_heading(results)]
    if results.comparisons:
        parts += [_speed(results), _bounds(results), _memory(results)]
    if results.contentions:
        parts.append(_contention(results))
    return "\n\n".join(parts) + "\n"


def _heading(results: Results) -> str:
    machine, settings = results.machine, results.settings
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB of memory"
    load = "" if machine.load_average is None else f", load average {machine.load_average:.2f} before the run"
    lines = [
        f"# {results.date}, {machine.processor}",
        "",
        f"{machine.n_processors} processors{memory}; {machine.system}, Python {machine.python}; "
        f"commit {machine.commit}{load}.",
        f"Prompt of {settings.prompt_tokens} tokens, then {settings.decode_tokens} tokens one by one; "
        f"{settings.rounds} rounds, each with {settings.repetitions} repetitions. "
        "Numbers are medians of the rounds, ratios are taken within a round. Method: `benchmarks/METHODOLOGY.md`.",
        "",
        *(f"- {program}" for program in _programs(results)),
    ]
    return "\n".join(lines)


def _programs(results: Results) -> list[str]:
    """What ran, each once: for llama.cpp the line differs by model in what was repacked."""
    programs: dict[str, None] = {}
    for comparison in results.comparisons:
        first = comparison.rounds[0]
        programs[first.ours.program] = None
        if first.peer is not None:
            programs[f"{comparison.model}: {first.peer.program}"] = None
    return list(programs)


def _speed(results: Results) -> str:
    rows = []
    for comparison in results.comparisons:
        for phase in PHASES:
            ours = [rate(one.ours, phase, results.settings) for one in comparison.rounds]
            peer = [rate(one.peer, phase, results.settings) for one in comparison.rounds if one.peer is not None]
            by_round = ratios(comparison, phase, results.settings)
            rows.append(
                [
                    comparison.model,
                    str(comparison.n_threads),
                    phase,
                    f"{statistics.median(ours):.1f}",
                    f"{statistics.median(peer):.1f}" if peer else _NONE,
                    f"**{statistics.median(by_round):.2f}**" if by_round else _NONE,
                    spread_text(Spread.of(by_round)) if by_round else _NONE,
                ]
            )
    header = ["model", "threads", "phase", f"{_OURS}, tokens/s", f"{_PEER}, tokens/s", "ratio", "least–most"]
    note = _agreement_note(results.comparisons)
    return "## Speed\n\n" + table(header, rows) + (f"\n\n{note}" if note else "")


def _agreement_note(comparisons: Sequence[Comparison]) -> str:
    found = [agreement(one.ours, one.peer) for c in comparisons for one in c.rounds if one.peer is not None]
    if not found:
        return ""
    return f"The programs' logits after the prompt correlate with at least {min(found):.5f}: they compute the same."


def _bounds(results: Results) -> str:
    settings = results.settings
    rows = []
    for comparison in results.comparisons:
        work, rounds = comparison.work, comparison.rounds
        bounds = [one.ours.bound for one in rounds if one.ours.bound is not None]
        peer = [times_of_reading(work, one.peer, one.read_rate, settings) for one in rounds if one.peer is not None]
        macs_per_token = work.prefill_macs / settings.prompt_tokens
        prefill = statistics.median(rate(one.ours, "prefill", settings) for one in rounds)
        decode = statistics.median(rate(one.ours, "decode", settings) for one in rounds)
        rows.append(
            [
                comparison.model,
                str(comparison.n_threads),
                f"{work.decode_bytes / 1e6:.0f} MB",
                f"{statistics.median(one.read_rate for one in rounds) / 1e9:.1f} GB/s",
                _median_and_spread(map(times_of_own_reading, bounds)),
                f"{statistics.median(peer):.2f}" if peer else _NONE,
                f"{1e3 * statistics.median(one.beside_seconds for one in bounds):.2f} ms" if bounds else _NONE,
                _median_and_spread(map(times_of_bound, bounds)),
                f"{decode * work.decode_macs / 1e9:.0f}",
                f"{prefill * macs_per_token / 1e9:.0f}",
            ]
        )
    header = [
        "model",
        "threads",
        "weights a token",
        "read loop",
        f"decode time / time to read the weights, {_OURS}",
        _PEER,
        f"beside the weights, {_OURS}",
        f"decode time / both, {_OURS}",
        f"decode GMAC/s, {_OURS}",
        f"prefill GMAC/s, {_OURS}",
    ]
    note = (
        f"For {_OURS} the read loop goes over the weights where they lie, in turns with decode; for {_PEER} and in the "
        "column of rates over other memory, before and after."
    )
    return "## Against the machine's bounds\n\n" + table(header, rows) + f"\n\n{note}"


def _median_and_spread(values: Iterable[float]) -> str:
    numbers = list(values)
    if not numbers:
        return _NONE
    spread = Spread.of(numbers)
    return f"{spread.median:.2f} ({spread_text(spread)})"


def _memory(results: Results) -> str:
    rows = []
    for comparison in results.comparisons:
        for name, measured in _by_program(comparison):
            rows.append(
                [
                    comparison.model,
                    str(comparison.n_threads),
                    name,
                    f"{comparison.file_bytes / _MIB:.0f}",
                    f"{max(one.peak_memory for one in measured) / _MIB:.0f}",
                    f"{statistics.median(one.load_seconds for one in measured):.2f}",
                ]
            )
    header = ["model", "threads", "program", "file, MiB", "peak memory, MiB", "load, s"]
    return "## Memory\n\n" + table(header, rows)


def _by_program(comparison: Comparison) -> Iterable[tuple[str, list[Measurement]]]:
    yield _OURS, [one.ours for one in comparison.rounds]
    peers = [one.peer for one in comparison.rounds if one.peer is not None]
    if peers:
        yield _PEER, peers


def _contention(results: Results) -> str:
    rows = []
    for contention in results.contentions:
        kept = Spread.of(
            contended / alone for alone, contended in zip(contention.alone, contention.contended, strict=True)
        )
        rows.append(
            [
                contention.model,
                str(contention.n_threads),
                contention.program,
                f"{statistics.median(contention.alone):.1f}",
                f"{statistics.median(contention.contended):.1f}",
                f"**{kept.median:.2f}** ({spread_text(kept)})",
            ]
        )
    header = ["model", "threads", "program", "decode alone, tokens/s", "beside a busy process", "share kept"]
    return (
        "## Beside a busy process\n\n" + table(header, rows) + "\n\n"
        "As many processors as threads; the busy process takes one of them. With n threads, n/(n+1) is a fair share."
    )


def spread_text(spread: Spread) -> str:
    """Least and greatest value."""
    return f"{spread.least:.2f}–{spread.most:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
