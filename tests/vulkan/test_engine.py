"""The engine on a GPU: many users at once, with guesses and reused beginnings, get what each gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from dllama_gpu.engine.drafting import NgramDrafter
from dllama_gpu.engine.engine import Engine
from dllama_gpu.engine.events import FinishedEvent, TokenEvent
from dllama_gpu.engine.loading import OpenModel, build_graph, open_with_tokenizer
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.graph.options import GraphOptions
from tests.support.tiny import write_tiny_model

if TYPE_CHECKING:
    from dllama_gpu.vulkan.device import VulkanDevice
    from dllama_gpu.vulkan.limits import Tier

GREEDY = SamplingParams(temperature=0)
PROMPTS = ["abcabcabcabc", "In the beginning", "abcabcabcabd", "x", "0 1 2 0 1 2 0 1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    files = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    with open_with_tokenizer(files.model, files.tokenizer) as opened:
        yield opened


def test_many_users_get_the_texts_that_each_gets_alone(
    model: OpenModel, vulkan_device: Callable[[Tier | None], VulkanDevice]
) -> None:
    options = GraphOptions(max_rows=24, n_slots=3, seq_len=64)
    program = vulkan_device(None).compile(build_graph(model.source, options), model.source)
    requests = [CompletionRequest(tuple(model.tokenizer.encode(text)), 16, GREEDY) for text in PROMPTS]
    texts = []
    for drafter in (None, NgramDrafter()):
        with Engine(program, model.tokenizer, drafter=drafter) as engine:
            if drafter is None:
                alone = [tokens(list(engine.stream(request))) for request in requests]
            streams = [engine.stream(request) for request in requests]
            texts.append([tokens(list(stream)) for stream in streams])
    assert texts == [alone, alone]


def tokens(events: list[object]) -> list[int]:
    assert isinstance(events[-1], FinishedEvent)
    return [event.token for event in events if isinstance(event, TokenEvent)]
