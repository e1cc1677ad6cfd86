from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.api.tool_formats import ToolFormat, detect_tool_format
from dllama_gpu.api.tool_parser import ParsedCall, ToolCallParser
from dllama_gpu.tokenizer.chat_template import ChatTemplate
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.conftest import Running, Serve
from tests.unit.api.test_chat import events_of

HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def parsed(tool_format: ToolFormat, pieces: list[str], names: tuple[str, ...] = ("f", "g")) -> tuple[str, list[Any]]:
    """Text and calls (name, arguments) that come out."""
    parser = ToolCallParser(tool_format, names)
    found = [one for piece in pieces for one in parser.push(piece)] + parser.finish()
    text = "".join(one for one in found if isinstance(one, str))
    calls = [(one.name, json.loads(one.arguments)) for one in found if isinstance(one, ParsedCall)]
    return text, calls


CASES = [
    (ToolFormat.HERMES, "Just text <b>bold</b>\n", "Just text <b>bold</b>\n", []),
    (ToolFormat.HERMES, HERMES_CALL, "", [("f", {"a": 1})]),
    (ToolFormat.HERMES, f"Let me see.\n{HERMES_CALL}\n", "Let me see.\n", [("f", {"a": 1})]),
    (ToolFormat.HERMES, f"{HERMES_CALL}\n{HERMES_CALL}", "", [("f", {"a": 1}), ("f", {"a": 1})]),
    (ToolFormat.HERMES, '<tool_call>{"name":"g","arguments":{}}', "", [("g", {})]),
    (ToolFormat.HERMES, '<tool_call>{"name":"g","arguments":"{\\"b\\": 2}"}</tool_call>', "", [("g", {"b": 2})]),
    (ToolFormat.HERMES, "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
    (ToolFormat.HERMES, '<tool_call>{"name":"h"}</tool_call>', '<tool_call>{"name":"h"}</tool_call>', []),
    (ToolFormat.HERMES, '<tool_call>{"name":["f"]}</tool_call>', '<tool_call>{"name":["f"]}</tool_call>', []),
    # Numbers and depths that Python may read, but that are no JSON for a client.
    *[
        (ToolFormat.HERMES, bad, bad, [])
        for bad in (
            f'<tool_call>{{"name":"f","arguments":{arguments}}}</tool_call>'
            for arguments in ('{"a": 1e999}', '{"a": NaN}', '"' + "[" * 20000 + '"')
        )
    ],
    (ToolFormat.HERMES, "a <tool_call>cut off", "a<tool_call>cut off", []),
    (ToolFormat.LLAMA3, '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
    (ToolFormat.LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
    (
        ToolFormat.LLAMA3,
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": [1]}}',
        "",
        [("f", {}), ("g", {"x": [1]})],
    ),
    (ToolFormat.LLAMA3, "Text with {braces}", "Text with {braces}", []),
    (ToolFormat.LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
    (ToolFormat.LLAMA3, '{"name": "f", "parameters": {', '{"name": "f", "parameters": {', []),
    (ToolFormat.MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "", [("f", {"a": 1})]),
    (
        ToolFormat.MISTRAL,
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", {}), ("g", {})],
    ),
    (ToolFormat.MISTRAL, "[TOOL] text", "[TOOL] text", []),
]


@pytest.mark.parametrize(("tool_format", "answer", "text", "calls"), CASES)
def test_calls_and_text_are_told_apart(tool_format: ToolFormat, answer: str, text: str, calls: list[Any]):
    assert parsed(tool_format, [answer]) == (text, calls)


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 80), max_size=8))
def test_it_does_not_matter_in_which_pieces_the_text_comes(case: Any, cuts: list[int]):
    tool_format, answer, text, calls = case
    places = sorted({min(cut, len(answer)) for cut in cuts})
    pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert parsed(tool_format, pieces) == (text, calls)


@given(
    tool_format=st.sampled_from(list(ToolFormat)),
    pieces=st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "{", "}", "[", '"', "\n", "a", "<"])
    ),
)
def test_nothing_that_a_model_wrote_is_lost(tool_format: ToolFormat, pieces: list[str]):
    text, calls = parsed(tool_format, pieces)
    assert calls == []
    begin = {ToolFormat.MISTRAL: "[TOOL_CALLS]"}.get(tool_format, "")
    whole = "".join(pieces)
    # Blanks around marks, and the mark at which Mistral's calls begin, are no part of an answer.
    kept = whole.replace(begin, "", 1) if begin else whole
    assert "".join(text.split()) == "".join(kept.split())


def test_text_before_a_call_is_shown_as_soon_as_it_is_certain():
    parser = ToolCallParser(ToolFormat.HERMES, ("f",))
    assert parser.push("Let me look. <to") == ["Let me look."]
    assert parser.push("day") == [" <today"]
    assert parser.push(" <tool_call>") == []


