"""The official Python client of OpenAI's API against a real server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.support.api_server import ApiServerProcess

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(server: ApiServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    chosen = {"model": "smol", "messages": QUESTION, "temperature": 0, "max_tokens": 24, **fields}
    return client.chat.completions.create(**chosen)


def text_of(stream: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_an_answer_is_the_same_streamed_and_not_and_a_second_time(client: openai.OpenAI):
    answer = ask(client)
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert text_of(ask(client, stream=True)) == text
    again = ask(client)
    assert again.choices[0].message.content == text
    # All but the last token of the prompt was in a slot already.
    assert again.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


def test_usage_ends_a_stream_where_it_is_asked_for(client: openai.OpenAI):
    whole = ask(client).usage
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == whole.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_seen(client: openai.OpenAI):
    text = ask(client, max_tokens=40).choices[0].message.content
    stop = text[11:18]
    assert len(stop) == 7
    expected = text[: text.index(stop)]
    for stops in (stop, [stop, "never comes"]):
        answer = ask(client, max_tokens=40, stop=stops)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
    seen = ""
    for chunk in ask(client, max_tokens=40, stop=stop, stream=True):
        seen += chunk.choices[0].delta.content or ""
        assert expected.startswith(seen)
    assert seen == expected


def test_logprobs_belong_to_the_text(client: openai.OpenAI):
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
    for entry in entries:
        # Greedy: the token is the likeliest one.
        assert entry.top_logprobs[0].token == entry.token
        assert math.isclose(entry.top_logprobs[0].logprob, entry.logprob, abs_tol=1e-4)
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.001


def test_the_same_seed_draws_the_same_text_and_choices_differ(client: openai.OpenAI):
    first = ask(client, temperature=1.5, seed=7, n=3)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in ask(client, temperature=1.5, seed=7, n=3).choices] == texts
    assert ask(client, temperature=1.5, seed=8).choices[0].message.content == texts[1]


def test_logit_bias_forces_and_forbids_tokens(client: openai.OpenAI, server: ApiServerProcess):
    tokens = client.post("/../tokenize", cast_to=object, body={"content": "x"})["tokens"]  # type: ignore[index]
    answer = ask(client, max_tokens=4, logit_bias={str(tokens[0]): 100})
    assert answer.choices[0].message.content == "xxxx"


class Animal(BaseModel):
    name: str
    legs: int
    kind: Literal["bird", "mammal", "fish"]
    friends: list[str]


def test_a_json_schema_is_held_to(client: openai.OpenAI):
    messages: Any = [{"role": "user", "content": "Describe a dog as JSON."}]
    answer = client.chat.completions.parse(
        model="smol", messages=messages, response_format=Animal, max_tokens=200, temperature=0, frequency_penalty=1
    )
    animal = answer.choices[0].message.parsed
    assert isinstance(animal, Animal)
    assert animal.kind in ("bird", "mammal", "fish")
    assert answer.choices[0].finish_reason == "stop"


def test_a_json_object_is_an_object(client: openai.OpenAI):
    messages: Any = [{"role": "user", "content": "Give me a JSON object with one number."}]
    for seed in range(3):
        answer = ask(
            client, messages=messages, response_format={"type": "json_object"}, temperature=1, seed=seed, max_tokens=300
        )
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].message.content), dict)
        else:
            assert answer.choices[0].message.content.startswith("{")


def test_a_required_tool_is_called_with_arguments_that_fit_and_its_result_goes_back(client: openai.OpenAI):
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 120}
    choice = ask(client, messages=messages, **fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert set(arguments) == {"city", "unit"}
    streamed = [
        one
        for chunk in ask(client, messages=messages, stream=True, **fields)
        for one in chunk.choices[0].delta.tool_calls or []
    ]
    assert [one.function.arguments for one in streamed] == [call.function.arguments]
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees"}
    follow_up = ask(client, messages=[*messages, choice.message, result], tools=[WEATHER], tool_choice="none")
    assert follow_up.choices[0].message.content
    assert follow_up.choices[0].message.tool_calls is None


def test_plain_completions(client: openai.OpenAI):
    fields: dict[str, Any] = {"model": "smol", "temperature": 0, "max_tokens": 12}
    answer = client.completions.create(prompt=["Once upon a time", "The sky is"], logprobs=1, **fields)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "".join(choice.logprobs.tokens) == choice.text  # type: ignore[union-attr,arg-type]
    streamed = client.completions.create(prompt="Once upon a time", stream=True, **fields)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=[{"role": "user", "content": "word " * 2000}])
    assert refused.value.code == "context_length_exceeded"
    assert "1024" in str(refused.value)


def test_a_full_context_ends_the_answer(client: openai.OpenAI):
    answer = ask(
        client, messages=[{"role": "user", "content": "word " * 950}], max_tokens=500, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens in (1024, 1025)


def test_wrong_fields_are_refused_by_name(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, extra_body={"temprature": 1})
    assert refused.value.param == "temprature"
