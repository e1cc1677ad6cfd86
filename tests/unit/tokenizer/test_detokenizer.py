from __future__ import annotations

import codecs

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import IncrementalDetokenizer
from dllama_gpu.tokenizer.vocabulary import TokenKind, Vocabulary

CONTROL_ID = 256
SHOWN_ID = 257
VOCABULARY = Vocabulary(
    tokens=(*(bytes([byte]) for byte in range(256)), b"<|end|>", b"<think>"),
    kinds=(*[TokenKind.NORMAL] * 256, TokenKind.CONTROL, TokenKind.USER_DEFINED),
    bos_id=None,
    eos_ids=(CONTROL_ID,),
    add_bos=False,
)


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_pieces_join_to_the_text_and_every_character_comes_with_its_last_byte(text: str) -> None:
    stream = IncrementalDetokenizer(VOCABULARY)
    for character in text:
        *first, last = character.encode()
        assert [stream.push(byte) for byte in first] == [""] * len(first)
        assert stream.push(last) == character
    assert stream.flush() == ""


@settings(deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_decode_as_python_does_and_at_most_three_are_held_back(data: bytes) -> None:
    stream = IncrementalDetokenizer(VOCABULARY)
    out = ""
    for index, byte in enumerate(data):
        out += stream.push(byte)
        complete = data[: index + 1]
        assert any(
            out == codecs.decode(complete[: len(complete) - held], "utf-8", "replace")
            for held in range(min(4, index + 2))
        )
    assert out + stream.flush() == data.decode("utf-8", "replace")


@settings(deadline=None)
@given(data=st.binary(max_size=12))
@example(data=b"\xed\xa0")  # the beginning of an encoded surrogate
def test_nothing_is_held_back_that_cannot_become_a_character(data: bytes) -> None:
    stream = IncrementalDetokenizer(VOCABULARY)
    out = "".join(map(stream.push, data))
    rest = data.decode("utf-8", "replace")[len(out) :]
    if rest:  # then some continuation makes it a character
        continuations = [b"\x80", b"\xa0", b"\x90", b"\xbf"]
        tails = [a + b + c for a in continuations for b in [b"", b"\x80"] for c in [b"", b"\x80"]]
        assert any("\ufffd" not in (data + tail).decode("utf-8", "replace")[len(out) :] for tail in tails)


def test_a_control_token_is_hidden_or_shown_and_ends_an_incomplete_character() -> None:
    stream = IncrementalDetokenizer(VOCABULARY)
    assert stream.push(0xE2) == ""
    assert stream.push(CONTROL_ID) == "\ufffd"
    assert stream.push(ord("a")) == "a"
    assert IncrementalDetokenizer(VOCABULARY, skip_special=False).push(CONTROL_ID) == "<|end|>"


def test_a_shown_tag_is_always_shown() -> None:
    assert IncrementalDetokenizer(VOCABULARY).push(SHOWN_ID) == "<think>"


def test_flush_ends_an_incomplete_character_once() -> None:
    stream = IncrementalDetokenizer(VOCABULARY)
    stream.push(0xF0)
    stream.push(0x9F)
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(0x9F) == "\ufffd"  # a continuation byte without a beginning


@pytest.mark.parametrize("token_id", [-1, 258, 10**9])
def test_an_id_outside_the_vocabulary_is_explained(token_id: int) -> None:
    with pytest.raises(DllamaError, match=f"no token {token_id}, its ids end at 257"):
        IncrementalDetokenizer(VOCABULARY).push(token_id)
