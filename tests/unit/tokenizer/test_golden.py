"""The default model's tokenizer against llama.cpp's tokenizations of the same texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import regex

from dllama_gpu.formats.gguf_header import read_gguf_metadata
from dllama_gpu.tokenizer import Tokenizer, open_tokenizer, t_file_from_gguf, tokenizer_from_t_file, write_t_file
from dllama_gpu.tokenizer.byte_alphabet import decode_token
from dllama_gpu.tokenizer.t_file import TokenizerFile
from tests.unit.tokenizer.small_vocabularies import merge_word

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def from_gguf(smollm2_gguf: Path) -> Tokenizer:
    return open_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def from_t(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "smollm2.t"
    write_t_file(path, t_file_from_gguf(smollm2_gguf))
    return open_tokenizer(path)


@pytest.fixture(scope="module")
def from_converter_t(smollm2_gguf: Path) -> Tokenizer:
    """As the original's converter writes it: scores −id, only the configured EOS."""
    file = t_file_from_gguf(smollm2_gguf)
    scores = tuple(-float(token_id) for token_id in range(len(file.tokens)))
    return tokenizer_from_t_file(TokenizerFile(file.tokens, scores, file.bos_id, (2,), add_bos=False))


@pytest.fixture(scope="module")
def from_hf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same vocabulary as the `tokenizer.json` that it was published with."""
    metadata = read_gguf_metadata(smollm2_gguf)
    pieces = metadata["tokenizer.ggml.tokens"]
    definition = {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(17)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: token_id for token_id, text in enumerate(pieces)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }
    folder = tmp_path_factory.mktemp("hf")
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return open_tokenizer(folder)


@pytest.fixture(params=["from_gguf", "from_t", "from_converter_t", "from_hf"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def test_all_golden_texts_encode_exactly(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    assert len(golden["tokenization"]) == 8
    for case in golden["tokenization"]:
        assert tokenizer.encode(case["text"], parse_special=False) == case["ids"], case["name"]
        assert tokenizer.encode(case["text"]) == case["ids_special"], case["name"]


def test_all_golden_texts_come_back_from_their_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    for case in golden["tokenization"]:
        assert tokenizer.decode(case["ids"]) == case["text"]
        assert tokenizer.decode(case["ids_special"], skip_special=False) == case["text"]


def test_facts_of_the_default_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.bos_id == 1
    assert not tokenizer.add_bos
    assert tokenizer.eos_ids == (2, 0)  # <|im_end|> as configured, then <|endoftext|>
    assert [token_id for token_id in range(49152) if tokenizer.is_special(token_id)] == list(range(17))


def test_random_texts_encode_as_the_list_of_merges_says(
    from_gguf: Tokenizer, from_t: Tokenizer, from_converter_t: Tokenizer, smollm2_gguf: Path, golden: dict[str, Any]
) -> None:
    merges = [merge.split(" ") for merge in read_gguf_metadata(smollm2_gguf)["tokenizer.ggml.merges"]]
    ranks = {(decode_token(left), decode_token(right)): rank for rank, (left, right) in enumerate(merges)}
    ids = {from_gguf.token_bytes(token_id): token_id for token_id in range(17, from_gguf.vocab_size)}
    source = random.Random(11)
    texts = [case["text"] for case in golden["tokenization"]]
    texts += [
        "".join(source.choices([*"abcdeinorst .,'\n\t019éßж中👋", "the", "ing", "    "], k=60)) for _ in range(300)
    ]
    for text in texts:
        digits_alone = regex.splititer(r"(\p{N})", text)
        words = [word for part in digits_alone for word in regex.findall(GPT2_SPLIT, part)]
        expected = [ids[token] for word in words for token in merge_word(word.encode(), ranks)]
        for tokenizer in (from_gguf, from_t, from_converter_t):
            assert tokenizer.encode(text, parse_special=False) == expected


def test_bytes_without_a_token_are_dropped(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


def test_a_chat_ends_where_the_answer_begins(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    case = next(case for case in golden["tokenization"] if case["name"] == "chat_special")
    assert tokenizer.encode(case["text"])[0] == tokenizer.special_ids["<|im_start|>"]
