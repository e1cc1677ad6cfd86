from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.formats.shown import shown_text, shown_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        (None, "None"),
        ("gpt2", "'gpt2'"),
        ([1], "a list of 1 value"),
        (["a"] * 49152, "a list of 49152 values"),
    ],
)
def test_a_value_is_shown_as_python_writes_it_but_a_list_is_counted(value: object, shown: str) -> None:
    assert shown_value(value) == shown


@given(st.text(min_size=201) | st.builds(lambda char, n: char * n, st.characters(), st.integers(201, 100_000)))
def test_a_long_text_is_cut(text: str) -> None:
    assert shown_text(text) == text[:200] + "…"
    assert len(shown_value(text)) < 2500
