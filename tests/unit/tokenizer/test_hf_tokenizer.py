"""Hugging Face tokenizers against the `tokenizers` library with the untouched file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import Tokenizer, open_tokenizer
from dllama_gpu.tokenizer.open_tokenizer import t_file_from
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from tests.unit.tokenizer.library_tokenizers import (
    BOS,
    EOS,
    FAMILIES,
    THINK,
    library_tokenizer,
    write_tokenizer_folder,
)
from tests.unit.tokenizer.small_vocabularies import CORPUS

NASTY = (
    *("  ", "        ", "\n\n", "\t", " \n ", "\r\n", "\x00", "\x7f", "\u00a0", "\u200b", "\ufeff", "\u2028", "\ufdd0"),
    *("e\u0301", "é", "ﬁ", "Å", "👩‍👩‍👧", "👋🏽", "🇩🇪", "ไทย", "العربية", "עברית", "हिन्दी", "한국어", "日本語テキスト"),
    *(
        "don't",
        "WE'LL",
        "’s",
        "3.14159",
        "1000000",
        "٣٤",
        "½",
        "x²",
        "http://a.b/c?d=e&f",
        "foo_bar",
        "<|",
        "|>",
        "<s",
        "▁",
    ),
    *("                         indented", "aaaaaaaaaaaaaaaaaaaa", "-----", "…", "¿¡", "\\n", "${x}", "привет", "今天"),
)
SPECIALS = (BOS, EOS, THINK, "<s>", "</s>", "<unk>")
texts = (
    st.lists(st.sampled_from([*NASTY, *SPECIALS, *sorted(set(CORPUS)), " the", "keeper"]), max_size=24).map("".join)
    | st.text(max_size=30)
).filter(lambda text: text < "\ud800" or all(not 0xD800 <= ord(c) < 0xE000 for c in text))


@cache
def ours(family: str, with_t: bool = False) -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = write_tokenizer_folder(Path(folder), family)
        return tokenizer_from_t_file(t_file_from(path)) if with_t else open_tokenizer(path)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_ids_are_those_of_the_library(family: str, text: str) -> None:
    expected = library_tokenizer(family).encode(text, add_special_tokens=False).ids
    assert ours(family).encode(text, add_bos=False) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_has_the_ids_of_the_library(family: str) -> None:
    text = CORPUS + "".join(NASTY) + CORPUS[::-1]
    assert (
        ours(family).encode(text, add_bos=False) == library_tokenizer(family).encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("family", ["llama3", "qwen", "smollm", "deepseek", "llama2", "mistral", "gemma"])
@settings(deadline=None, max_examples=50)
@given(text=texts)
def test_text_comes_back(family: str, text: str) -> None:
    tokenizer = ours(family)
    if family == "qwen":
        text = library_tokenizer(family).normalizer.normalize_str(text)
    if family in ("llama2", "mistral", "gemma"):
        text = text.replace("▁", " ")
    if family == "mistral" and text.startswith(" "):  # it takes this for its own prefix
        text = "x" + text
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


@pytest.mark.parametrize("family", ["llama2", "gemma", "unigram", "mistral"])
def test_specials_are_never_made_of_plain_text(family: str) -> None:
    tokenizer = ours(family)
    ids = tokenizer.encode("a <s> b</s> <unk>", parse_special=False, add_bos=False)
    special = {tokenizer.special_ids["<s>"], tokenizer.special_ids["</s>"]}
    assert not special & set(ids)


@pytest.mark.parametrize("family", ["llama3", "qwen", "smollm"])
@settings(deadline=None, max_examples=50)
@given(text=texts.filter(lambda text: "        " not in text))
def test_a_t_file_of_it_has_the_same_ids(family: str, text: str) -> None:
    text = library_tokenizer("qwen").normalizer.normalize_str(text)  # a .t file knows no normalization
    expected = ours(family).encode(text, add_bos=False, parse_special=False)
    assert ours(family, with_t=True).encode(text, add_bos=False, parse_special=False) == expected


@settings(deadline=None, max_examples=50)
@given(text=texts)
def test_a_t_file_of_a_sentence_piece_vocabulary_has_the_same_ids(text: str) -> None:
    text = text.replace("\x00", "").replace("▁", "")
    expected = ours("llama2").encode(text, add_bos=False, parse_special=False)
    assert ours("llama2", with_t=True).encode(text, add_bos=False, parse_special=False) == expected


def test_the_files_beside_it_name_the_special_tokens(tmp_path: Path) -> None:
    path = write_tokenizer_folder(tmp_path, "llama3", chat_template="{{ bos_token }}")
    library = library_tokenizer("llama3")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [library.token_to_id(THINK), 7]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": 3}))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.bos_id == library.token_to_id(BOS)
    assert tokenizer.eos_ids == (library.token_to_id(EOS), library.token_to_id(THINK), 7)
    assert tokenizer.add_bos
    assert tokenizer.chat_template == "{{ bos_token }}"
    assert tokenizer.encode("a")[0] == tokenizer.bos_id
    (tmp_path / "chat_template.jinja").write_text("{{ newer }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "add_bos_token": False}))
    tokenizer = open_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.chat_template) == (3, False, "{{ newer }}")


@pytest.mark.parametrize(
    ("family", "added", "expected"), [("qwen", None, False), ("qwen", True, True), ("llama3", None, True)]
)
def test_bos_is_put_first_as_configured_or_as_the_library_would(
    tmp_path: Path, family: str, added: bool | None, expected: bool
) -> None:
    write_tokenizer_folder(tmp_path, family, **({} if added is None else {"add_bos_token": added}))
    assert open_tokenizer(tmp_path).add_bos is expected


def test_tags_that_are_not_special_are_shown_and_recognized() -> None:
    tokenizer = ours("qwen")
    think = library_tokenizer("qwen").token_to_id(THINK)
    assert tokenizer.special_ids[THINK] == think
    assert tokenizer.decode([think]) == THINK
    assert tokenizer.decode([tokenizer.eos_ids[0]]) == ""


def _changed(path: Path, **changes: Any) -> Path:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "it has no model"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "type 'WordPiece', but only BPE and Unigram"),
        ({"model": {"type": "BPE", "vocab": [1], "merges": []}}, "the vocabulary is a list of 1 value"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "'a' has the id -1"),
        ({"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}}, "'a' has the id True"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "the merge 'a' is no pair"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "refused by the tokenizers library"),
        ({"model": {"type": "BPE", "vocab": {"a": 10**9}, "merges": []}}, "ids up to 1000000000; it is damaged"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "token 0 is a list of 1 value, but a text and a score"),
        ({"added_tokens": 3}, "added_tokens is 3, but a list is wanted"),
        ({"added_tokens": [{"id": -3, "content": "x"}]}, "has the id -3"),
        ({"added_tokens": [{"id": 3, "content": ""}]}, "added token 3 has the text ''"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}, "refused by the tokenizers library"),
        ({"normalizer": {"type": "Nothing"}}, "refused by the tokenizers library"),
    ],
)
def test_damaged_definitions_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _changed(write_tokenizer_folder(tmp_path, "qwen"), **changes)
    with pytest.raises(DllamaError, match=message):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", "{", "is no JSON file"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token is 3, but a token's text is wanted"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is 3, but a text is wanted"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token is 'yes', but true or false"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x', but a token's id is wanted"),
        ("config.json", '{"eos_token_id": 100000}', "the EOS id in the files beside it is 100000"),
        ("added_tokens.json", '{"x": null}', "has the id None"),
    ],
)
def test_damaged_files_beside_it_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_tokenizer_folder(tmp_path, "qwen")
    (tmp_path / name).write_text(text)
    with pytest.raises(DllamaError, match=message):
        open_tokenizer(tmp_path)


def test_a_unigram_vocabulary_has_no_t_file(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match=r"a Unigram vocabulary, which a \.t file cannot express"):
        t_file_from(write_tokenizer_folder(tmp_path, "unigram"))
