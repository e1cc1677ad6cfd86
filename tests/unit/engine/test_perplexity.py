from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.engine.perplexity import PerplexityResult, measure_perplexity, negative_log_likelihoods, windows
from dllama_gpu.errors import DllamaError
from tests.unit.engine.fake_program import FakeProgram


def indifferent(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    return np.zeros(32, np.float32)


def knows_its_window(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """The token at position p of a window is predicted with probability 1 / (1 + 31 e^-p)."""
    logits = np.zeros(32, np.float32)
    logits[len(tokens)] = len(tokens)
    return logits


def test_a_model_that_knows_nothing_has_the_vocabulary_size_as_perplexity() -> None:
    result = measure_perplexity(FakeProgram(indifferent), list(range(20)), window=8)
    assert result.perplexity == pytest.approx(32)
    assert result.n_predicted == 2 * 7


def test_each_window_begins_with_an_empty_context_and_predicts_all_but_its_first_token() -> None:
    program = FakeProgram(knows_its_window, max_rows=3)
    result = measure_perplexity(program, [0, 1, 2, 3, 4] * 3, window=5)
    expected = np.mean([math.log(1 + 31 * math.exp(-p)) for p in (1, 2, 3, 4)])
    assert result.nll_mean == pytest.approx(expected)
    assert [batch.positions.tolist() for batch in program.batches] == [[0, 1, 2], [3]] * 3


def test_progress_is_told_after_each_window() -> None:
    told: list[tuple[int, int, int]] = []
    measure_perplexity(
        FakeProgram(indifferent),
        list(range(13)),
        window=4,
        progress=lambda result, total: told.append((result.n_windows, total, result.n_predicted)),
    )
    assert told == [(1, 3, 3), (2, 3, 6), (3, 3, 9)]


@given(st.integers(2, 5000), st.integers(2, 600))
def test_windows_are_full_consecutive_and_leave_out_less_than_one_window(n_tokens: int, window: int) -> None:
    spans = windows(n_tokens, window)
    size = min(n_tokens, window)
    assert [i for span in spans for i in span] == list(range(size * len(spans)))
    assert {len(span) for span in spans} == {size}
    assert n_tokens - size * len(spans) < size


@pytest.mark.parametrize(("n_tokens", "shown"), [(0, "0 tokens"), (1, "1 token")])
def test_a_text_without_a_token_to_predict_is_refused(n_tokens: int, shown: str) -> None:
    with pytest.raises(DllamaError, match=f"the text has {shown}, but at least 2"):
        measure_perplexity(FakeProgram(indifferent), [1] * n_tokens)


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(DllamaError, match="the window is 1,"):
        measure_perplexity(FakeProgram(indifferent), [1] * 9, window=1)


def test_a_window_beyond_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(DllamaError, match=r"window of 8 tokens does not fit the model's context of 6"):
        measure_perplexity(FakeProgram(indifferent, seq_len=6), [1] * 9, window=8)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DllamaError, match="not finite numbers"):
        measure_perplexity(FakeProgram(lambda _: np.full(32, np.nan, np.float32)), [1] * 9, window=4)


def test_log_likelihoods_are_right_where_float32_would_overflow() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [-3e38, 0.0, 3e38]], np.float32)
    found = negative_log_likelihoods(logits, np.array([1, 2]))
    assert found == pytest.approx([1 + math.log1p(math.exp(-1)), 0.0], abs=1e-12)


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert PerplexityResult(nll_sum=5000.0, n_predicted=2, n_windows=1, seconds=1.0).perplexity == math.inf
