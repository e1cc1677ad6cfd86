"""What a reasoning model thinks is told apart from what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.api.reasoning import ReasoningParser, tells_reasoning
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.tokenizer.chat_template import ChatTemplate
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.conftest import Running, Serve
from tests.unit.api.test_chat import events_of

# As Qwen 3's: it thinks unless it is told not to, and is told of thoughts between calls only.
QWEN3 = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if reasoning_effort is defined %}effort: {{ reasoning_effort }}
{% endif %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}"""
# As DeepSeek R1's: nothing keeps it from thinking.
ALWAYS_THINKS = "{% for message in messages %}{{ message.content }}\n{% endfor %}<|im_start|>assistant\n<think>\n"
BEGINS_THOUGHTS = QWEN3 + "{% if enable_thinking is not defined %}<think>\n{% endif %}"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def parsed(pieces: list[str], *, begun: bool = False) -> tuple[str, str]:
    """Thoughts and what is said."""
    parser = ReasoningParser(begun=begun)
    parts = [*(parser.push(piece) for piece in pieces), parser.finish("")]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


CASES = [
    ("Hello <think>.\n", False, "", "Hello <think>.\n"),
    ("\n Hello", False, "", "\n Hello"),
    ("<think>\nLet me\n\nsee.\n</think>\n\nIt is 4.\n", False, "Let me\n\nsee.", "It is 4.\n"),
    ("Let me see.\n</think>\n\nIt is 4.", True, "Let me see.", "It is 4."),
    ("<think>\n\n</think>\n\nIt is 4.", False, "", "It is 4."),
    ("<think></think>\n\nIt is 4.", False, "", "It is 4."),
    ("<think>\nLet me see. \n", False, "Let me see.", ""),
    ("Let me see. </thi", True, "Let me see. </thi", ""),
    ("<think>a</think>", False, "a", ""),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("answer", "begun", "thought", "said"), CASES)
def test_thoughts_are_told_apart_without_blanks_around_them(answer: str, begun: bool, thought: str, said: str):
    assert parsed([answer], begun=begun) == (thought, said)


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 50), max_size=12))
def test_it_does_not_matter_in_which_pieces_the_text_comes(case: Any, cuts: list[int]):
    answer, begun, thought, said = case
    places = sorted({min(cut, len(answer)) for cut in cuts})
    pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert parsed(pieces, begun=begun) == (thought, said)


@pytest.mark.parametrize(
    ("wanted", "template", "expected"),
    [
        ("auto", QWEN3, True),
        ("auto", "{{ messages }}", False),
        ("auto", None, False),
        ("deepseek", "{{ messages }}", True),
        ("none", QWEN3, False),
    ],
)
def test_the_template_decides_unless_the_operator_does(wanted: Any, template: str | None, expected: bool):
    assert tells_reasoning(wanted, template) is expected


@pytest.fixture(scope="module")
def _reasoning(serve: Serve) -> Iterator[Running]:
    with serve(template=ChatTemplate(QWEN3)) as started:
        yield started


@pytest.fixture
def model(_reasoning: Running) -> Running:
    _reasoning.engine.reset()
    return _reasoning


def prompt(api: Running, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(api.engine.last.prompt, skip_special=False)


def test_an_answer_tells_thoughts_beside_its_content(model: Running):
    model.engine.script.answer = "<think>\nLet me see.\n</think>\n\nIt is 4."
    answer = model.chat().json()
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "It is 4.",
        "refusal": None,
        "reasoning_content": "Let me see.",
    }
    n_thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < n_thought < answer["usage"]["completion_tokens"]


def test_a_stream_tells_thoughts_first_and_never_a_tag(model: Running):
    model.engine.script.answer = "<think>\nLet me see.\n</think>\n\nIt is 4."
    deltas = [chunk["choices"][0]["delta"] for chunk in events_of(model.chat(stream=True).text)]
    kinds = [key for delta in deltas for key in delta if key in ("reasoning_content", "content")][1:]
    assert kinds == sorted(kinds, reverse=True)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see."
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 4."


@pytest.mark.parametrize(("reason", "name"), [(FinishReason.MAX_TOKENS, "length"), (FinishReason.STOP_TEXT, "stop")])
def test_an_answer_that_ends_in_its_thoughts_has_no_content(model: Running, reason: FinishReason, name: str):
    model.engine.script.answer = "<think>\nLet me"
    model.engine.script.rest = " see </th"
    model.engine.script.reason = reason
    choice = model.chat().json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", name)
    assert choice["message"]["reasoning_content"] == "Let me see </th"


