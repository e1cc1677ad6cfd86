from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.engine.drafting import DraftWish
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.engine.generation import Generation, GenerationRequest, chunks
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.engine.speculation import Speculation
from dllama_gpu.errors import DllamaError
from tests.unit.engine.fake_program import FakeProgram

GREEDY = SamplingParams(temperature=0)


def counts_up(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """The next token is the last one plus 1."""
    logits = np.zeros(32, np.float32)
    logits[(tokens[-1] + 1) % 32] = 5.0
    return logits


def tells_the_sum(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """The next token depends on every token before."""
    logits = np.zeros(32, np.float32)
    logits[sum(tokens) % 32] = 5.0
    return logits


def generate(
    program: FakeProgram, prompt: Sequence[int], max_tokens: int, **more: object
) -> tuple[list[int], Generation]:
    request = GenerationRequest(prompt, max_tokens, **{"sampling": GREEDY, **more})  # type: ignore[arg-type]
    generation = Generation(program, request)
    return list(generation.tokens()), generation


def test_the_first_token_comes_from_the_last_prompt_token() -> None:
    tokens, _ = generate(FakeProgram(counts_up), [20, 3, 7], 4)
    assert tokens == [8, 9, 10, 11]


@given(st.lists(st.integers(0, 31), min_size=1, max_size=30), st.integers(1, 9))
def test_the_text_does_not_depend_on_how_the_prompt_is_cut_into_chunks(prompt: list[int], max_rows: int) -> None:
    whole, _ = generate(FakeProgram(tells_the_sum, max_rows=30), prompt, 5)
    cut, _ = generate(FakeProgram(tells_the_sum, max_rows=max_rows), prompt, 5)
    assert cut == whole


def test_the_prompt_is_fed_in_full_chunks_and_only_its_last_token_wants_logits() -> None:
    program = FakeProgram(counts_up, max_rows=4)
    generate(program, list(range(10)), 3)
    assert [len(batch.tokens) for batch in program.batches] == [4, 4, 2, 1, 1]
    assert [batch.logit_rows.tolist() for batch in program.batches] == [[], [], [1], [0], [0]]
    assert [position for batch in program.batches for position in batch.positions] == list(range(12))


def test_an_end_token_ends_the_text_and_is_no_part_of_it() -> None:
    tokens, generation = generate(FakeProgram(counts_up), [5], 20, end_ids=frozenset({8, 30}))
    assert tokens == [6, 7]
    assert generation.finish_reason is FinishReason.END_TOKEN


def test_an_end_token_right_away_makes_an_empty_text() -> None:
    tokens, generation = generate(FakeProgram(counts_up), [7], 20, end_ids=frozenset({8}))
    assert tokens == []
    assert generation.finish_reason is FinishReason.END_TOKEN
    assert generation.statistics.n_decoded_tokens == 0


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    tokens, _ = generate(FakeProgram(counts_up), [8, 2], 3, end_ids=frozenset({8}))
    assert tokens == [3, 4, 5]


def test_max_tokens_counts_generated_tokens() -> None:
    program = FakeProgram(counts_up)
    tokens, generation = generate(program, [1, 2, 3], 2)
    assert tokens == [4, 5]
    assert generation.finish_reason is FinishReason.MAX_TOKENS
    assert len(program.batches) == 2  # the last token is not fed


def test_a_full_context_ends_the_text_after_the_last_token_that_can_be_predicted() -> None:
    tokens, generation = generate(FakeProgram(counts_up, seq_len=6), [0, 1, 2, 3], 100)
    assert tokens == [4, 5, 6]
    assert generation.finish_reason is FinishReason.CONTEXT_FULL


def test_a_prompt_that_fills_the_context_still_gives_one_token() -> None:
    tokens, generation = generate(FakeProgram(counts_up, seq_len=4), [0, 1, 2, 3], 100)
    assert tokens == [4]
    assert generation.finish_reason is FinishReason.CONTEXT_FULL


def test_an_end_token_in_the_last_position_is_an_end_and_not_a_full_context() -> None:
    _, generation = generate(FakeProgram(counts_up, seq_len=4), [0, 1, 2, 3], 1, end_ids=frozenset({4}))
    assert generation.finish_reason is FinishReason.END_TOKEN


def test_tokens_come_one_by_one() -> None:
    program = FakeProgram(counts_up)
    tokens = Generation(program, GenerationRequest([1], 10, GREEDY)).tokens()
    assert next(tokens) == 2
    assert len(program.batches) == 1
    assert next(tokens) == 3
    assert len(program.batches) == 2


def test_another_slot_is_used_when_asked_for() -> None:
    program = FakeProgram(counts_up, n_slots=3)
    list(Generation(program, GenerationRequest([1], 3, GREEDY), slot=2).tokens())
    assert {int(slot) for batch in program.batches for slot in batch.slots} == {2}


def test_rows_state_the_temperature_of_the_sampling() -> None:
    program = FakeProgram(counts_up)
    list(Generation(program, GenerationRequest([1], 3, SamplingParams(temperature=0.5))).tokens())
    assert {float(t) for batch in program.batches for t in batch.temperatures} == {0.5}


def test_ids_that_the_tokenizer_does_not_know_are_never_generated() -> None:
    tokens, _ = generate(FakeProgram(counts_up), [8], 3, n_known_ids=10)
    assert tokens == [9, 0, 1]  # what would follow 9 is unknown, and all others are equal


class EveryOtherRight:
    """Guesses that the text counts up, and is wrong at each second token."""

    name = "test"

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        (wish,) = wishes
        return [[(wish.tokens[-1] + 1 + i + (i % 2) * 7) % 32 for i in range(wish.n)]]

    def forget(self, slot: int) -> None:
        pass


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.5, seed=4)])
def test_guesses_change_the_number_of_steps_but_not_the_text(sampling: SamplingParams) -> None:
    for max_tokens in range(1, 12):
        plain = FakeProgram(counts_up, max_rows=9)
        expected, _ = generate(plain, [3, 4], max_tokens, sampling=sampling)
        guessed = FakeProgram(counts_up, max_rows=9)
        generation = Generation(
            guessed, GenerationRequest([3, 4], max_tokens, sampling), speculation=Speculation(EveryOtherRight())
        )
        assert list(generation.tokens()) == expected
    assert len(guessed.batches) < len(plain.batches)
    assert generation.n_drafted > generation.n_accepted > 0


