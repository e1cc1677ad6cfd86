"""`tokenizer.model` files against sentencepiece and tiktoken with the untouched file."""

from __future__ import annotations

import base64
import io
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import Tokenizer, open_tokenizer
from dllama_gpu.tokenizer.open_tokenizer import t_file_from
from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from tests.unit.tokenizer.small_vocabularies import CORPUS, train_byte_pair, train_sentence_piece
from tests.unit.tokenizer.test_hf_tokenizer import NASTY

texts = (
    st.lists(st.sampled_from([*NASTY, *sorted(set(CORPUS)), " the", "keeper"]), max_size=24).map("".join)
    | st.text(max_size=30)
).filter(lambda text: all(not 0xD800 <= ord(c) < 0xE000 for c in text))


@cache
def unigram_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=500,
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return model.getvalue()


MODELS = {
    "bpe": train_sentence_piece,
    "bpe_without_bytes": lambda: train_sentence_piece(byte_fallback=False),
    "unigram": unigram_model,
}


@cache
def ours(name: str) -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(MODELS[name]())
        return open_tokenizer(path)


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_ids_are_those_of_sentencepiece(name: str, text: str) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=MODELS[name]())
    assert ours(name).encode(text, add_bos=False, parse_special=False) == library.encode(text)


@settings(deadline=None)
@given(text=texts)
def test_text_comes_back(text: str) -> None:
    text = text.replace("▁", " ")
    assert ours("bpe").decode(ours("bpe").encode(text, parse_special=False)) == text


def test_facts_of_a_sentence_piece_model(tmp_path: Path) -> None:
    tokenizer = ours("bpe")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, (2,), True)
    assert tokenizer.encode("</s>", add_bos=False) == [2]
    assert 2 not in tokenizer.encode("</s>", add_bos=False, parse_special=False)


def test_tokens_that_were_added_later_are_known(tmp_path: Path) -> None:
    n_tokens = ours("bpe").vocab_size
    (tmp_path / "tokenizer.model").write_bytes(train_sentence_piece())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": n_tokens + 1, "<|im_start|>": n_tokens}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.eos_ids == (n_tokens + 1, 2)
    assert tokenizer.encode("<|im_start|>", add_bos=False) == [n_tokens]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": n_tokens + 9}))
    with pytest.raises(DllamaError, match="one of them belongs to another model"):
        open_tokenizer(tmp_path)


@settings(deadline=None, max_examples=50)
@given(text=texts.map(lambda text: text.replace("▁", "")))
def test_a_t_file_of_a_sentence_piece_model_has_the_same_ids(text: str) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=train_sentence_piece())
    assert _from_t("bpe").encode(text, add_bos=False, parse_special=False) == library.encode(text)


@cache
def _from_t(name: str) -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(MODELS[name]())
        return tokenizer_from_t_file(t_file_from(path))


def test_a_unigram_model_has_no_t_file() -> None:
    with pytest.raises(DllamaError, match="a Unigram vocabulary"):
        _from_t("unigram")


def _tiktoken_lines() -> bytes:
    tokens = train_byte_pair("llama-bpe").tokens
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


@cache
def llama3() -> tuple[Tokenizer, Tokenizer]:
    """From the list, and from a `.t` file made of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(_tiktoken_lines())
        return open_tokenizer(path), tokenizer_from_t_file(t_file_from(path))


@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_ids_are_those_of_tiktoken(text: str) -> None:
    tokens = train_byte_pair("llama-bpe").tokens
    library = tiktoken.Encoding(
        "reference",
        pat_str=PRE_TOKENIZERS["llama-bpe"].pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={"<|eot_id|>": len(tokens) + 9},
    )
    from_list, from_t = llama3()
    assert from_list.encode(text, add_bos=False) == library.encode(text, allowed_special="all")
    assert from_t.encode(text, add_bos=False, parse_special=False) == library.encode_ordinary(text)


def test_the_special_tokens_of_llama_3_follow_the_list() -> None:
    n_ordinary = len(train_byte_pair("llama-bpe").tokens)
    for tokenizer in llama3():
        assert tokenizer.vocab_size == n_ordinary + 256
        assert tokenizer.bos_id == n_ordinary
        assert tokenizer.special_ids["<|eot_id|>"] == n_ordinary + 9
        assert tokenizer.special_ids["<|reserved_special_token_247|>"] == n_ordinary + 255
        assert tokenizer.eos_ids[0] == n_ordinary + 1
        assert n_ordinary + 9 in tokenizer.eos_ids
        assert tokenizer.add_bos
        assert "<|start_header_id|>" in (tokenizer.chat_template or "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n\x05\n\x03abc", "refused by the sentencepiece library|holds 0 tokens|which"),
        (b"\n\xff\n\xff\xff", "refused by the sentencepiece library"),
        (b"IQ== 0\nIg== 2\n", "line 2 gives the rank '2', but 1 comes next"),
        (b"IQ== 0\nIg=\n", "line 2 does not begin with a token in base64"),
        (b"IQ== 0\n 1\n", "line 2 gives the rank"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(DllamaError, match=message):
        open_tokenizer(path)


def test_every_truncation_is_refused_or_readable(tmp_path: Path) -> None:
    data = train_sentence_piece()
    path = tmp_path / "tokenizer.model"
    for size in range(1, len(data), 211):
        path.write_bytes(data[:size])
        with suppress(DllamaError):
            assert open_tokenizer(path).vocab_size > 0


@settings(max_examples=200)
@given(places=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_tokenizer_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
) -> None:
    data = bytearray(train_sentence_piece())
    for at, byte in places:
        data[at] = byte
    path = tmp_path_factory.getbasetemp() / "tokenizer.model"
    path.write_bytes(data)
    with suppress(DllamaError):
        assert open_tokenizer(path).vocab_size > 0


def test_pieces_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = bytearray(train_sentence_piece())
    at = data.index("▁t".encode())
    data[at + 1] = 0xFF
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(DllamaError, match="refused by the sentencepiece library"):
        open_tokenizer(tmp_path)
