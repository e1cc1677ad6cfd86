from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.engine.sampler import Sampler
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError
from tests.unit.engine.fake_program import prediction_of

Floats = npt.NDArray[np.float32]


def token_by_definition(logits: Floats, params: SamplingParams, coin: float) -> int:
    """What the text of `SamplingParams` draws, step by step and without any shortcut."""
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    kept = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if params.top_k:
        kept = kept[: params.top_k]
    if params.top_p < 1:
        limit, so_far, n = params.top_p * sum(weights[kept]), 0.0, 0
        while n < len(kept) and so_far <= limit:
            so_far += weights[kept[n]]
            n += 1
        kept = kept[:n]
    kept = [token for token in kept if weights[token] >= params.min_p]
    target, so_far = coin * sum(weights[kept]), 0.0
    for token in kept:
        so_far += weights[token]
        if so_far > target:
            return token
    raise AssertionError("a coin below 1 always finds a token")


@st.composite
def random_logits(draw: st.DrawFn) -> Floats:
    """Logits of all temperaments: flat, steep, with many equal ones, few tokens and thousands."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.standard_normal(draw(st.sampled_from([2, 7, 64, 65, 300, 5000])))
    logits *= draw(st.sampled_from([0.1, 1.0, 3.0, 12.0]))
    logits += draw(st.sampled_from([0.0, -40.0, 25.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits.astype(np.float32)


sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-9, 0.005, 0.02, 0.3, 0.8, 1.0, 2.5]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 64, 65, 400]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


@given(random_logits(), sampling_params, st.floats(-5e-5, 5e-5))
@settings(max_examples=400, deadline=None)
def test_candidates_and_all_logits_give_the_same_token(
    logits: Floats, params: SamplingParams, log_sum_error: float
) -> None:
    few, many = Sampler(params), Sampler(params)
    for _ in range(3):
        row = prediction_of(logits, few.row_temperature, 64, log_sum_error)
        unsettled = replace(row, candidate_ids=np.full_like(row.candidate_ids, -1))  # makes it read the logits
        assert few.sample(row) == many.sample(unsettled)


@given(random_logits(), sampling_params)
@settings(max_examples=200, deadline=None)
def test_the_token_is_the_one_that_the_definition_draws(logits: Floats, params: SamplingParams) -> None:
    expected = token_by_definition(logits, params, coin=random.Random(params.seed).random())
    sampler = Sampler(params)
    assert sampler.sample(prediction_of(logits, sampler.row_temperature)) == expected


@given(random_logits())
@settings(max_examples=100, deadline=None)
def test_greedy_takes_the_lowest_id_among_the_largest_logits(logits: Floats) -> None:
    assert Sampler(SamplingParams(temperature=0)).sample(prediction_of(logits)) == int(logits.argmax())


def test_greedy_draws_no_random_number_and_reads_no_logits() -> None:
    row = replace(prediction_of(np.array([0.5, 2.0, 1.0], np.float32)), read_logits=unwanted)
    assert Sampler(SamplingParams(temperature=0)).sample(row) == 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_p=1.0, top_k=64),
        SamplingParams(temperature=1.0, top_p=0.5, top_k=8, min_p=0.1),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.2),
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=0.8, top_p=1.0, seed=3),
    ],
)
def test_what_the_candidates_settle_needs_no_logits(params: SamplingParams) -> None:
    steep = -np.arange(5000, dtype=np.float32)
    sampler = Sampler(params)
    for _ in range(20):
        row = prediction_of(steep, sampler.row_temperature)
        assert 0 <= sampler.sample(replace(row, read_logits=unwanted)) < 64


def test_a_nucleus_that_ends_behind_the_candidates_reads_the_logits() -> None:
    flat = np.zeros(5000, np.float32)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.9, seed=1))
    drawn = [sampler.sample(prediction_of(flat)) for _ in range(300)]
    assert max(drawn) > 4000
    assert max(drawn) < 4501


@pytest.mark.parametrize("log_sum_error", [-5e-5, 5e-5])
def test_an_error_of_the_log_sum_exp_never_moves_the_end_of_the_nucleus(log_sum_error: float) -> None:
    # 1000 equal tokens: the nucleus ends a hair behind, or before, the 10th.
    for top_p in (10.0001 / 1000, 9.9999 / 1000):
        largest = 0
        for seed in range(200):
            params = SamplingParams(temperature=1.0, top_p=top_p, seed=seed)
            row = prediction_of(np.zeros(1000, np.float32), log_sum_error=log_sum_error)
            largest = max(largest, Sampler(params).sample(row))
        assert largest == (10 if top_p > 0.01 else 9)


def test_the_nucleus_is_a_share_of_the_known_tokens() -> None:
    # 1000 equal tokens, 900 of them known, the unknown ones outside the candidates: 1.05 % are 10 of the known ones.
    params = SamplingParams(temperature=1.0, top_p=0.0105)
    row = prediction_of(np.zeros(1000, np.float32))
    drawn = {Sampler(replace(params, seed=seed), n_known_ids=900).sample(row) for seed in range(200)}
    assert drawn == set(range(10))


@given(random_logits(), sampling_params, st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_ids_that_the_tokenizer_does_not_know_are_as_if_absent(
    logits: Floats, params: SamplingParams, n_known_ids: int
) -> None:
    padded, plain = Sampler(params, n_known_ids=n_known_ids), Sampler(params)
    row = prediction_of(logits, padded.row_temperature)
    known = prediction_of(logits[:n_known_ids], padded.row_temperature)
    assert padded.sample(row) == plain.sample(known)


def test_frequencies_follow_the_softmax_of_tempered_logits() -> None:
    logits, temperature, n = np.array([1.0, 0.0, 2.0, -1.0], np.float32), 0.7, 20_000
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=1.0, seed=11))
    row = prediction_of(logits, temperature, n_candidates=4)
    counts = Counter(sampler.sample(row) for _ in range(n))
    shares = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    for token, share in enumerate(shares):
        assert abs(counts[token] / n - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_a_seed_gives_one_sequence_and_another_seed_another() -> None:
    def sequence(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=seed))
        row = prediction_of(np.zeros(50, np.float32))
        return [sampler.sample(row) for _ in range(20)]

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)


def test_the_random_stream_is_the_documented_one() -> None:
    # 16 equal tokens: the coin's first four bits are the id. Fails if the generator or the order of tokens changes.
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=42))
    row = prediction_of(np.zeros(16, np.float32))
    assert [sampler.sample(row) for _ in range(8)] == [10, 0, 4, 3, 11, 10, 14, 1]


def test_without_a_seed_two_texts_differ() -> None:
    row = prediction_of(np.zeros(5000, np.float32))
    params = SamplingParams(temperature=1.0, top_p=1.0)
    first, second = Sampler(params), Sampler(params)
    assert [first.sample(row) for _ in range(8)] != [second.sample(row) for _ in range(8)]


GREEDY = SamplingParams(temperature=0)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_text() -> None:
    logits = np.array([3.0, 2.0, -1.0, -1.5], np.float32)
    penalized = replace(GREEDY, repetition_penalty=2.0)
    sampler = Sampler(penalized, prompt=[0])
    assert sampler.sample(prediction_of(logits)) == 1  # 1.5, 2
    assert sampler.sample(prediction_of(logits)) == 0  # 1.5, 1: the first id is not divided twice
    negative = Sampler(penalized, prompt=[2, 2])
    assert negative.sample(prediction_of(np.array([-9.0, -9.0, -1.0, -1.5], np.float32))) == 3


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    row = prediction_of(np.array([1.0, 0.55], np.float32))
    frequency = Sampler(replace(GREEDY, frequency_penalty=0.2), prompt=[0] * 9)
    assert [frequency.sample(row) for _ in range(6)] == [0, 0, 0, 1, 0, 1]  # ties go to the lower id
    presence = Sampler(replace(GREEDY, presence_penalty=0.4), prompt=[0] * 9)
    assert [presence.sample(row) for _ in range(6)] == [0] * 6
    strong = Sampler(replace(GREEDY, presence_penalty=0.5))
    assert [strong.sample(row) for _ in range(4)] == [0, 1, 0, 0]


def test_penalties_take_part_in_a_drawn_choice() -> None:
    row = prediction_of(np.zeros(2, np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, presence_penalty=100.0, seed=0), prompt=[1])
    first = sampler.sample(row)
    assert sampler.sample(row) == 1 - first


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), replace(GREEDY, repetition_penalty=1.5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(params: SamplingParams, bad: float) -> None:
    logits = np.full(100, bad, np.float32)
    with pytest.raises(DllamaError, match="not finite numbers"):
        Sampler(params).sample(prediction_of(logits))


def test_a_single_nan_is_seen_when_logits_are_read() -> None:
    logits = np.zeros(100, np.float32)
    logits[70] = math.nan
    with pytest.raises(DllamaError, match="not finite numbers"):
        Sampler(replace(GREEDY, presence_penalty=1.0)).sample(
            replace(prediction_of(np.zeros(100, np.float32)), read_logits=lambda: logits)
        )


def test_a_logit_of_minus_infinity_is_a_token_that_never_comes() -> None:
    logits = np.array([0.0, -math.inf, 0.0], np.float32)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=5))
    assert {sampler.sample(prediction_of(logits)) for _ in range(50)} == {0, 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.5),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("presence_penalty", math.inf),
        ("frequency_penalty", -101.0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_name_and_value(name: str, value: float) -> None:
    with pytest.raises(DllamaError, match=rf"^{name} is {value}, but it must be "):
        SamplingParams(**{name: value})


def unwanted() -> Floats:
    raise AssertionError("all logits were read where the candidates settle the choice")


@given(random_logits(), sampling_params, st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.3, 0.95]))
@settings(max_examples=300, deadline=None)
def test_only_allowed_tokens_are_drawn_as_if_there_were_no_others(
    logits: Floats, params: SamplingParams, seed: int, part: float
) -> None:
    allowed = np.random.default_rng(seed).random(len(logits)) < part
    allowed[seed % len(logits)] = True
    ids = np.flatnonzero(allowed)
    few, alone = Sampler(params), Sampler(params)
    for _ in range(3):
        token = few.sample(prediction_of(logits, few.row_temperature), allowed)
        assert token == ids[alone.sample(prediction_of(logits[ids], alone.row_temperature))]


@given(random_logits(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_greedy_choice_takes_the_likeliest_allowed_token(logits: Floats, seed: int) -> None:
    allowed = np.random.default_rng(seed).random(len(logits)) < 0.2
    allowed[seed % len(logits)] = True
    token = Sampler(SamplingParams(temperature=0)).sample(prediction_of(logits), allowed)
    assert token == np.where(allowed, logits, -np.inf).argmax()


def test_a_mask_shorter_than_the_vocabulary_allows_nothing_past_its_end() -> None:
    logits = np.arange(10, dtype=np.float32)
    assert Sampler(SamplingParams(temperature=0)).sample(prediction_of(logits), np.ones(4, bool)) == 3


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(DllamaError, match="allows no token"):
        Sampler(SamplingParams()).sample(prediction_of(np.zeros(10, np.float32)), np.zeros(10, bool))


def test_a_bias_is_added_to_the_logits_of_its_tokens() -> None:
    logits = np.array([1.0, 2.0, 3.0, 0.0], np.float32)
    row = prediction_of(logits)
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 2.5})).sample(row) == 0
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: -100.0, 99: 5.0})).sample(row) == 1


def test_logits_that_could_not_be_read_do_not_change_what_a_seed_draws() -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=3, presence_penalty=0.5)

    def fails() -> Floats:
        raise DllamaError("a worker left")

    whole, broken = Sampler(params), Sampler(params)
    expected = [whole.sample(prediction_of(logits)) for _ in range(4)]
    with pytest.raises(DllamaError, match="a worker left"):
        broken.sample(replace(prediction_of(logits), read_logits=fails))
    assert [broken.sample(prediction_of(logits)) for _ in range(4)] == expected
