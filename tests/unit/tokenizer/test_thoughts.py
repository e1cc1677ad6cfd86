from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from dllama_gpu.tokenizer.thoughts import (
    ThoughtSplitter,
    begins_thoughts,
    mentions_thoughts,
    without_begun_thoughts,
    without_thoughts,
)
from tests.support.tiny import tiny_tokenizer


def split(pieces: list[str], *, begun: bool = False) -> tuple[str, str]:
    """Thoughts and what is said."""
    splitter = ThoughtSplitter(begun=begun)
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    return tuple("".join(text for is_thought, text in parts if is_thought is kind) for kind in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        (" \n<think>\na < b</think>\n\nb", "\na < b", "\n\nb"),
        ("<think>never ended", "never ended", ""),
        ("<think>nearly </thin", "nearly </thin", ""),
        ("a <think> later", "", "a <think> later"),
        ("<thinking>", "", "<thinking>"),
        ("<th", "", "<th"),
        ("</think>", "", "</think>"),
        ("<think></think><think>x", "", "<think>x"),
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_thoughts_are_told_from_what_is_said(text: str, thought: str, said: str, size: int) -> None:
    assert split([text[i : i + size] for i in range(0, len(text), size)]) == (thought, said)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "/think", ">", "a", "\n", "<th"]), max_size=12))
def test_nothing_is_lost_but_the_two_tags(pieces: list[str]) -> None:
    text = "".join(pieces)
    thought, said = split(pieces)
    begins = text.lstrip().startswith("<think>")
    if not begins:
        assert (thought, said) == ("", text)
    else:
        end = "</think>" if "</think>" in text else ""
        assert f"<think>{thought}{end}{said}" == text.lstrip()


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("\nLet me see.\n</think>\n\nYes.", "\nLet me see.\n", "\n\nYes."),
        ("<think>\nLet me see.</think>Yes.", "\nLet me see.", "Yes."),
        ("<b>bold</b> thought", "<b>bold</b> thought", ""),
        ("</think>Yes.", "", "Yes."),
        ("<th", "<th", ""),
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_thoughts_may_have_begun_before(text: str, thought: str, said: str, size: int) -> None:
    assert split([text[i : i + size] for i in range(0, len(text), size)], begun=True) == (thought, said)


@pytest.mark.parametrize(
    ("answer", "said"),
    [("<think>a</think>\n\n b", "b"), ("<think>a", ""), ("\n b <think>", "\n b <think>"), ("", "")],
)
def test_what_is_said_is_what_is_left_without_thoughts(answer: str, said: str) -> None:
    assert without_thoughts(answer) == said


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '<think>\\n' }}", True),
        ("{% set content = message.content.split('</think>')[-1] %}", True),
        ("{{ 'think' }}", False),
    ],
)
def test_templates_of_reasoning_models_know_the_tags(template: str, expected: bool) -> None:
    assert mentions_thoughts(template) is expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_a_prompts_end_may_begin_thoughts(prompt: str, expected: bool) -> None:
    tokenizer = tokenizer_from_t_file(tiny_tokenizer())
    assert begins_thoughts(tokenizer, tokenizer.encode(prompt, add_bos=False)) is expected


@pytest.mark.parametrize(
    ("prompt", "ended"),
    [
        ("assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"),
        ("assistant\n<think>", "assistant\n<think>\n\n</think>\n\n"),
        ("assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n\n</think>\n\n"),
        ("what is <think>?\nassistant\n", "what is <think>?\nassistant\n"),
    ],
)
def test_thoughts_that_a_prompt_begins_can_be_ended_at_once(prompt: str, ended: str) -> None:
    assert without_begun_thoughts(prompt) == ended
