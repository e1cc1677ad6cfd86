from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.engine.stop_text import StopScanner

few_letters = st.text(alphabet="ab", max_size=12)


def scan(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(stops)
    shown = "".join(scanner.push(piece) for piece in pieces)
    return shown + scanner.flush(), scanner.found


@given(st.lists(few_letters, max_size=8), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_up_to_the_first_stop_text(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    shown, found = scan(pieces, stops)
    if found is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + found)


@given(st.lists(few_letters, max_size=8), st.text(alphabet="ab", min_size=1, max_size=4))
def test_nothing_of_a_stop_text_is_ever_shown(pieces: list[str], stop: str) -> None:
    text, scanner, shown = "".join(pieces), StopScanner([stop]), ""
    for piece in pieces:
        shown += scanner.push(piece)
        assert (text.partition(stop)[0]).startswith(shown)


@given(st.lists(few_letters, max_size=8), st.text(alphabet="ab", min_size=1, max_size=4))
def test_no_more_is_held_back_than_can_begin_a_stop_text(pieces: list[str], stop: str) -> None:
    scanner, shown, seen = StopScanner([stop]), "", ""
    for piece in pieces:
        shown += scanner.push(piece)
        seen += piece
        if scanner.found is None:
            assert stop.startswith(seen[len(shown) :])


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello\n", "\nWorld"], ["\n\n"], ("Hello", "\n\n")),
        (["ab", "cd"], ["bc", "abcd"], ("", "abcd")),
        (["xab"], ["a", "ab"], ("x", "ab")),
        (["héllo ", "wörld"], ["wö"], ("héllo ", "wö")),
        (["abab", "c"], ["ababd", "babc"], ("a", "babc")),
    ],
)
def test_stop_texts_across_pieces(pieces: list[str], stops: list[str], expected: tuple[str, str]) -> None:
    assert scan(pieces, stops) == expected
