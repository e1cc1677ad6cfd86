"""Each field that a client may send, with values that are wrong in every way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.api.conftest import Running

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
HUGE = 10**400


def refused(api: Running, path: str, body: Any) -> dict[str, Any]:
    """The error that the body gets, which must be a 400 in OpenAI's shape."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = api.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert api.engine.requests == []
    return error


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -2, "5", 1.5, True, HUGE, []]),
        ("max_completion_tokens", [0, "5"]),
        ("temperature", [-0.1, 2.1, "1", True, {}, HUGE]),
        ("top_p", [-0.1, 1.1, "1"]),
        ("top_k", [-2, 1.5]),
        ("min_p", [-0.1, 1.1]),
        ("seed", [1.5, "1", 2**64, -(2**63) - 1]),
        ("stop", ["", [""], [5], 5, ["a"] * 17, "x" * 2000]),
        ("n", [0, 17, 1.5]),
        ("presence_penalty", [-2.1, 2.1, "1"]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("repetition_penalty", [0, -1, 101]),
        ("logit_bias", [5, {"a": 1}, {"1": 101}, {"1": "x"}, {"-1": 1}, {"99999999": 1}, {"1": None}]),
        ("stream", [1, "true"]),
        ("stream_options", [5, {"include_usage": 1}, {"other": True}]),
        ("logprobs", [1, "true"]),
        ("top_logprobs", [-1, 21, 1.5]),
        ("model", [5, []]),
        ("response_format", [5, {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "text", "more": 1}]),
        ("tools", [5, [5], [{"type": "other"}], [{"type": "function"}], [TOOL] * 129]),
        ("tool_choice", ["maybe", 5, {"type": "function"}, {"type": "function", "function": {}}]),
        ("parallel_tool_calls", [1]),
        ("chat_template_kwargs", [5, {"messages": []}, {"bos_token": "x"}]),
        ("user", [5]),
        ("reasoning_effort", ["very high", 5]),
        ("functions", [[{"name": "f"}], 5]),
        ("function_call", ["f", {"name": "f"}]),
        ("modalities", [["text", "audio"], ["audio"], [], 5]),
        ("verbosity", ["low"]),
        ("messages", [None, 5, [], [5], [{}], [{"role": "nobody", "content": ""}], [{"role": "user"}]]),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(api: Running, field: str, values: list[Any]):
    for value in values:
        body = {"messages": [{"role": "user", "content": "Hi"}], field: value}
        error = refused(api, "/v1/chat/completions", body)
        assert error["param"].startswith(field), error
        assert field in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_an_unknown_field_is_refused_by_name(api: Running, path: str):
    body = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "x", "tokens": [1], "temprature": 1}
    own = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/tokenize": "messages"}.get(path, "tokens")
    error = refused(api, path, {own: body[own], "temprature": 1})
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")


def test_a_close_name_is_suggested(api: Running):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_token": 5}
    assert "did you mean max_tokens?" in refused(api, "/v1/chat/completions", body)["message"]
    far = {"messages": [{"role": "user", "content": "Hi"}], "truncation": "auto"}
    assert "did you mean" not in refused(api, "/v1/chat/completions", far)["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"messages": [{"role": "nobody", "content": ""}]},
            "messages[0].role",
            "messages[0].role should be one of 'system', 'developer', 'user', 'assistant', 'tool', but it is 'nobody'",
        ),
        ({"messages": [{"content": ""}]}, "messages[0].role", "the field messages[0].role is missing"),
        ({"response_format": {"a": 1}}, "response_format.type", "the field response_format.type is missing"),
        ({"messages": []}, "messages", "messages should have at least 1 item, but it is a list"),
        (
            {"max_tokens": 0},
            "max_tokens",
            "max_tokens should be -1 or should be greater than or equal to 1, but it is 0",
        ),
        (
            {"modalities": ["audio"]},
            "modalities",
            "modalities should be left out, as answers are text alone, but it is a list",
        ),
    ],
)
def test_a_refusal_reads_as_a_sentence(api: Running, fields: dict[str, Any], param: str, message: str):
    error = refused(api, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **fields})
    assert (error["param"], error["message"]) == (param, message)


# What clients and front ends send along without asking for anything.
HARMLESS: dict[str, list[Any]] = {
    "frequency_penalty": [None, 0],
    "function_call": [None, "auto", "none"],
    "functions": [None, []],
    "logit_bias": [None, {}],
    "logprobs": [None, False],
    "max_completion_tokens": [None, -1],
    "max_tokens": [None, -1],
    "metadata": [None, {}, {"chat": "1"}],
    "modalities": [None, ["text"]],
    "n": [None, 1],
    "parallel_tool_calls": [None, True, False],
    "prediction": [None, {"type": "content", "content": "x"}],
    "presence_penalty": [None, 0],
    "prompt_cache_key": [None, "a"],
    "prompt_cache_retention": [None, "24h"],
    "reasoning_effort": [None, "none", "minimal", "low", "medium", "high", "xhigh"],
    "response_format": [None, {"type": "text"}],
    "safety_identifier": [None, "a"],
    "seed": [None],
    "service_tier": [None, "auto", "default"],
    "stop": [None, []],
    "store": [None, False, True],
    "stream": [None, False],
    "stream_options": [None],
    "tool_choice": [None, "auto", "none"],
    "tools": [None, []],
    "top_k": [None, 0, -1],
    "top_logprobs": [None, 0],
    "top_p": [None, 1],
    "user": [None, "a"],
    "verbosity": [None, "medium"],
    "audio": [None],
    "web_search_options": [None],
    "a_field_of_tomorrow": [None],
}