def test_ids_of_calls_differ_and_are_what_mistrals_template_takes():
    parser = ToolCallParser(ToolFormat.HERMES, ("f",))
    ids = [call.id for call in parser.push(HERMES_CALL * 5) if isinstance(call, ParsedCall)]
    assert len(set(ids)) == 5
    assert all(len(one) == 9 and one.isalnum() and one.isascii() for one in ids)


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        (None, None),
        ("{{ messages }}", None),
        ('{% if tools %}<tool_call>{"name": x, "arguments": y}{% endif %}', ToolFormat.HERMES),
        ("{% if tools %}<tool_call>{{ c.arguments }}<arg_key>{% endif %}", None),
        ("{% if tools %}<tool_call><function=f><parameter=a>{{ c.arguments }}{% endif %}", None),
        ('<|start_header_id|>{% if tools %}{"name": x, "parameters": y}{% endif %}', ToolFormat.LLAMA3),
        ("<｜tool▁calls▁begin｜>{% if tools %}{{ t.parameters }}{% endif %}", None),
        ("{% if tools %}[AVAILABLE_TOOLS] [TOOL_CALLS]{% endif %}", ToolFormat.MISTRAL),
        ("{% if tools %}[AVAILABLE_TOOLS] [TOOL_CALLS]f[ARGS]{% endif %}", None),
    ],
)
def test_the_template_tells_the_family(template: str | None, tool_format: ToolFormat | None):
    assert detect_tool_format(template) is tool_format


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"does {name}", "parameters": schema}}


def test_a_call_becomes_a_tool_call(api: Running):
    api.engine.script.answer = f"I look.\n{HERMES_CALL}"
    choice = api.chat(tools=[tool("f", a={"type": "integer"})]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "f", "arguments": '{"a": 1}'})


def test_calls_of_a_stream_come_whole_and_numbered(api: Running):
    api.engine.script.answer = f"{HERMES_CALL}\n{HERMES_CALL}"
    chunks = events_of(api.chat(tools=[tool("f")], stream=True).text)
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert all(not chunk["choices"][0]["delta"].get("content") for chunk in chunks)


def test_only_one_call_comes_where_several_are_not_wanted(api: Running):
    api.engine.script.answer = HERMES_CALL * 3
    message = api.chat(tools=[tool("f")], parallel_tool_calls=False).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


def test_without_tools_a_call_is_text(api: Running):
    api.engine.script.answer = HERMES_CALL
    for fields in ({}, {"tools": [tool("f")], "tool_choice": "none"}):
        choice = api.chat(**fields).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (HERMES_CALL, "stop")


def test_a_template_without_tools_gets_them_in_the_system_message(api: Running, tokenizer: Tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Do"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    body = {"messages": messages, "tools": [tool("f", a={"type": "integer"})]}
    assert api.client.post("/v1/chat/completions", json=body).status_code == 200
    text = tokenizer.decode(api.engine.last.prompt, skip_special=False)
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call these functions")
    assert '"description": "does f"' in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>" in text


def test_a_template_with_tools_gets_them_as_they_are(serve: Serve, tokenizer: Tokenizer):
    source = (
        "{% if xml_tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>{% endif %}"
        "{% for m in messages %}[{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}]{% endfor %}"
        "{% if extra %}{{ extra }}{% endif %}"
    )
    with serve(template=ChatTemplate(source)) as api:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        messages = [{"role": "assistant", "content": "x", "tool_calls": [call]}]
        body = {
            "messages": messages,
            "tools": [tool("f", **{"<|im_end|>": {"type": "string"}})],
            "chat_template_kwargs": {"extra": "<|im_end|>!"},
        }
        assert api.client.post("/v1/chat/completions", json=body).status_code == 200
        prompt = api.engine.last.prompt
        text = tokenizer.decode(prompt, skip_special=False)
    assert '{"type": "function", "function": {"name": "f", "description": "does f", "parameters"' in text
    assert "[assistant:xf(1)]<|im_end|>!" in text
    assert not {0, 2} & set(prompt), "what the client wrote became special tokens"


def test_a_hidden_mark_begins_a_call(serve: Serve, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    # SmolLM2 has no such token, so one of its hidden ones stands for it.
    monkeypatch.setitem(tokenizer.special_ids, "[TOOL_CALLS]", 7)  # type: ignore[arg-type]
    with serve(template=ChatTemplate("{% if tools %}[TOOL_CALLS]{% endif %}{{ messages[0].content }}")) as api:
        api.engine.script.hidden_token = 7
        api.engine.script.answer = '[{"name": "f", "arguments": {"a": 1}}]'
        message = api.chat(tools=[tool("f")]).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["f"]
    assert message["content"] is None
