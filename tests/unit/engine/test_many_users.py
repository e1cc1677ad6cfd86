"""The engine on the CPU's program: many users at once get what each would get alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.draft_model import ModelDrafter
from dllama_gpu.engine.drafting import Drafter, DraftWish, NgramDrafter
from dllama_gpu.engine.engine import Engine
from dllama_gpu.engine.events import FinishedEvent, TokenEvent
from dllama_gpu.engine.generation import Generation, GenerationRequest
from dllama_gpu.engine.loading import OpenModel, build_graph, open_with_tokenizer
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.graph.batch import Program
from dllama_gpu.graph.options import GraphOptions
from tests.support.tiny import write_tiny_model
from tests.unit.engine.test_engine import PATIENCE, Listener

GREEDY = SamplingParams(temperature=0)
RANDOM = np.random.default_rng(3)
PROMPTS = [tuple(int(token) for token in RANDOM.integers(0, 256, n)) for n in (1, 3, 40, 17, 25, 2, 33, 16)]
# Some share their beginning.
PROMPTS += [PROMPTS[2][:20] + PROMPTS[5], PROMPTS[2][:30], PROMPTS[4] + PROMPTS[0]]
SAMPLINGS = [GREEDY, SamplingParams(temperature=1.0, seed=5), SamplingParams(temperature=0.7, top_p=1.0, seed=9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    files = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    with open_with_tokenizer(files.model, files.tokenizer) as opened:
        yield opened


def program(model: OpenModel, *, n_slots: int, max_rows: int = 24) -> Program:
    options = GraphOptions(max_rows=max_rows, n_slots=n_slots, seq_len=64)
    return CpuDevice(1).compile(build_graph(model.source, options), model.source)


def request(number: int) -> CompletionRequest:
    prompt = PROMPTS[number % len(PROMPTS)]
    return CompletionRequest(prompt, 12, SAMPLINGS[number % len(SAMPLINGS)], n_logprobs=3)


def alone(program: Program, wanted: CompletionRequest, n_known_ids: int) -> list[int]:
    generation = Generation(
        program, GenerationRequest(wanted.prompt, wanted.max_tokens, wanted.sampling, n_known_ids=n_known_ids)
    )
    return list(generation.tokens())


def tokens(listener: Listener) -> list[int]:
    assert isinstance(listener.last, FinishedEvent)
    return [event.token for event in listener.events if isinstance(event, TokenEvent)]


class Guesser:
    """Knows the right texts, and is wrong at every third token."""

    name = "test"

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        drafts = []
        for wish in wishes:
            known, tokens = len(wish.tokens), list(wish.tokens)
            text = next((text for text in self.texts if list(text[:known]) == tokens), tokens)
            drafts.append([token + (place % 3 == 2) for place, token in enumerate(text)][known : known + wish.n])
        return drafts

    def forget(self, slot: int) -> None:
        pass


def drafters(model: OpenModel, texts: Sequence[Sequence[int]]) -> dict[str, Drafter | None]:
    same = ModelDrafter(program(model, n_slots=4), "itself", model.tokenizer.vocab_size)
    return {"none": None, "n-gram": NgramDrafter(), "right and wrong": Guesser(texts), "model": same}


@pytest.mark.parametrize("kind", ["none", "n-gram", "right and wrong", "model"])
def test_many_users_at_once_get_the_tokens_that_each_gets_alone(model: OpenModel, kind: str) -> None:
    solo = program(model, n_slots=1)
    requests = [request(number) for number in range(24)]
    expected = [alone(solo, wanted, model.tokenizer.vocab_size) for wanted in requests]
    texts = [[*wanted.prompt, *text] for wanted, text in zip(requests, expected, strict=True)]
    listeners = [Listener() for _ in requests]
    drafter = drafters(model, texts)[kind]
    with Engine(program(model, n_slots=4), model.tokenizer, drafter=drafter) as engine:
        for number, (wanted, listener) in enumerate(zip(requests, listeners, strict=True)):
            ticket = engine.submit(wanted, listener)
            if number % 5 == 4:
                ticket.cancel()
        assert all(listener.over.wait(PATIENCE) for listener in listeners)
        statistics = engine.statistics()
    for number, (listener, text) in enumerate(zip(listeners, expected, strict=True)):
        if number % 5 == 4:
            assert tokens(listener) == text[: len(tokens(listener))]
        else:
            assert tokens(listener) == text
    assert statistics.n_cached_tokens > 0
    if kind in ("right and wrong", "model"):
        assert statistics.n_drafted_tokens >= statistics.n_accepted_tokens > 0
        last = listeners[0].last
        assert isinstance(last, FinishedEvent)
        assert last.usage.n_generated_tokens == len(expected[0])


def test_a_beginning_that_many_share_is_computed_once(model: OpenModel) -> None:
    beginning = tuple(int(token) for token in RANDOM.integers(0, 256, 45))
    requests = [CompletionRequest((*beginning, number), 10, GREEDY) for number in range(6)]
    requests += [CompletionRequest(beginning, 10, SamplingParams(temperature=1.0, seed=seed)) for seed in range(3)]
    solo = program(model, n_slots=1)
    expected = [alone(solo, wanted, model.tokenizer.vocab_size) for wanted in requests]
    listeners = [Listener() for _ in requests]
    with Engine(program(model, n_slots=4), model.tokenizer) as engine:
        for wanted, listener in zip(requests, listeners, strict=True):
            engine.submit(wanted, listener)
        assert [tokens(listener) for listener in listeners] == expected
        assert engine.statistics().n_cached_tokens >= 8 * 44


def test_logprobs_are_those_of_the_model_at_temperature_1(model: OpenModel) -> None:
    listeners = [Listener() for _ in SAMPLINGS]
    with Engine(program(model, n_slots=4), model.tokenizer) as engine:
        for number, listener in enumerate(listeners):
            engine.submit(CompletionRequest(PROMPTS[3], 1, SAMPLINGS[number], n_logprobs=20), listener)
        events = [
            next(e for e in listener.events if isinstance(e, TokenEvent)) for listener in listeners if listener.last
        ]
    assert len({event.top_logprobs[0].token for event in events}) == 1
    for event in events[1:]:
        np.testing.assert_allclose(
            [entry.logprob for entry in event.top_logprobs],
            [entry.logprob for entry in events[0].top_logprobs],
            rtol=0,
            atol=2e-5,
        )
    assert all(a.logprob >= b.logprob for a, b in pairwise(events[0].top_logprobs))
