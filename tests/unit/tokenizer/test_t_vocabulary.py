"""What is read from a `.t` vocabulary that the format does not say."""

from __future__ import annotations

import pytest

from dllama_gpu.tokenizer import ChatTemplate, Tokenizer, TokenizerFile, tokenizer_from_t_file
from tests.unit.tokenizer.small_vocabularies import byte_pair_t_file, train_byte_pair

LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]


def special_texts(tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.token_bytes(i).decode() for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)}


def insert_first(file: TokenizerFile, specials: list[str], bos: int) -> TokenizerFile:
    """The file with specials before all other tokens, as SmolLM2 has them; scores stay −id."""
    tokens = (*(special.encode() for special in specials), *file.tokens)
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    return TokenizerFile(tokens, scores, bos_id=bos, eos_ids=(2,), add_bos=False)


def test_llama3_specials_are_all_from_bos_on() -> None:
    tokenizer = tokenizer_from_t_file(byte_pair_t_file(train_byte_pair("llama-bpe"), LLAMA3_SPECIALS))
    assert special_texts(tokenizer) == set(LLAMA3_SPECIALS)
    n_regular = tokenizer.bos_id
    assert n_regular is not None
    assert tokenizer.eos_ids == (n_regular + 1, n_regular + 3)  # as configured, then <|eot_id|>
    assert tokenizer.encode("<|eot_id|>") == [n_regular, n_regular + 3]


def test_qwen_tags_for_the_reader_are_recognized_but_shown() -> None:
    specials = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>"]
    tokenizer = tokenizer_from_t_file(byte_pair_t_file(train_byte_pair("qwen2"), specials))
    assert special_texts(tokenizer) == {"<|endoftext|>", "<|im_end|>", "<|im_start|>"}
    ids = tokenizer.encode("<think>so</think>", add_bos=False)
    assert ids[0] == tokenizer.special_ids["<think>"]
    assert tokenizer.decode(ids) == "<think>so</think>"
    assert tokenizer.encode("<think>", add_bos=False, parse_special=False) != ids[:1]


def test_specials_at_the_start_are_found_though_bos_is_1() -> None:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"]
    file = insert_first(byte_pair_t_file(train_byte_pair("smollm"), []), specials, bos=1)
    tokenizer = tokenizer_from_t_file(TokenizerFile(file.tokens, file.scores, 1, (2,), add_bos=False))
    assert special_texts(tokenizer) == set(specials)
    assert tokenizer.eos_ids == (2, 0)
    text = "the lighthouse"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < len(text)  # merges work, which they do not in the original


def test_a_tag_that_merges_make_is_a_word() -> None:
    tokens = (*(bytes([byte]) for byte in range(256)), b"<p", b"<p>", b"<|end|>")
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    tokenizer = tokenizer_from_t_file(TokenizerFile(tokens, scores, bos_id=258, eos_ids=(258,), add_bos=False))
    assert special_texts(tokenizer) == {"<|end|>"}


@pytest.mark.parametrize(("score", "merged"), [(-1e9, True), (-1e10, False), (-3e38, False)])
def test_scores_as_low_as_the_originals_starting_point_are_never_merged(score: float, merged: bool) -> None:
    tokens = (b"<s>", *(bytes([byte]) for byte in range(256)), b"ab")
    scores = (*(-float(token_id) for token_id in range(257)), score)
    tokenizer = tokenizer_from_t_file(TokenizerFile(tokens, scores, bos_id=0, eos_ids=(0,), add_bos=False))
    assert (tokenizer.encode("ab") == [257]) is merged


def test_bytes_in_order_with_different_scores_are_a_byte_pair_vocabulary() -> None:
    tokens = (*(bytes([byte]) for byte in range(256)), b"ab", b"<s>")
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    tokenizer = tokenizer_from_t_file(TokenizerFile(tokens, scores, bos_id=257, eos_ids=(), add_bos=False))
    assert tokenizer.encode("ab") == [256]  # a SentencePiece vocabulary would put a space in front


def test_a_vocabulary_without_bos_puts_nothing_first() -> None:
    tokens = (*(bytes([byte]) for byte in range(256)), b"ab", b"<|im_end|>")
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    tokenizer = tokenizer_from_t_file(TokenizerFile(tokens, scores, bos_id=None, eos_ids=(257,), add_bos=True))
    assert (tokenizer.bos_id, tokenizer.add_bos) == (None, False)
    assert tokenizer.encode("ab<|im_end|>") == [256, 257]
    template = ChatTemplate.for_tokenizer(tokenizer, "chatml")
    assert "<|im_end|>" in template.render([{"role": "user", "content": "hello"}])


def test_unknown_is_told_by_its_text_and_stands_for_missing_bytes() -> None:
    tokens = (b"<unk>", *(bytes([byte]) for byte in range(256) if byte != ord("q")))
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    tokenizer = tokenizer_from_t_file(TokenizerFile(tokens, scores, bos_id=1, eos_ids=(1,), add_bos=False))
    assert tokenizer.encode("aq") == [tokens.index(b"a"), 0]
    assert tokenizer.decode([0]) == ""