def test_an_answer_without_thoughts_has_no_such_field(model: Running):
    message = model.chat().json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello there, friend.", "refusal": None}


def test_thoughts_that_the_template_begins_need_no_tag(serve: Serve):
    with serve(template=ChatTemplate(BEGINS_THOUGHTS)) as api:
        api.engine.script.answer = "Let me see.\n</think>\n\nIt is 4."
        message = api.chat().json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Let me see.", "It is 4.")
        api.engine.script.answer = "It is 4."
        message = api.chat(chat_template_kwargs={"enable_thinking": False}).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "It is 4.", "refusal": None}


def test_calls_are_looked_for_in_what_is_said_only(model: Running):
    model.engine.script.answer = f"<think>\nPerhaps {CALL}?\n</think>\n\n{CALL}"
    choice = model.chat(tools=[TOOL]).json()["choices"][0]
    assert choice["message"]["reasoning_content"] == f"Perhaps {CALL}?"
    assert choice["message"]["content"] is None
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f"]
    assert choice["finish_reason"] == "tool_calls"


def test_logprobs_are_those_of_all_tokens(model: Running, tokenizer: Tokenizer):
    model.engine.script.answer = "<think>a</think>b"
    choice = model.chat(logprobs=True).json()["choices"][0]
    assert len(choice["logprobs"]["content"]) == len(tokenizer.encode("<think>a</think>b", parse_special=False))


def test_a_template_can_be_told_not_to_have_it_think(model: Running, tokenizer: Tokenizer):
    for fields in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        assert model.chat(**fields).status_code == 200
        assert prompt(model, tokenizer).endswith("assistant\n<think>\n\n</think>\n\n")
    assert model.chat(reasoning_effort="low").status_code == 200
    assert prompt(model, tokenizer).endswith("effort: low\n<|im_start|>assistant\n")


def test_an_answer_of_a_given_form_comes_without_thoughts(model: Running, tokenizer: Tokenizer):
    model.engine.script.answer = '{"a": "<think>"}'
    message = model.chat(response_format={"type": "json_object"}).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": '{"a": "<think>"}', "refusal": None}
    assert prompt(model, tokenizer).endswith("</think>\n\n")


def test_thoughts_that_a_template_always_begins_are_ended_where_none_are_wanted(serve: Serve, tokenizer: Tokenizer):
    with serve(template=ChatTemplate(ALWAYS_THINKS)) as api:
        api.engine.script.answer = '{"a": 1}'
        fields: list[dict[str, Any]] = [
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ]
        for wanted in fields:
            message = api.chat(**wanted).json()["choices"][0]["message"]
            assert message == {"role": "assistant", "content": '{"a": 1}', "refusal": None}
            assert prompt(api, tokenizer).endswith("assistant\n<think>\n\n</think>\n\n")
        assert api.chat("<think>").status_code == 200
        assert prompt(api, tokenizer).endswith("<think>\n<|im_start|>assistant\n<think>")


def test_thoughts_of_earlier_answers_are_left_out_but_not_those_between_calls(model: Running, tokenizer: Tokenizer):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B", "reasoning_content": "old"},
        {"role": "user", "content": "C"},
        {"role": "assistant", "content": "<think>older</think>\n\nD"},
        {"role": "user", "content": "E"},
        {"role": "assistant", "content": None, "reasoning": "new", "tool_calls": [call]},
        {"role": "tool", "content": "F", "tool_call_id": "1"},
    ]
    assert model.client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    text = prompt(model, tokenizer)
    assert "old" not in text
    assert "<|im_start|>assistant\nD<|im_end|>" in text
    assert "<think>\nnew\n</think>" in text


def test_without_a_reasoning_format_the_text_stays_as_it_is(serve: Serve):
    with serve(template=ChatTemplate(QWEN3), reasoning_format="none") as api:
        api.engine.script.answer = "<think>\nLet me see.\n</think>\n\nIt is 4."
        answer = api.chat().json()
        assert answer["choices"][0]["message"]["content"] == api.engine.script.answer
        assert "completion_tokens_details" not in answer["usage"]


def test_a_chat_may_choose_another_reasoning_format(model: Running):
    model.engine.script.answer = "<think>a</think>b"
    expected = {"none": "<think>a</think>b", "deepseek": "b", "auto": "b"}
    for wanted, content in expected.items():
        assert model.chat(reasoning_format=wanted).json()["choices"][0]["message"]["content"] == content
    refusal = model.chat(reasoning_format="deepseek-legacy")
    assert refusal.status_code == 400
    assert "reasoning_format should be 'auto', 'deepseek' or 'none'" in refusal.json()["error"]["message"]
