"""Byte-pair vocabularies against an oracle that follows the list of merges, pair by pair."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.tokenizer import Tokenizer, byte_pair, t_file_from_metadata, tokenizer_from_metadata
from dllama_gpu.tokenizer.byte_alphabet import decode_token
from dllama_gpu.tokenizer.byte_pair import BytePairEncoder
from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from tests.unit.tokenizer.small_vocabularies import (
    CORPUS,
    byte_pair_metadata,
    byte_pair_t_file,
    split_words,
    stored,
    train_byte_pair,
)

LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_SPECIALS = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
SPECIALS = {"llama-bpe": LLAMA3_SPECIALS, "qwen2": QWEN_SPECIALS, "gpt-2": QWEN_SPECIALS, "smollm": QWEN_SPECIALS}
texts = st.text(st.sampled_from([*sorted(set(CORPUS)), "\x00", "👋", "ß"]), max_size=60) | st.text(max_size=30)


def plain(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(text, add_bos=False, parse_special=False)]


@cache
def tokenizers(family: str) -> list[Tokenizer]:
    """The same vocabulary from GGUF, from our `.t`, and from a `.t` of the original's converter."""
    metadata = byte_pair_metadata(train_byte_pair(family), family, SPECIALS[family])
    return [
        tokenizer_from_metadata(metadata),
        tokenizer_from_t_file(t_file_from_metadata(metadata)),
        tokenizer_from_t_file(byte_pair_t_file(train_byte_pair(family), SPECIALS[family])),
    ]


@pytest.mark.parametrize("family", SPECIALS)
@settings(deadline=None)
@given(text=texts)
def test_gguf_and_t_encode_as_the_list_of_merges_says(family: str, text: str) -> None:
    expected = train_byte_pair(family).encode(split_words(family, text))
    for tokenizer in tokenizers(family):
        assert plain(tokenizer, text) == expected


@pytest.mark.parametrize("family", SPECIALS)
@settings(deadline=None)
@given(text=texts)
def test_text_comes_back(family: str, text: str) -> None:
    for tokenizer in tokenizers(family):
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False), skip_special=False) == text


@settings(max_examples=50, deadline=None)
@given(text=texts, seed=st.integers(0, 50))
def test_the_order_of_ids_does_not_matter_only_that_of_merges(text: str, seed: int) -> None:
    vocabulary = train_byte_pair("qwen2")
    metadata = byte_pair_metadata(vocabulary, "qwen2", QWEN_SPECIALS)
    n_regular = len(vocabulary.tokens)
    regular = metadata["tokenizer.ggml.tokens"][:n_regular]
    random.Random(seed).shuffle(regular)
    metadata["tokenizer.ggml.tokens"] = [*regular, *QWEN_SPECIALS]
    expected = vocabulary.encode(split_words("qwen2", text))
    assert plain(tokenizer_from_metadata(metadata), text) == expected
    assert plain(tokenizer_from_t_file(t_file_from_metadata(metadata)), text) == expected


def test_a_token_that_no_merge_makes_never_comes_from_text() -> None:
    vocabulary = train_byte_pair("gpt-2")
    metadata = byte_pair_metadata(vocabulary, "gpt-2", QWEN_SPECIALS)
    metadata["tokenizer.ggml.tokens"].append("zebra")
    metadata["tokenizer.ggml.token_type"].append(1)
    for tokenizer in (tokenizer_from_metadata(metadata), tokenizer_from_t_file(t_file_from_metadata(metadata))):
        assert b"zebra" not in plain(tokenizer, "zebra")
        assert tokenizer.decode([tokenizer.vocab_size - 1]) == "zebra"


def test_families_that_take_whole_words_take_a_word_that_no_merge_makes() -> None:
    vocabulary = train_byte_pair("llama-bpe")
    metadata = byte_pair_metadata(vocabulary, "llama-bpe", LLAMA3_SPECIALS)
    metadata["tokenizer.ggml.tokens"].append(stored(b" zebra"))
    metadata["tokenizer.ggml.token_type"].append(1)
    for tokenizer in (tokenizer_from_metadata(metadata), tokenizer_from_t_file(t_file_from_metadata(metadata))):
        assert plain(tokenizer, "a zebra") == [b"a", b" zebra"]


