from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.tokenizer.special_text import SpecialText


def split_naively(ids: dict[str, int], text: str) -> list[str | int]:
    """Leftmost first, the longest where several begin."""
    parts: list[str | int] = []
    position = start = 0
    while position < len(text):
        found = max((name for name in ids if text.startswith(name, position)), key=len, default=None)
        if found is None:
            position += 1
            continue
        parts += [part for part in [text[start:position]] if part]
        parts.append(ids[found])
        start = position = position + len(found)
    return parts + [part for part in [text[start:]] if part]


@settings(deadline=None)
@given(names=st.sets(st.text("<|a>.", min_size=1, max_size=5), max_size=8), text=st.text("<|a>.b", max_size=40))
def test_the_leftmost_and_longest_special_text_wins(names: set[str], text: str) -> None:
    ids = {name: index for index, name in enumerate(sorted(names))}
    assert list(SpecialText(ids).split(text)) == split_naively(ids, text)


def test_a_token_inside_a_longer_one_does_not_hide_it() -> None:
    special = SpecialText({"<|im": 1, "<|im_end|>": 2})
    assert list(special.split("a<|im_end|><|imx")) == ["a", 2, 1, "x"]


def test_deeply_nested_and_overlong_names_are_harmless() -> None:
    ids = {"<" * length: length for length in range(1, 200)}
    assert list(SpecialText(ids).split("<" * 130)) == [128, 2]


def test_nothing_is_found_where_there_are_no_names() -> None:
    assert list(SpecialText({}).split("text")) == ["text"]
    assert list(SpecialText({"": 1}).split("")) == []
