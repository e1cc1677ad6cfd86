from __future__ import annotations

import numpy as np
import pytest

from dllama_gpu.engine.logprobs import logprobs_of
from tests.unit.engine.fake_program import prediction_of

LOGITS = np.random.default_rng(1).standard_normal(300).astype(np.float32) * 3
EXPECTED = LOGITS.astype(np.float64) - np.logaddexp.reduce(LOGITS.astype(np.float64))
ORDER = [int(i) for i in np.argsort(-LOGITS, kind="stable")]


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("token", [ORDER[0], ORDER[5], ORDER[200]])
def test_they_are_those_of_temperature_1_whatever_the_row_had(temperature: float, token: int) -> None:
    logprob, top = logprobs_of(prediction_of(LOGITS, temperature), token, 20, temperature, 300)
    assert logprob == pytest.approx(EXPECTED[token], abs=2e-5)
    assert [entry.token for entry in top] == ORDER[:20]
    assert [entry.logprob for entry in top] == pytest.approx(EXPECTED[ORDER[:20]], abs=2e-5)


def test_all_logits_are_read_only_where_the_candidates_do_not_say_it() -> None:
    def refuse() -> np.ndarray:
        raise AssertionError("not needed")

    prediction = prediction_of(LOGITS)
    frugal = type(prediction)(
        prediction.candidate_values, prediction.candidate_ids, prediction.log_sum_exp, 300, refuse
    )
    assert logprobs_of(frugal, ORDER[0], 20, 1.0, 300)[1][0].token == ORDER[0]


def test_ids_that_the_tokenizer_does_not_know_are_not_listed() -> None:
    n_known_ids = max(ORDER[:3])
    _, top = logprobs_of(prediction_of(LOGITS), 0, 5, 1.0, n_known_ids)
    assert [entry.token for entry in top] == [token for token in ORDER if token < n_known_ids][:5]