def test_guesses_stay_within_the_context() -> None:
    program = FakeProgram(counts_up, seq_len=7, max_rows=9)
    generation = Generation(program, GenerationRequest([1], 50, GREEDY), speculation=Speculation(EveryOtherRight()))
    assert list(generation.tokens()) == [2, 3, 4, 5, 6, 7, 8]
    assert generation.finish_reason is FinishReason.CONTEXT_FULL


def ticking(seconds: Sequence[float]) -> Iterator[float]:
    now = 0.0
    for step in seconds:
        now += step
        yield now


def test_statistics_tell_the_steps_apart_and_leave_out_the_callers_time() -> None:
    # Each measured stretch reads the clock at its begin and end; the odd steps lie between two stretches.
    times = ticking([0, 2.0, 100, 3.0, 100, 0.5, 100, 0.125, 100, 0.125, 100, 0.125, 100, 0.125])
    request = GenerationRequest([0, 1, 2, 3, 4, 5], 3, GREEDY)
    progress: list[tuple[int, int]] = []
    generation = Generation(
        FakeProgram(counts_up, max_rows=4),
        request,
        clock=lambda: next(times),
    )
    assert list(generation.tokens(lambda done, total: progress.append((done, total)))) == [6, 7, 8]
    statistics = generation.statistics
    assert (statistics.n_prompt_tokens, statistics.prefill_seconds) == (6, 5.0)
    assert statistics.time_to_first_token == 5.5
    assert (statistics.n_decoded_tokens, statistics.decode_seconds) == (2, 0.5)
    assert progress == [(4, 6), (6, 6)]


def test_statistics_of_an_interrupted_text_count_what_was_done() -> None:
    generation = Generation(FakeProgram(counts_up), GenerationRequest([1, 2], 30, GREEDY))
    assert generation.statistics.time_to_first_token is None
    tokens = generation.tokens()
    for _ in range(4):
        next(tokens)
    assert (generation.statistics.n_prompt_tokens, generation.statistics.n_decoded_tokens) == (2, 3)
    assert generation.finish_reason is None


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(DllamaError, match="the prompt is empty"):
        Generation(FakeProgram(counts_up), GenerationRequest([], 5))


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(DllamaError, match="has 7 tokens, but the context holds 6"):
        Generation(FakeProgram(counts_up, seq_len=6), GenerationRequest([1] * 7, 5))


def test_no_tokens_wanted_is_refused() -> None:
    with pytest.raises(DllamaError, match="is 0, but it must be at least 1"):
        Generation(FakeProgram(counts_up), GenerationRequest([1], 0))


@given(st.integers(0, 200), st.integers(1, 50))
def test_chunks_cover_all_rows_once_and_only_the_last_is_short(n_rows: int, max_rows: int) -> None:
    ranges = list(chunks(n_rows, max_rows))
    assert [row for chunk in ranges for row in chunk] == list(range(n_rows))
    assert all(len(chunk) == max_rows for chunk in ranges[:-1])
