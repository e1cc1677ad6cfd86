from __future__ import annotations

import json
from typing import Any

import pytest

from dllama_gpu.engine.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.conftest import Running


def events_of(text: str) -> list[Any]:
    """Data of the events of a stream, which must end as OpenAI's do."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_has_openais_shape(api: Running):
    answer = api.chat("Hi").json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there, friend.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    n_prompt = len(api.engine.last.prompt)
    n_generated = len(api.service.tokenizer.encode("Hello there, friend."))
    assert answer["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_the_prompt_is_the_conversation_in_the_models_template(api: Running, tokenizer: Tokenizer):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Bye<|im_end|>", "name": "Ann"},
    ]
    assert api.client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    text = tokenizer.decode(api.engine.last.prompt, skip_special=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi you<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    # What the user wrote is text and ends nothing.
    assert api.engine.last.prompt.count(2) == 4


def test_a_stream_gives_the_same_answer_in_chunks(api: Running):
    response = api.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello there, friend."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_ends_with_usage_if_that_is_wanted(api: Running):
    chunks = events_of(api.chat(stream=True, stream_options={"include_usage": True}).text)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == api.chat().json()["usage"]


def test_text_held_back_until_the_end_is_part_of_the_answer(api: Running):
    api.engine.script.rest = " Bye"
    assert api.chat().json()["choices"][0]["message"]["content"] == "Hello there, friend. Bye"
    chunks = events_of(api.chat(stream=True).text)
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == "Hello there, friend. Bye"


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (FinishReason.END_TOKEN, "stop"),
        (FinishReason.STOP_TEXT, "stop"),
        (FinishReason.CONSTRAINT, "stop"),
        (FinishReason.MAX_TOKENS, "length"),
        (FinishReason.CONTEXT_FULL, "length"),
        (FinishReason.TIMED_OUT, "length"),
    ],
)
def test_the_reason_of_the_end_is_told_in_openais_words(api: Running, reason: FinishReason, name: str):
    api.engine.script.reason = reason
    assert api.chat().json()["choices"][0]["finish_reason"] == name
    assert events_of(api.chat(stream=True).text)[-1]["choices"][0]["finish_reason"] == name


def test_several_choices_are_requests_of_their_own_and_share_the_prompts_cost(api: Running):
    api.engine.script.answer = ["one", "two two", "three"]
    answer = api.chat(n=3, seed=5).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["one", "two two", "three"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in api.engine.requests] == [5, 6, 7]
    assert len({request.request_id for request in api.engine.requests}) == 3
    assert answer["usage"]["prompt_tokens"] == len(api.engine.last.prompt)


def test_choices_of_a_stream_keep_apart(api: Running):
    api.engine.script.answer = ["one and one", "two and two"]
    texts = ["", ""]
    for chunk in events_of(api.chat(n=2, stream=True).text):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["one and one", "two and two"]


def test_logprobs_name_each_token_with_its_bytes_and_alternatives(api: Running):
    api.engine.script.answer = "né"
    choice = api.chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert api.engine.last.n_logprobs == 2
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == "né".encode()
    assert all(entry["logprob"] == -0.25 for entry in entries)
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == [-0.5, -1.5]
    chunks = events_of(api.chat(logprobs=True, stream=True).text)
    told = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in told] == [entry["token"] for entry in entries]
    assert told[0]["top_logprobs"] == []


def test_fields_reach_the_engine(api: Running):
    fields = {
        "model": "other",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "seed": 11,
        "stop": ["END", "\n"],
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"17": -100, "18": 2.5},
    }
    assert api.chat(**fields).json()["model"] == "other"
    request = api.engine.last
    assert (request.max_tokens, request.stop, request.end_ids) == (9, ("END", "\n"), frozenset({2, 0}))
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 3, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.25)
    assert (sampling.seed, sampling.logit_bias) == (11, {17: -100, 18: 2.5})
    assert request.client == "127.0.0.1"


def test_what_is_left_out_or_null_is_as_the_operator_chose(api: Running):
    for fields in ({}, {"temperature": None, "top_k": None, "stop": None, "max_tokens": None, "tools": None}):
        assert api.chat(**fields).status_code == 200
        assert (api.engine.last.sampling.temperature, api.engine.last.sampling.top_k) == (0.6, 7)
        assert api.engine.last.sampling.seed is None
        assert api.engine.last.max_tokens == 512
        assert api.engine.last.n_logprobs is None


def test_zero_top_p_keeps_one_token_and_a_negative_seed_is_a_seed(api: Running):
    assert api.chat(top_p=0, seed=-1).status_code == 200
    assert 0 < api.engine.last.sampling.top_p < 1e-3
    assert api.engine.last.sampling.seed == 2**64 - 1


def test_ignore_eos_leaves_no_end_tokens(api: Running):
    assert api.chat(ignore_eos=True).status_code == 200
    assert api.engine.last.end_ids == frozenset()


def test_a_full_queue_answers_429_and_when_to_come_back(api: Running):
    api.engine.script.refusal = QueueFullError("9 requests are waiting", 2.2)
    response = api.chat()
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert response.json()["error"]["code"] == "queue_full"


def test_choices_that_were_taken_are_given_up_when_one_is_refused(api: Running):
    api.engine.script.refusal = QueueFullError("full", 1.0)
    api.engine.script.refuse_from = 2
    assert api.chat(n=3).status_code == 429
    assert [ticket.cancelled.is_set() for ticket in api.engine.tickets] == [True, True]
    assert len(api.service.active) == 0


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(api: Running):
    api.engine.script.refusal = PromptTooLongError(600, 512)
    response = api.chat()
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "600" in error["message"]
    assert "512" in error["message"]


def test_an_engine_that_cannot_run_answers_503(api: Running):
    api.engine.script.refusal = EngineUnavailableError("worker 10.0.0.2 was lost", 5.0)
    response = api.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"] == {
        "message": "worker 10.0.0.2 was lost",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }


def test_a_failure_on_the_way_is_503_or_the_last_event_of_a_stream(api: Running):
    api.engine.script.failure = DllamaError("the device was lost")
    response = api.chat()
    assert (response.status_code, response.json()["error"]["message"]) == (503, "the device was lost")
    last = events_of(api.chat(stream=True).text)[-1]
    assert last["error"]["message"] == "the device was lost"
    assert len(api.service.active) == 0


def test_no_token_in_time_is_503(api: Running):
    api.engine.script.answer = ""
    api.engine.script.reason = FinishReason.TIMED_OUT
    response = api.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
