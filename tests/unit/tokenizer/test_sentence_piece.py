"""SentencePiece vocabularies against the library's own reading of the model they came from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import Tokenizer, t_file_from_metadata, tokenizer_from_metadata, tokenizer_from_t_file
from dllama_gpu.tokenizer.sentence_piece import SentencePieceEncoder
from dllama_gpu.tokenizer.vocabulary import TokenKind
from tests.unit.tokenizer.small_vocabularies import CORPUS, sentence_piece_metadata, train_sentence_piece

SPACE = "▁"
parts = st.sampled_from([*sorted(set(CORPUS)), "  ", " the", "\x00", "👋"])
texts = (st.lists(parts, max_size=60).map("".join) | st.text(max_size=30)).filter(lambda text: SPACE not in text)


@cache
def library() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=train_sentence_piece())


@cache
def tokenizers() -> list[Tokenizer]:
    """The same vocabulary from GGUF, from our `.t`, and from a `.t` that spells bytes and spaces."""
    metadata = sentence_piece_metadata(train_sentence_piece())
    file = t_file_from_metadata(metadata)
    spelled = tuple(text.encode() for text in metadata["tokenizer.ggml.tokens"])
    ids = range(len(spelled))
    return [
        tokenizer_from_metadata(metadata),
        tokenizer_from_t_file(file),
        tokenizer_from_t_file(replace(file, tokens=spelled, scores=tuple(-float(token_id) for token_id in ids))),
    ]


@settings(deadline=None)
@given(text=texts.filter(bool))
def test_all_sources_encode_as_the_library_with_its_own_model(text: str) -> None:
    expected = library().encode(text)
    for tokenizer in tokenizers():
        assert tokenizer.encode(text, add_bos=False, parse_special=False) == expected


@settings(deadline=None)
@given(text=texts)
def test_text_comes_back(text: str) -> None:
    for tokenizer in tokenizers():
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


def test_special_tokens_are_read_only_where_they_may_be() -> None:
    for tokenizer in tokenizers():
        assert tokenizer.bos_id == 1
        assert tokenizer.eos_ids == (2,)
        assert tokenizer.add_bos
        ids = tokenizer.encode("the river</s><s>the end")
        assert ids == [1, *library().encode("the river"), 2, 1, *library().encode("the end")]
        assert tokenizer.decode(ids) == "the riverthe end"
        assert tokenizer.decode(ids, skip_special=False) == "<s>the river</s><s>the end"
        assert 2 not in tokenizer.encode("the river</s>", parse_special=False)


def test_bos_is_not_doubled() -> None:
    for tokenizer in tokenizers():
        assert tokenizer.encode("<s>the") == tokenizer.encode("the")


def test_bytes_stand_for_what_is_not_in_the_vocabulary() -> None:
    for tokenizer in tokenizers():
        ids = tokenizer.encode("👋", add_bos=False)
        assert b"".join(map(tokenizer.token_bytes, ids)) == " 👋".encode()
        assert [tokenizer.token_bytes(token_id) for token_id in ids[-4:]] == [bytes([b]) for b in "👋".encode()]


def test_the_stream_keeps_leading_spaces() -> None:
    tokenizer = tokenizers()[0]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokenizer.encode("the river"))) + stream.flush() == " the river"


def test_no_space_is_put_in_front_where_the_file_says_so() -> None:
    metadata = sentence_piece_metadata(train_sentence_piece(), **{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = tokenizer_from_metadata(metadata)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("the river", add_bos=False))) == b"the river"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_without_byte_pieces_what_cannot_be_spelled_is_left_out() -> None:
    tokenizer = tokenizer_from_metadata(sentence_piece_metadata(train_sentence_piece(byte_fallback=False)))
    assert tokenizer.decode(tokenizer.encode("the👋end")) == "theend"


def test_tags_added_to_the_vocabulary_are_never_made_from_plain_text() -> None:
    metadata = sentence_piece_metadata(train_sentence_piece())
    metadata["tokenizer.ggml.tokens"] += ["<|im_end|>", "<think>"]
    metadata["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    metadata["tokenizer.ggml.token_type"] += [3, 4]
    n_tokens = len(metadata["tokenizer.ggml.tokens"])
    for tokenizer in (tokenizer_from_metadata(metadata), tokenizer_from_t_file(t_file_from_metadata(metadata))):
        assert tokenizer.eos_ids == (2, n_tokens - 2)
        assert tokenizer.encode("<|im_end|><think>", add_bos=False) == [n_tokens - 2, n_tokens - 1]
        plain = tokenizer.encode("<|im_end|><think>", add_bos=False, parse_special=False)
        assert max(plain) < n_tokens - 2
        assert tokenizer.decode([n_tokens - 2, n_tokens - 1]) == "<think>"


def test_odd_pieces_do_not_stop_the_library() -> None:
    """Doubled, empty and broken texts, NUL characters, an incomplete set of bytes."""
    tokens = [b"a", b"b", b"ab", b"ab", b"", b"\xff", b"\x00c", b"\x41"]
    kinds = [*[TokenKind.NORMAL] * 7, TokenKind.BYTE]
    scores = [-float(token_id) for token_id in range(len(tokens))]
    assert SentencePieceEncoder(tokens, kinds, scores).encode("abA") == [2]


def test_long_texts_of_one_kind_come_back() -> None:
    tokenizer = tokenizers()[0]
    for unit in (" ", "e", "👋"):
        text = unit * (150_000 // len(unit))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_the_library_refuses_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: object) -> None:
        raise RuntimeError("vocab is broken")

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", refuse)
    with pytest.raises(DllamaError, match="sentencepiece refuses the vocabulary \\(vocab is broken\\)"):
        SentencePieceEncoder([b"a"], [TokenKind.NORMAL], [0.0])
