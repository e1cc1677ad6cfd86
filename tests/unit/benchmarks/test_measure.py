"""How a program is measured, and what is made of the numbers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.children import why_no_peer
from benchmarks.findings import (
    Comparison,
    Contention,
    Results,
    Round,
    Settings,
    agreement,
    ratios,
    times_of_bound,
    times_of_own_reading,
    times_of_reading,
)
from benchmarks.machine import Machine
from benchmarks.measure import N_LOGITS, Bound, Job, Measurement, job_from_json, measure, measurement_from_json, to_json
from benchmarks.report import markdown
from benchmarks.synthetic import write_gguf
from benchmarks.work import Work, work_of_model
from tests.support.models import small_spec

JOB = Job("model.gguf", n_threads=1, prompt_tokens=5, decode_tokens=3, repetitions=2)
SETTINGS = Settings(prompt_tokens=100, decode_tokens=10, repetitions=3, rounds=2)
MACHINE = Machine("A Processor (R) 3000", 2, 8 << 30, "Linux", "3.12", "abc", 0.0)


class RecordingRunner:
    """Computes nothing; remembers the steps it was given, by repetition."""

    program = "recorder"
    vocab_size = 1000

    def __init__(self) -> None:
        self.repetitions: list[list[tuple[tuple[int, ...], int]]] = []

    def clear(self) -> None:
        self.repetitions.append([])

    def prepare(self, tokens: Sequence[int], position: int) -> None:
        self.repetitions[-1].append((tuple(tokens), position))

    def compute(self) -> None:
        pass

    def logits(self) -> Sequence[float]:
        return [float(i) for i in range(self.vocab_size)]


def test_every_repetition_runs_the_same_tokens_and_the_first_is_not_counted() -> None:
    runner = RecordingRunner()
    found = measure(runner, JOB, load_seconds=1.5)
    first = runner.repetitions[0]
    assert [(len(tokens), position) for tokens, position in first] == [(5, 0), (1, 5), (1, 6), (1, 7)]
    assert runner.repetitions == [first] * 3
    assert len(found.prefill_seconds) == len(found.decode_seconds) == 2
    assert found.load_seconds == 1.5
    assert len(found.logits) == N_LOGITS
    assert found.peak_memory > 1 << 20


def test_job_and_measurement_survive_the_way_between_processes() -> None:
    found = measure(RecordingRunner(), JOB, load_seconds=0.25)
    assert job_from_json(to_json(JOB)) == JOB
    assert measurement_from_json(to_json(found)) == found


def test_work_is_every_matrix_once_a_token_and_the_head_once_a_prompt(tmp_path: Path) -> None:
    spec = small_spec(vocab_size=288, tied_embeddings=True)
    write_gguf(tmp_path / "model.gguf", spec)
    attention = 2 * spec.dim * (spec.q_dim + spec.kv_dim)
    layers = spec.n_layers * (attention + 3 * spec.dim * spec.hidden_dim)
    head = spec.vocab_size * spec.dim
    assert work_of_model(tmp_path / "model.gguf", prompt_tokens=7) == Work(
        decode_bytes=(layers + head) // 32 * 18, decode_macs=layers + head, prefill_macs=7 * layers + head
    )


def test_ratios_are_taken_within_a_round() -> None:
    comparison = _comparison([(1.0, 2.0), (10.0, 30.0)])
    assert ratios(comparison, "decode", SETTINGS) == pytest.approx([2.0, 3.0])


def test_decode_time_is_given_in_times_of_reading_the_weights() -> None:
    work = Work(decode_bytes=1000, decode_macs=0, prefill_macs=0)
    measured = _measurement(decode_seconds=20.0)  # 2 s a token
    assert times_of_reading(work, measured, 2000.0, SETTINGS) == pytest.approx(4.0)


def test_the_bound_of_decode_is_reading_the_weights_and_computing_the_rest() -> None:
    bound = Bound(decode_seconds=[2.0, 3.0, 9.0], reading_seconds=[1.0, 2.0, 3.0], beside_seconds=0.5)
    assert times_of_own_reading(bound) == pytest.approx(2.0)
    assert times_of_bound(bound) == pytest.approx(2.0 / 1.5)


def test_the_bound_survives_the_way_between_processes() -> None:
    measured = dataclasses.replace(_measurement(1.0), bound=Bound([1.0], [0.5], 0.25))
    assert measurement_from_json(to_json(measured)) == measured


def test_the_report_shows_what_decode_is_held_against_where_it_is_known() -> None:
    comparison = _comparison([(1.0, None)])
    ours = dataclasses.replace(comparison.rounds[0].ours, bound=Bound([0.2], [0.05], 0.05))
    shown = dataclasses.replace(comparison, rounds=[dataclasses.replace(comparison.rounds[0], ours=ours)])
    assert "| 4.00 (4.00–4.00) | – | 50.00 ms | 2.00 (2.00–2.00) |" in " ".join(_bounds_row(shown).split())
    assert "| – | – | – | – |" in " ".join(_bounds_row(comparison).split())


def _bounds_row(comparison: Comparison) -> str:
    report = markdown(Results("2026-01-01", MACHINE, SETTINGS, [comparison], []))
    return report.partition("bounds")[2].splitlines()[4]


def test_programs_that_compute_something_else_do_not_agree() -> None:
    ours = _measurement(1.0)
    assert agreement(ours, ours) == pytest.approx(1.0)
    assert agreement(ours, dataclasses.replace(ours, logits=ours.logits[::-1])) < 0


def test_the_report_shows_median_ratio_and_its_range() -> None:
    comparison = _comparison([(1.0, 2.0), (1.0, 3.0), (1.0, 2.5)])
    text = markdown(Results("2026-01-01", MACHINE, SETTINGS, [comparison], []))
    assert "**2.50** | 2.00–3.00" in text


def test_the_report_without_a_peer_and_of_contention() -> None:
    comparison = _comparison([(1.0, None), (2.0, None)])
    contention = Contention("m", 2, "dllama-gpu", alone=[100.0, 200.0], contended=[60.0, 140.0])
    text = markdown(Results("2026-01-01", MACHINE, SETTINGS, [comparison], [contention]))
    assert "peer" not in text
    assert "**0.65** (0.60–0.70)" in text


def test_a_machine_is_named_for_a_file_by_its_processor() -> None:
    assert MACHINE.slug == "a-processor-3000-2-processors"


def test_a_missing_peer_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "python"
    assert f"{missing} cannot be run" in (why_no_peer(str(missing)) or "")
    monkeypatch.chdir(tmp_path)  # which `python -c` searches first
    Path("llama_cpp.py").write_text("raise ImportError('a library is missing')")
    assert "ImportError: a library is missing" in (why_no_peer(sys.executable) or "")


def _measurement(decode_seconds: float) -> Measurement:
    return Measurement("program", [1.0], [decode_seconds], 0.1, 1 << 20, [float(i) for i in range(N_LOGITS)])


def _comparison(decode_seconds: Sequence[tuple[float, float | None]]) -> Comparison:
    """One round for each pair of (ours, the peer's)."""
    rounds = [
        Round(_measurement(ours), None if peer is None else _measurement(peer), 1e9) for ours, peer in decode_seconds
    ]
    return Comparison("m", 1, 1 << 20, Work(1000, 2000, 100_000), rounds)