@pytest.mark.parametrize("field", HARMLESS)
def test_a_value_that_asks_for_nothing_is_taken(api: Running, field: str):
    for value in HARMLESS[field]:
        answer = api.chat(**{field: value})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": None, "suffix": None, "echo": None, "logprobs": None, "user": None},
        {"best_of": 1, "suffix": "", "echo": False, "n": 1},
        {"best_of": 2, "n": 2},
    ],
)
def test_so_it_is_with_plain_completions(api: Running, fields: dict[str, Any]):
    answer = api.text(**fields)
    assert answer.status_code == 200, answer.text


def test_minus_one_is_no_limit(api: Running):
    for fields in ({"max_tokens": -1}, {"max_completion_tokens": -1}, {"max_completion_tokens": -1, "max_tokens": 3}):
        assert api.chat(**fields).status_code == 200
        assert api.engine.last.max_tokens == api.service.context
    assert api.text(max_tokens=-1).status_code == 200
    assert api.engine.last.max_tokens == api.service.context


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"suffix": "x"}, "suffix", "should be left out, as texts are continued here"),
        ({"best_of": 3}, "best_of", "must be n, 1"),
        ({"best_of": 1, "n": 2}, "best_of", "must be n, 2"),
    ],
)
def test_what_plain_completions_do_not_do_is_said(api: Running, fields: dict[str, Any], param: str, words: str):
    error = refused(api, "/v1/completions", {"prompt": "x", **fields})
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "x", "annotations": None}], "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "parsed": {"a": 1},
            "reasoning": None,
            "reasoning_content": "x",
            "tool_calls": [
                {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "assistant", "content": "x", "tool_calls": []},
        {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "1", "name": "f"},
    ],
)
def test_messages_are_taken_as_clients_keep_them(api: Running, message: dict[str, Any]):
    messages = [{"role": "user", "content": "Hi"}, message, {"role": "user", "content": "Bye"}]
    answer = api.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200, answer.text


def test_a_json_object_may_be_given_a_schema(api: Running):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert api.chat(response_format={"type": "json_object", "schema": schema}).status_code == 200
    constraint = api.engine.last.constraint
    assert constraint is not None
    for token in api.service.tokenizer.encode('{"a": ', add_bos=False):
        constraint.advance(token)
    allowed = constraint.allowed()
    digit, quote = (api.service.tokenizer.encode(text, add_bos=False)[0] for text in ("1", '"'))
    assert (bool(allowed[digit]), bool(allowed[quote])) == (True, False)


def test_more_answers_than_the_server_ever_takes_are_not_for_later(api: Running):
    error = refused(api, "/v1/completions", {"prompt": ["a"] * 5, "n": 16})
    assert error["param"] == "n"
    assert "80 answers" in error["message"]
    assert "no more than 66" in error["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": "a", "colour": "red"}, "messages[0].colour"),
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}, "messages[0].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_wrong_message_is_found_by_its_place(api: Running, message: dict[str, Any], param: str):
    assert refused(api, "/v1/chat/completions", {"messages": [message]})["param"].startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "zzz"}}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": False}}}, "response_format"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "zzz"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_fields_that_make_no_sense_together_are_refused(api: Running, fields: dict[str, Any], param: str):
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    assert refused(api, "/v1/chat/completions", body)["param"].startswith(param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"\\ud800": 1}',
        b'{"messages": 1e999999}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(api: Running, body: bytes):
    refused(api, "/v1/chat/completions", body)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
def test_a_body_must_be_declared_as_json(api: Running, content_type: str | None):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = api.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_another_charset_of_json_is_json(api: Running):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert api.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers).status_code == 200


def test_a_model_that_is_not_served_is_404(api: Running):
    for response in (api.chat(model="gpt-9"), api.client.get("/v1/models/gpt-9")):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert "tiny" in response.json()["error"]["message"]


def test_models_are_listed_and_described(api: Running):
    listed = api.client.get("/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == ["tiny", "other"]
    described = api.client.get("/v1/models/other").json()
    assert described == {
        "id": "other",
        "object": "model",
        "created": 1,
        "owned_by": "dllama-gpu",
        "context_length": 512,
    }


def test_tokenize_and_detokenize_are_each_others_inverse(api: Running):
    text = "Grüße, 世界! <|im_end|>"
    answer = api.client.post("/tokenize", json={"content": text, "with_pieces": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["pieces"])
    back = api.client.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"content": text}


def test_tokenize_counts_a_conversation_as_the_model_gets_it(api: Running):
    messages = [{"role": "user", "content": "Hi"}]
    assert api.chat("Hi").status_code == 200
    tokens = api.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert tuple(tokens) == api.engine.last.prompt


@pytest.mark.parametrize("body", [{}, {"content": "a", "messages": [{"role": "user", "content": "a"}]}])
def test_tokenize_wants_either_text_or_messages(api: Running, body: dict[str, Any]):
    assert refused(api, "/tokenize", body)["param"] == "content"


def test_detokenize_refuses_ids_that_are_none(api: Running):
    assert "49152" in refused(api, "/detokenize", {"tokens": [1, 49152]})["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/completions", 405)])
def test_other_paths_and_methods_are_refused_in_the_same_shape(api: Running, method: str, path: str, status: int):
    response = api.client.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]
