"""Each family's single expression against the plain sequence of splits that the model was trained with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.tokenizer import byte_pair
from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS, detect_pre_tokenizer, named_pre_tokenizer
from tests.unit.tokenizer.small_vocabularies import split_words, train_byte_pair

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ASIAN = "[一-龥ࠀ-一가-퟿]+"
SPLITS = {
    "smollm": [r"\p{N}", GPT2],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN, r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
}
FAMILIES = sorted({family.name for family in PRE_TOKENIZERS.values()})
# One of each: cases, scripts, marks, numbers, every kind of space, punctuation, symbols, controls, unassigned.
texts = st.text(
    st.sampled_from(
        "aZéßжЯ中一龥あア゙゠・1٣²①〇"
        " \t\n\r\u3000\u2003\x85\xa0'.,-/([<_。，、！～Ａ☃😀\x00\u200b\u0301ग가ࠀ\u3040$+^|`~stſK"
    ),
    max_size=12,
)


def split_in_turn(splits: Sequence[str], text: str) -> list[str]:
    """Each split isolates its matches; all pieces, matches too, go on to the next."""
    pieces = [text] if text else []
    for split in splits:
        pieces = [part for piece in pieces for part in regex.split(f"({split})", piece) if part]
    return pieces


@pytest.mark.parametrize("family", SPLITS)
@settings(max_examples=500, deadline=None)
@given(text=texts)
def test_one_expression_cuts_where_the_splits_in_turn_do(family: str, text: str) -> None:
    assert split_words(family, text) == split_in_turn(SPLITS[family], text)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None)
@given(text=texts)
def test_tiktoken_cuts_where_the_expression_does(family: str, text: str) -> None:
    words = split_words(family, text)
    assert "".join(words) == text
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in words:
        ranks.setdefault(word.encode(), len(ranks))  # tiktoken takes a word that is a token whole
    encoding = tiktoken.Encoding(
        family, pat_str=PRE_TOKENIZERS[family].pattern, mergeable_ranks=ranks, special_tokens={}
    )
    assert encoding.encode_ordinary(text) == [ranks[word.encode()] for word in words]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_a_safe_cut_is_a_cut_in_every_family(family: str, text: str) -> None:
    for match in byte_pair._SAFE_CUT.finditer(text):
        before, after = text[: match.end()], text[match.end() :]
        assert split_words(family, before) + split_words(family, after) == split_words(family, text)


def test_known_words_are_cut_as_each_family_does() -> None:
    text = "I'LL pay 1234 £s.\n\n  x"
    assert split_words("llama-bpe", text) == ["I", "'LL", " pay", " ", "123", "4", " £", "s", ".\n\n", " ", " x"]
    assert split_words("qwen2", text) == ["I", "'LL", " pay", " ", *"1234", " £", "s", ".\n\n", " ", " x"]
    assert split_words("gpt-2", text) == ["I", "'", "LL", " pay", " 1234", " £", "s", ".", "\n\n ", " x"]
    assert split_words("smollm", text) == ["I", "'", "LL", " pay", " ", *"1234", " £", "s", ".", "\n\n ", " x"]


@pytest.mark.parametrize("family", ["llama-bpe", "qwen2", "gpt-2", "smollm"])
def test_a_vocabulary_shows_its_family(family: str) -> None:
    assert detect_pre_tokenizer(train_byte_pair(family).tokens).name == family


def test_a_deepseek_vocabulary_shows_by_its_begin_token() -> None:
    begin = "<｜begin▁of▁sentence｜>".encode()
    assert detect_pre_tokenizer([*train_byte_pair("smollm").tokens, begin]).name == "deepseek-coder"
    assert detect_pre_tokenizer([begin, *train_byte_pair("deepseek-v3").tokens]).name == "deepseek-v3"
    # Distilled models: DeepSeek's token at the end of Llama's or Qwen's vocabulary.
    assert detect_pre_tokenizer([*train_byte_pair("llama-bpe").tokens, begin]).name == "llama-bpe"
    assert detect_pre_tokenizer([*train_byte_pair("qwen2").tokens, begin]).name == "qwen2"


def test_a_named_family_is_taken_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert named_pre_tokenizer("deepseek-r1-qwen", []).name == "qwen2"
    assert not caplog.records


@pytest.mark.parametrize("name", ["default", None, "no-such-rule"])
def test_an_unknown_name_falls_back_to_what_the_vocabulary_shows(
    name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert named_pre_tokenizer(name, train_byte_pair("qwen2").tokens).name == "qwen2"
    assert f"{name!r} is not known" in caplog.text
