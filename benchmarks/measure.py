"""What is measured of a program, and how: the same for ours and for every peer.

A program is measured in a process of its own, which imports this module and nothing else of ours, so that a peer may
live in another Python environment.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.peak_memory import peak_memory

N_LOGITS = 64
"""Logits that a program reports, so that two programs can be checked for computing the same."""


CPU = "cpu"


@dataclass(frozen=True)
class Job:
    """One model, one number of threads, and how much to run."""

    model: str
    """Path of a GGUF file."""
    n_threads: int
    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    device: str = CPU
    """Or `vulkan:N`."""

    @property
    def seq_len(self) -> int:
        """Positions that a repetition fills."""
        return self.prompt_tokens + self.decode_tokens


@dataclass(frozen=True)
class Bound:
    """What decode is held against, measured in its own process: some tokens and some passes of a read loop in turn."""

    decode_seconds: list[float]
    """Of a token, turn by turn."""
    reading_seconds: list[float]
    """Of a token's weights, turn by turn."""
    beside_seconds: float
    """Of a token: all that reads no weights, computed with what it needs in the cache."""


@dataclass(frozen=True)
class Measurement:
    """What a program did. Each repetition starts from an empty KV cache; the first one, a warm-up, is not listed."""

    program: str
    """Name, version and the code path it chose."""
    prefill_seconds: list[float]
    """Per repetition: all prompt tokens, logits for the last one."""
    decode_seconds: list[float]
    """Per repetition: all tokens after the prompt, one by one, each with its logits."""
    load_seconds: float
    peak_memory: int
    """Bytes of the process, the interpreter and its libraries included."""
    logits: list[float]
    """N_LOGITS logits after the prompt, of token ids at equal distances."""
    bound: Bound | None = None
    """None where it is not known."""


class Runner(Protocol):
    """A program with a model loaded."""

    program: str
    vocab_size: int

    def clear(self) -> None:
        """Empties the KV cache."""

    def prepare(self, tokens: Sequence[int], position: int) -> None:
        """Fills in the next step: these tokens from this position on."""

    def compute(self) -> None:
        """Computes the prepared step, with logits for its last token."""

    def logits(self) -> Sequence[float]:
        """Logits (vocab_size,) of the last step's last token."""


def measure(runner: Runner, job: Job, load_seconds: float) -> Measurement:
    """Runs the job. Only `compute` is timed: what Python does to fill in a step is charged to nobody."""
    generator = random.Random(0)
    tokens = [generator.randrange(runner.vocab_size) for _ in range(job.seq_len)]
    logits: list[float] = []
    prefill_seconds, decode_seconds = [], []
    for repetition in range(job.repetitions + 1):
        runner.clear()
        prefill = _timed_step(runner, tokens[: job.prompt_tokens], 0)
        if repetition == 0:
            all_logits = runner.logits()
            logits = [float(all_logits[runner.vocab_size * i // N_LOGITS]) for i in range(N_LOGITS)]
        decode = sum(_timed_step(runner, [tokens[i]], i) for i in range(job.prompt_tokens, job.seq_len))
        if repetition > 0:
            prefill_seconds.append(prefill)
            decode_seconds.append(decode)
    return Measurement(runner.program, prefill_seconds, decode_seconds, load_seconds, peak_memory(), logits)


def _timed_step(runner: Runner, tokens: Sequence[int], position: int) -> float:
    runner.prepare(tokens, position)
    start = time.perf_counter()
    runner.compute()
    return time.perf_counter() - start


def job_from_json(text: str) -> Job:
    """The job that the parent process wrote with `to_json`."""
    return Job(**json.loads(text))


def measurement_from_json(text: str) -> Measurement:
    """The measurement that a child process wrote with `to_json`."""
    fields = json.loads(text)
    bound = fields.pop("bound", None)
    return Measurement(**fields, bound=None if bound is None else Bound(**bound))


def to_json(item: Any) -> str:
    """A dataclass as one line."""
    return json.dumps(asdict(item))
