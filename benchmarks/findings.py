"""What a run of the benchmark found, and the numbers that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.machine import Machine
from benchmarks.measure import Bound, Measurement
from benchmarks.work import Work

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
LEAST_AGREEMENT = 0.99  # of logits: rounding differs between the programs, a different model would be near 0


@dataclass(frozen=True)
class Settings:
    """How much was run."""

    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    rounds: int


@dataclass(frozen=True)
class Round:
    """Processes that ran right after one another, so that what the machine did meanwhile met all of them."""

    ours: Measurement
    peer: Measurement | None
    read_rate: float
    """Bytes per second of a plain read loop over as many bytes as a token's weights, the mean of before and after."""


@dataclass(frozen=True)
class Comparison:
    """All rounds of one model with one number of threads."""

    model: str
    n_threads: int
    file_bytes: int
    work: Work
    rounds: list[Round]


@dataclass(frozen=True)
class Contention:
    """Decode of one program, alone and while another process keeps a processor busy; tokens per second by round."""

    model: str
    n_threads: int
    program: str
    alone: list[float]
    contended: list[float]


@dataclass(frozen=True)
class Results:
    """Everything of one run."""

    date: str
    machine: Machine
    settings: Settings
    comparisons: list[Comparison]
    contentions: list[Contention]


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError when there are none."""
        numbers = list(values)
        return cls(statistics.median(numbers), min(numbers), max(numbers))


def rate(measurement: Measurement, phase: Phase, settings: Settings) -> float:
    """Tokens per second, from the median repetition."""
    if phase == "prefill":
        return settings.prompt_tokens / statistics.median(measurement.prefill_seconds)
    return settings.decode_tokens / statistics.median(measurement.decode_seconds)


def ratios(comparison: Comparison, phase: Phase, settings: Settings) -> list[float]:
    """Our rate divided by the peer's, round by round."""
    return [
        rate(one.ours, phase, settings) / rate(one.peer, phase, settings)
        for one in comparison.rounds
        if one.peer is not None
    ]


def times_of_reading(work: Work, measurement: Measurement, read_rate: float, settings: Settings) -> float:
    """Time of a decode token as a multiple of the time that reading its weights takes at `read_rate` bytes per second.

    1 is the best that memory allows.
    """
    return read_rate / (work.decode_bytes * rate(measurement, "decode", settings))


def times_of_own_reading(bound: Bound) -> float:
    """The same from a process of ours, in which decode and the read loop took turns."""
    return statistics.median(
        decode / reading for decode, reading in zip(bound.decode_seconds, bound.reading_seconds, strict=True)
    )


def times_of_bound(bound: Bound) -> float:
    """Time of a decode token as a multiple of reading the weights, then computing all that reads none."""
    return statistics.median(
        decode / (reading + bound.beside_seconds)
        for decode, reading in zip(bound.decode_seconds, bound.reading_seconds, strict=True)
    )


def agreement(ours: Measurement, peer: Measurement) -> float:
    """Correlation of the logits that the two programs found after the same prompt: 1 when they compute the same."""
    return statistics.correlation(ours.logits, peer.logits)
