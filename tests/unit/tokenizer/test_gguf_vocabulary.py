"""Tokenizers and `.t` files out of GGUF metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import (
    t_file_from_gguf,
    t_file_from_metadata,
    tokenizer_from_gguf,
    tokenizer_from_metadata,
    tokenizer_from_t_file,
)
from dllama_gpu.tokenizer.t_vocabulary import NEVER_MADE
from tests.unit.tokenizer.small_vocabularies import (
    byte_pair_metadata,
    sentence_piece_metadata,
    train_byte_pair,
    train_sentence_piece,
    write_gguf,
)

SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|special|>"]


def metadata(family: str | None = "llama-bpe", **extra: Any) -> dict[str, Any]:
    return byte_pair_metadata(train_byte_pair("llama-bpe"), family, SPECIALS, **extra)


FIRST = len(train_byte_pair("llama-bpe").tokens)


def test_eos_ids_are_the_files_own_in_order_then_the_known_ones() -> None:
    assert tokenizer_from_metadata(metadata()).eos_ids == (FIRST + 1, FIRST + 2, FIRST + 3)
    named = metadata(**{"tokenizer.ggml.eos_token_id": FIRST + 4, "tokenizer.ggml.eot_token_id": FIRST + 3})
    assert tokenizer_from_metadata(named).eos_ids == (FIRST + 4, FIRST + 3, FIRST + 1, FIRST + 2)


def test_end_tokens_marked_as_normal_text_become_control_tokens() -> None:
    data = metadata()
    data["tokenizer.ggml.token_type"][FIRST + 1] = 1  # the configured EOS
    data["tokenizer.ggml.token_type"][FIRST + 3] = 4  # <|eot_id|>
    tokenizer = tokenizer_from_metadata(data)
    assert tokenizer.decode([FIRST + 1, FIRST + 3]) == ""
    assert FIRST + 3 in tokenizer.eos_ids


@pytest.mark.parametrize(
    ("family", "stored", "expected"),
    [("llama-bpe", None, True), ("qwen2", None, False), ("llama-bpe", False, False), ("qwen2", True, True)],
)
def test_bos_is_added_as_the_file_says_or_as_the_family_does(family: str, stored: bool | None, expected: bool) -> None:
    extra = {} if stored is None else {"tokenizer.ggml.add_bos_token": stored}
    tokenizer = tokenizer_from_metadata(metadata(family, **extra))
    assert tokenizer.add_bos is expected
    assert (tokenizer.encode("a")[0] == FIRST) is expected
    assert tokenizer.encode("a", add_bos=True)[0] == FIRST
    assert tokenizer.encode("a", add_bos=False) == tokenizer.encode("a", add_bos=True)[1:]


def test_without_a_bos_none_is_added_and_a_t_file_names_the_first_control_token() -> None:
    data = metadata("llama-bpe", **{"tokenizer.ggml.add_bos_token": True})
    del data["tokenizer.ggml.bos_token_id"]
    tokenizer = tokenizer_from_metadata(data)
    assert tokenizer.bos_id is None
    assert not tokenizer.add_bos
    assert tokenizer.encode("", add_bos=True) == []
    file = t_file_from_metadata(data)
    assert (file.bos_id, file.add_bos) == (FIRST, False)


def test_a_t_file_scores_tokens_by_their_place_in_the_list_of_merges() -> None:
    file = t_file_from_metadata(metadata())
    merged = [left + right for left, right in train_byte_pair("llama-bpe").merges]
    by_score = sorted(range(FIRST), key=lambda token_id: -file.scores[token_id])
    assert [file.tokens[token_id] for token_id in by_score[256:]] == merged
    assert set(file.scores[FIRST:]) == {NEVER_MADE}


def test_a_t_file_keeps_sentence_piece_scores_and_the_chat_template() -> None:
    data = sentence_piece_metadata(train_sentence_piece(), **{"tokenizer.chat_template": "{{ messages }}"})
    file = t_file_from_metadata(data)
    assert list(file.scores) == data["tokenizer.ggml.scores"]
    assert file.chat_template == "{{ messages }}"
    assert (file.bos_id, file.eos_ids, file.add_bos) == (1, (2,), True)


def test_lone_surrogates_are_read_as_replacement_characters() -> None:
    tokenizer = tokenizer_from_metadata(metadata())
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\udc4b")) == "👋"


def test_a_gguf_file_is_opened_and_converted(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    data = metadata()
    write_gguf(path, data)
    text = "the lighthouse keeper<|eot_id|>"
    expected = tokenizer_from_metadata(data).encode(text)
    assert tokenizer_from_gguf(path).encode(text) == expected
    assert tokenizer_from_t_file(t_file_from_gguf(path)).encode(text) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer model is 'bert'"),
        ({"tokenizer.ggml.model": 7}, "`tokenizer.ggml.model` is 7, not of type str"),
        ({"tokenizer.ggml.tokens": []}, "`tokenizer.ggml.tokens` is missing or not a list"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "`tokenizer.ggml.tokens` holds other things than str"),
        ({"tokenizer.ggml.merges": None}, "`tokenizer.ggml.merges` is missing"),
        ({"tokenizer.ggml.token_type": [1]}, "but 1 token types"),
        ({"tokenizer.ggml.bos_token_id": 1 << 20}, "`tokenizer.ggml.bos_token_id` is 1048576, but it has only"),
        ({"tokenizer.ggml.eot_token_id": -1}, "`tokenizer.ggml.eot_token_id` is -1"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "`tokenizer.ggml.add_bos_token` is 'yes', not of type bool"),
        ({"tokenizer.ggml.model": ["x"] * 9}, "`tokenizer.ggml.model` is a list of 9 values, not of type str"),
        ({"tokenizer.ggml.pre": 3}, "`tokenizer.ggml.pre` is 3"),
        ({"tokenizer.chat_template": 3}, "`tokenizer.chat_template` is 3"),
    ],
)
def test_each_defect_of_byte_pair_metadata_is_named(changes: dict[str, Any], said: str) -> None:
    data = {key: value for key, value in metadata(**changes).items() if value is not None}
    for read in (tokenizer_from_metadata, t_file_from_metadata):
        with pytest.raises(DllamaError) as caught:
            read(data)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.scores": None}, "`tokenizer.ggml.scores` is missing"),
        ({"tokenizer.ggml.scores": [0.0]}, "but 1 scores"),
        ({"tokenizer.ggml.token_type": [6] * 700}, "its byte token '<unk>' is not of the form '<0x0A>'"),
    ],
)
def test_each_defect_of_sentence_piece_metadata_is_named(changes: dict[str, Any], said: str) -> None:
    data = sentence_piece_metadata(train_sentence_piece(), **changes)
    with pytest.raises(DllamaError) as caught:
        tokenizer_from_metadata({key: value for key, value in data.items() if value is not None})
    assert said in str(caught.value)


def test_a_defect_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {})
    for read in (tokenizer_from_gguf, t_file_from_gguf):
        with pytest.raises(DllamaError, match=re.escape(str(path)) + " cannot be .*: it has no tokenizer"):
            read(path)
