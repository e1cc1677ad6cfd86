from __future__ import annotations

import pytest

from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.conftest import Running
from tests.unit.api.test_chat import events_of


def test_a_text_is_continued(api: Running, tokenizer: Tokenizer):
    answer = api.text("Once upon").json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "Hello there, friend.", "logprobs": None, "finish_reason": "stop"}
    ]
    assert api.engine.last.prompt == tuple(tokenizer.encode("Once upon"))
    assert api.engine.last.max_tokens == 16


def test_a_stream_gives_the_same_text(api: Running):
    chunks = events_of(api.text(stream=True, stream_options={"include_usage": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "Hello there, friend."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == api.text().json()["usage"]


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a b", ["a b"]),
        (["a", "b"], ["a", "b"]),
        ([65, 66], [(65, 66)]),
        ([[65], [66, 67]], [(65,), (66, 67)]),
    ],
)
def test_prompts_come_as_text_or_ids_one_or_many(api: Running, tokenizer: Tokenizer, prompt: object, ids: list):
    answer = api.text(prompt, n=2)
    assert answer.status_code == 200
    expected = [tuple(tokenizer.encode(one)) if isinstance(one, str) else one for one in ids]
    assert [request.prompt for request in api.engine.requests] == [one for one in expected for _ in range(2)]
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(2 * len(expected)))


def test_echo_puts_the_prompt_before_the_text(api: Running):
    assert api.text("Once", echo=True).json()["choices"][0]["text"] == "OnceHello there, friend."
    chunks = events_of(api.text("Once", echo=True, stream=True).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "OnceHello there, friend."


def test_logprobs_have_the_older_shape(api: Running):
    told = api.text("Once", logprobs=1, echo=True).json()["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == "Hello there, friend."
    assert told["token_logprobs"] == [-0.25] * len(told["tokens"])
    assert [len(tops) for tops in told["top_logprobs"]] == [1] * len(told["tokens"])
    assert told["text_offset"][:2] == [4, 4 + len(told["tokens"][0])]


@pytest.mark.parametrize("prompt", [[], [[]], [[65], []], 5, None, {"a": 1}, [1.5], ["a", 5], [-1]])
def test_other_prompts_are_refused(api: Running, prompt: object):
    response = api.text(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("prompt")


def test_an_id_that_the_model_does_not_have_is_refused(api: Running):
    response = api.text([65, 49152])
    assert response.status_code == 400
    assert "49152" in response.json()["error"]["message"]
    assert "49151" in response.json()["error"]["message"]