def test_added_text_is_taken_whole_wherever_it_stands_but_tags_only_when_special_tokens_are_parsed() -> None:
    vocabulary = train_byte_pair("gpt-2")
    metadata = byte_pair_metadata(vocabulary, "gpt-2", QWEN_SPECIALS)
    metadata["tokenizer.ggml.tokens"] += ["õõ", "<think>"]
    metadata["tokenizer.ggml.token_type"] += [4, 4]
    added, think = len(metadata["tokenizer.ggml.tokens"]) - 2, len(metadata["tokenizer.ggml.tokens"]) - 1
    for tokenizer in (tokenizer_from_metadata(metadata), tokenizer_from_t_file(t_file_from_metadata(metadata))):
        assert added in tokenizer.encode("aõõb", parse_special=False)
        assert think in tokenizer.encode("a<think>b")
        assert think not in tokenizer.encode("a<think>b", parse_special=False)
        assert tokenizer.decode([think, added]) == "<think>õõ"


def test_a_missing_byte_becomes_the_unknown_token_or_nothing() -> None:
    tokens = [bytes([byte]) for byte in range(256) if byte != ord("q")]
    order = list(range(len(tokens)))
    family = PRE_TOKENIZERS["gpt-2"]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    assert BytePairEncoder(tokens, order, family).encode("aqb") == [ids[b"a"], ids[b"b"]]
    assert BytePairEncoder(tokens, order, family, 7).encode("aqb") == [ids[b"a"], 7, ids[b"b"]]


def test_of_two_tokens_with_the_same_bytes_the_better_ranked_one_is_used() -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"ab"]
    encoder = BytePairEncoder(tokens, [*range(256), 257, 256], PRE_TOKENIZERS["gpt-2"])
    assert encoder.encode("ab") == [257]


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab é1.\n中，👋"), max_size=200))
def test_chunks_hold_the_whole_text_and_cut_at_safe_places_where_there_are_any(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_pair, "_MAX_CHUNK", 16)
        chunks = list(byte_pair._chunks(text))
    assert "".join(chunks) == text
    assert all(len(chunk) <= 16 for chunk in chunks)
    cuts = {match.end() for match in byte_pair._SAFE_CUT.finditer(text)}
    position = 0
    for chunk in chunks[:-1]:
        reachable = [cut for cut in cuts if position < cut <= position + 14]  # what follows a cut must be seen too
        position += len(chunk)
        assert position in cuts or not reachable


def test_a_long_text_in_chunks_encodes_as_in_one_piece() -> None:
    tokenizer = tokenizer_from_metadata(byte_pair_metadata(train_byte_pair("llama-bpe"), "llama-bpe", LLAMA3_SPECIALS))
    text = CORPUS * 100
    assert len(text) > 2 * byte_pair._MAX_CHUNK
    expected = train_byte_pair("llama-bpe").encode(split_words("llama-bpe", text))
    assert plain(tokenizer, text) == expected


@pytest.mark.parametrize("family", sorted({family.name for family in PRE_TOKENIZERS.values()}))
@pytest.mark.parametrize("unit", [" ", "a", "\n", " \n", "^", "\t\x00", "\u2003☃", "1", "<|", "\u3000中"])
def test_monotonous_texts_of_any_kind_are_encoded_completely(family: str, unit: str) -> None:
    encoder = BytePairEncoder([], [], PRE_TOKENIZERS[family], unknown_id=0)
    text = unit * (150_000 // len(unit))
    assert len(encoder.encode(text)) == len(text.encode())


def test_the_byte_alphabet_is_a_bijection_and_leaves_other_characters_alone() -> None:
    assert [decode_token(stored(bytes([byte]))) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert decode_token("Ġtheory") == b" theory"
    assert decode_token("中 ") == "中 ".encode()
